"""Faults that a real machine has: killed, interrupted, a full disk. No half video is ever left under a final name."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from turbodiffusion.media import video
from turbodiffusion.media.metadata import read_metadata

pytestmark = pytest.mark.soak
STEPS = 60  # of the tiny model: a few seconds of diffusion to be interrupted in


def command(model: Path, output: Path, *more: str) -> list[str]:
    arguments = ["generate", "a red fox", "--model", str(model), "--num-steps", str(STEPS), "--output", str(output)]
    return [sys.executable, "-m", "turbodiffusion", *arguments, *more]


def started(model: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(model, output, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=output.parent
    )


def wait_for(process: "subprocess.Popen[str]", word: str) -> None:
    """Read the progress lines up to the first that begins with `word`, which a stage prints at its end."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(word):
            return
    raise AssertionError(f"the command ended without a line of {word}: exit code {process.wait()}")


def videos(folder: Path) -> list[Path]:
    """What lies under final names; each must be a whole video."""
    found = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    for path in found:
        assert len(video.read_frames(path)) == 5 and read_metadata(path)["request"]
    return found


def test_a_video_through_the_real_command(tiny_model, tmp_path):
    done = subprocess.run(command(tiny_model, tmp_path / "o"), capture_output=True, text=True, check=True)
    assert videos(tmp_path / "o") == [Path(done.stdout.splitlines()[-1])]
    assert re.search(rf"^done 64x64, 5 frames, {STEPS} steps, seed \d+ in", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("stage", ["load", "text_encode", "denoise", "vae_decode"])
def test_ctrl_c_after_every_stage(tiny_model, tmp_path, stage):
    process = started(tiny_model, tmp_path / "o")
    wait_for(process, stage)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:  # the last stages are short: the video was whole before the signal came
        assert stage == "vae_decode" and len(videos(tmp_path / "o")) == 1
        return
    assert process.returncode == 130 and "Traceback" not in err and out == ""
    assert err.splitlines()[-1] == "interrupted; nothing half-written is left"
    assert not (tmp_path / "o").exists()


def test_kill_9_at_any_moment_leaves_no_half_video(tiny_model, tmp_path):
    start = time.perf_counter()
    subprocess.run(command(tiny_model, tmp_path / "whole"), check=True, capture_output=True)
    whole = time.perf_counter() - start
    moments = random.Random(0)
    for _ in range(10):
        process = started(tiny_model, tmp_path / "o", "--contact-sheet")
        time.sleep(whole * moments.uniform(0.2, 1.05))
        process.kill()
        process.communicate()
    whole_ones = videos(tmp_path / "o")
    subprocess.run(command(tiny_model, tmp_path / "o"), check=True, capture_output=True)
    assert len(videos(tmp_path / "o")) == len(whole_ones) + 1  # what the killed ones left is in nobody's way


SAVE_LOOP = """
import sys
from turbodiffusion.media import video
print("ready", flush=True)
while True:
    video.save(bytes(3_000_000), sys.argv[1], "v.mp4")
"""


def test_kill_9_while_saving(tmp_path):
    """The moment itself, again and again: every name that exists has all its bytes."""
    moments = random.Random(1)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", SAVE_LOOP, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        assert all(path.stat().st_size == 3_000_000 for path in tmp_path.glob("v*.mp4"))
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(tiny_model, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    done = subprocess.run(command(tiny_model, small_disk / "o"), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match(r"error: cannot write .*the disk is full", done.stderr.splitlines()[-1])
    assert not list(small_disk.rglob("*.mp4")) and not list(small_disk.rglob(".*.part"))
    filler.unlink()
    subprocess.run(command(tiny_model, small_disk / "o"), capture_output=True, check=True)
    assert len(videos(small_disk / "o")) == 1


def test_disk_that_fills_up_half_way(small_disk):
    """Half of the bytes fit: the write itself fails, not the opening."""
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
    with pytest.raises(video.OutputError, match="the disk is full"):
        video.save(bytes(400_000), small_disk, "v.mp4")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
