"""The edges of a process: signals from the first moment, standard output that fails, encodings, memory, terminals."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from turbodiffusion.cli import console, failures, signals
from turbodiffusion.cli import main as cli
from turbodiffusion.errors import MachineError, UserError, short_of_memory, telling_memory
from turbodiffusion.media import video
from turbodiffusion.request import Request

PROGRAM = [sys.executable, "-m", "turbodiffusion"]
PROMPT = "一只红色的气球 \x1b[31mred\x1b]0;title\x07 🎈\n\x9b2J\u202eabc"


@pytest.fixture
def made(tmp_path) -> Path:
    """A video whose metadata would rewrite a terminal."""
    encoder = video.Encoder(64, 48, 16, {"request": Request(PROMPT, model="demo", seed=42).to_json()})
    encoder.add(np.zeros((5, 72, 64), np.uint8))
    path = tmp_path / "made.mp4"
    path.write_bytes(encoder.finish())
    return path


def run(*arguments: str, **options) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **options.pop("env", {})}
    return subprocess.run([*PROGRAM, *arguments], stderr=subprocess.PIPE, env=environment, timeout=60, **options)


def one_line(done: "subprocess.CompletedProcess[bytes]", code: int) -> str:
    err = done.stderr.decode(errors="replace")
    assert done.returncode == code and err.count("\n") == 1 and "Traceback" not in err, err
    return err


# ---- standard output ----


@pytest.mark.parametrize(
    "command", [["info", "FILE"], ["info", "--json", "FILE"], ["models"], ["--help"], ["--version"]]
)
def test_standard_output_on_a_full_device(made, command):
    with open("/dev/full", "wb") as full:
        done = run(*(str(made) if word == "FILE" else word for word in command), stdout=full)
    assert "cannot be written or read: No space left on device" in one_line(done, 2)


def test_a_path_that_standard_output_does_not_take_is_on_standard_error(tiny_model, tmp_path):
    with open("/dev/full", "wb") as full:
        arguments = ["generate", "a red fox", "--model", str(tiny_model), "--output", str(tmp_path / "o")]
        done = run(*arguments, "--device", "cpu", stdout=full)
    (path,) = (tmp_path / "o").glob("*.mp4")
    assert done.returncode == 2 and str(path) in done.stderr.decode() and b"Traceback" not in done.stderr


def test_a_reader_that_is_gone(made):
    read, write = os.pipe()
    os.close(read)
    done = run("info", str(made), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed(made, closed):
    words = " ".join([*PROGRAM, "info", str(made), f"{closed}>&-"])
    done = subprocess.run(["sh", "-c", words], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8", "utf-16"])
def test_an_output_encoding_that_lacks_a_character(made, encoding):
    done = run("info", str(made), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stderr == b"" and "model" in done.stdout.decode(encoding)
    done = run("info", "--json", str(made), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and json.loads(done.stdout.decode(encoding))["prompt"] == PROMPT


def test_a_path_is_printed_byte_for_byte(tmp_path, monkeypatch):
    class Ascii(io.TextIOWrapper):
        pass

    out = Ascii(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", out)
    console.print_path(tmp_path / "视频")
    console.print_path(Path(os.fsdecode(b"/odd/\xff.mp4")))
    assert out.buffer.getvalue() == os.fsencode(tmp_path / "视频") + b"\n/odd/\xff.mp4\n"


# ---- terminals ----


def test_what_a_file_says_does_nothing_to_a_terminal(made, capsys, tmp_path):
    assert cli.main(["info", str(made)]) == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e") and r"\x1b[31mred" in out.replace("\n", "")
    name = str(tmp_path / "a\nerror: b\x1b[2J.mp4")
    assert cli.main(["info", name]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and r"a\nerror: b\x1b[2J.mp4" in err


def test_printable():
    assert console.printable("一只猫 🎈 é") == "一只猫 🎈 é"
    assert console.printable("a\r\nb\tc\x00\ud800") == r"a\r\nb\tc\x00\ud800"


# ---- signals ----


def stopped(arguments: list[str], number: int, seconds: float) -> tuple[int, str, str]:
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_starts(tiny_model, tmp_path, number):
    code, words = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "ended by SIGTERM")}[number]
    moments = random.Random(0)
    arguments = ["generate", "a red fox", "--model", str(tiny_model), "--num-steps", "200", "--output", str(tmp_path)]
    for _ in range(10):  # from the first import to the diffusion; before Python itself is up nothing can be told
        got, out, err = stopped(arguments, number, moments.uniform(0.15, 2.0))
        assert got == code and out == "" and err.splitlines()[-1].startswith(words), err
        assert "Traceback" not in err and list(tmp_path.iterdir()) == []


def test_a_stop_while_a_library_is_imported_ends_at_once(tmp_path):
    swallowing = "try:\n  os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\nexcept BaseException: pass"
    (tmp_path / "library.py").write_text(f"import os, signal, time\n{swallowing}")
    code = "from turbodiffusion.cli import signals\nwith signals.stoppable(): import library"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (143, b"ended by SIGTERM; nothing half-written is left\n")


def test_a_signal_that_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- memory and folders ----


@pytest.mark.parametrize("kib", [300_000, 600_000, 900_000])
def test_too_little_address_space(kib, tmp_path):
    words = f"ulimit -v {kib}; exec {' '.join(PROGRAM)} generate 'a red fox' --output {tmp_path}/o"
    done = subprocess.run(["bash", "-c", words], capture_output=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    err = one_line(done, 2)
    assert "(ulimit -v)" in err or "ran out of CPU memory" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
        RuntimeError("unable to mmap 100 bytes from file <x>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_one_line(error):
    assert short_of_memory(error)
    assert failures.explain(error).code == "machine.cpu_memory"
    with pytest.raises(MachineError, match="ran out of CPU memory"), telling_memory():
        raise error


def test_what_is_no_lack_of_memory():
    for error in (RuntimeError("shape mismatch"), ValueError("can't allocate memory")):
        assert not short_of_memory(error) and failures.explain(error) is None
        with pytest.raises(type(error)), telling_memory():
            raise error


def test_what_is_told_in_a_line():
    missing = ModuleNotFoundError("No module named 'av'", name="av")
    assert "pip install av" in str(failures.explain(missing))
    assert failures.explain(ModuleNotFoundError("x", name="turbodiffusion.none")) is None
    assert (
        str(failures.explain(PermissionError(13, "Permission denied", "/closed/a"))) == "/closed/a: Permission denied"
    )
    with pytest.raises(UserError, match="ended where more was expected"), failures.past_click():
        raise EOFError("No data left in file")
    with pytest.raises(failures.StdoutGoneError), failures.past_click():
        raise BrokenPipeError


AS_NOBODY = """
import contextlib, io, json, os, sys
import turbodiffusion.checkpoint.convert, turbodiffusion.evaluation.result_file, turbodiffusion.inference.doctor
import turbodiffusion.inference.pipeline, turbodiffusion.media.metadata
from PIL import Image
from turbodiffusion.cli.main import main
Image.init()
if os.geteuid() == 0: os.setuid(65534)  # to whom the folders of the interpreter may be closed to as well
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    print(json.dumps([code, err.getvalue()]))
"""
CLOSED = [
    ["generate", "a fox", "--model", "CLOSED/model"],
    ["generate", "a fox", "--model", "CLOSED/deep/model.safetensors"],
    ["generate", "--prompts-file", "CLOSED/p.txt"],
    ["generate", "a fox", "--output", "CLOSED/o"],
    ["generate", "a fox", "--output", "CLOSED/o.mp4"],
    ["generate", "it snows", "--model", "wan2.2-i2v-a14b", "--image", "CLOSED/a.png", "--output", "OPEN"],
    ["info", "CLOSED/a.mp4"],
    ["again", "CLOSED/a.mp4"],
    ["convert", "CLOSED/a", "OPEN/b"],
    ["convert", "MODEL", "CLOSED/a"],
    ["doctor", "--json", "CLOSED/a.json"],
    ["bench", "--check", "CLOSED/a.json"],
]


def test_a_folder_that_cannot_be_entered():
    model = Path(video.__file__).parents[1] / "demo" / "model"
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o700)
        free = Path(folder) / "open"
        free.mkdir()
        free.chmod(0o777)
        Path(folder).chmod(0o755)
        words = json.dumps(CLOSED)
        for name, path in {"CLOSED": closed, "MODEL": model, "OPEN": free}.items():
            words = words.replace(name, str(path))
        environment = {**os.environ, "LC_ALL": "C", "HOME": folder}
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, words], capture_output=True, text=True, cwd="/", env=environment
        )
    assert done.stderr == ""
    for arguments, line in zip(CLOSED, done.stdout.splitlines(), strict=True):
        code, err = json.loads(line)
        assert code == 2 and err.count("\n") == 1 and str(closed) in err, (arguments, err)
