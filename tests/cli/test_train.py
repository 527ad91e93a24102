"""The front of training: what is no atlas, no weights, no subject is told in one line."""

import subprocess
import sys

import numpy as np
import pytest

from turbodiffusion.cli import main as cli
from turbodiffusion.demo import bake, preview


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "junk").write_bytes(np.random.default_rng(0).bytes(5000))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", **{"sheet/cat": np.array([None])})
    np.savez(tmp_path / "picture.npz", **{"sheet/cat": np.zeros(10, np.uint8)})
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "picture.npz").read_bytes()[:200])
    return tmp_path


ATLASES = [
    "empty",
    "junk",
    "cut.npz",
    "other.npz",
    "objects.npz",
    "picture.npz",
    "array.npy",
    "none.npz",
    ".",
    "/dev/zero",
]


def refused(capsys, *arguments: str) -> str:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("atlas", ATLASES)
def test_what_is_no_atlas(capsys, here, monkeypatch, atlas):
    monkeypatch.setattr(sys, "argv", ["preview", "--atlas", atlas])
    err = refused(capsys, "train", "vae", "--atlas", atlas, "--folder", "run", "--steps", "1")
    assert atlas in err and "turbodiffusion.demo.bake --out" in err and not (here / "run" / "state.pt").exists()
    if atlas not in ("picture.npz", "objects.npz"):  # whose picture alone is broken: the text encoder needs names
        assert "turbodiffusion.demo.bake" in refused(capsys, "train", "text", "--atlas", atlas, "--folder", "run")
    with pytest.raises(SystemExit) as ended:
        sys.argv = ["preview", "--atlas", atlas]
        preview.main()
    assert ended.value.code == 2 and "turbodiffusion.demo.bake" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["empty", "junk", "none", "."])
def test_what_is_no_file_of_weights(capsys, here, weights):
    assert weights in refused(capsys, "train", "merge", "t", "--rcm", weights)
    assert "probe" in refused(capsys, "evaluate", "a=demo", "--probe", weights, "--atlas", "other.npz")
    (here / "run").mkdir()
    if weights in ("empty", "junk"):
        for name in ("flow", "vae"):
            (here / "run" / f"{name}.safetensors").write_bytes((here / weights).read_bytes())
    assert "run" in refused(capsys, "train", "pack", "t", "--flow-run", "run", "--vae-run", "run")


def test_a_group_by_itself_is_its_help(capsys):
    assert cli.main(["train"]) == 0
    out, err = capsys.readouterr()
    assert "vae" in out + err and "error" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subjects", "kat"], "nearest: cat"),
        (["--subjects", ","], "names nothing"),
        (["--out", "empty"], "cannot write to"),
    ],
)
def test_bake(capsys, here, monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", ["bake", *words])
    with pytest.raises(SystemExit) as ended:
        bake.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("size", ["axb", "0x0", "-1x5", "100x100", "256", "9" * 5000 + "x16"])
def test_preview_of_a_size_that_is_none(capsys, here, monkeypatch, size):
    monkeypatch.setattr(sys, "argv", ["preview", f"--size={size}", "--atlas", "other.npz"])
    with pytest.raises(SystemExit) as ended:
        preview.main()
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_bake_by_itself_is_one_line(here):
    done = subprocess.run(
        [sys.executable, "-m", "turbodiffusion.demo.bake", "--subjects", "kat"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
