"""The command line: what it prints where, its exit codes, what it asks of the pipeline."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from turbodiffusion import __version__, cli, video
from turbodiffusion.request import Progress, Request


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call in this process."""
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def made(tmp_path):
    """An mp4 as the pipeline writes it, without the pipeline."""
    request = Request(prompt="一只红色的气球 [bold] 🎈", model="demo", num_steps=4, seed=42)
    encoder = video.Encoder(64, 48, 16, {"request": request.to_json()})
    encoder.add(np.zeros((5, 48, 64, 3), np.uint8))
    path = tmp_path / "made.mp4"
    path.write_bytes(encoder.finish())
    return path, request


def test_help_needs_no_torch():
    code = "import sys; from turbodiffusion import cli; cli.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "generate" in done.stdout


def test_program_and_version(capsys):
    assert run(capsys, "--version") == (0, f"turbodiffusion {__version__}\n", "")
    code, out, _ = run(capsys)
    assert code == 0 and 'generate "an orange cat' in out.replace("\n", "")
    done = subprocess.run([sys.executable, "-m", "turbodiffusion", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"turbodiffusion {__version__}\n")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_shows_every_option_whole(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("generate", "again"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0 and "…" not in out
        for option in (
            "--negative-prompt",
            "--adaptive-resolution",
            "--attention-type",
            "--contact-sheet",
            "--sla-topk",
        ):
            assert option in out
        assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "--nonsense"),
        (["generat", "a cat"], "generat"),
        (["generate", "a cat", "--num-steps", "four"], "valid integer"),
        (["generate"], "give one prompt"),
        (["generate", "a cat", "--prompts-file", "p.txt"], "give one prompt"),
        (["generate", "--prompts-file", "none.txt"], "none.txt cannot be read: No such file"),
        (["generate", "--prompts-file", "empty.txt"], "empty.txt has no prompt"),
        (["generate", "--prompts-file", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["info", "none.mp4"], "there is no file none.mp4"),
        (["again", "empty.txt"], "empty.txt cannot be read as a video"),
    ],
)
def test_errors_are_one_line_and_code_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal does not break the line either
    (tmp_path / "empty.txt").write_text("# nothing\n\n   \n")
    (tmp_path / "latin.txt").write_bytes("un café".encode("latin-1"))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\n\n a red balloon rises \r\n一只猫 # 1\n", encoding="utf-8")
    assert cli._read_prompts(path) == ["a red balloon rises", "一只猫 # 1"]


def test_info(capsys, made):
    path, request = made
    code, out, err = run(capsys, "info", str(path))
    assert (code, err) == (0, "")
    assert request.prompt in out and "num_steps" in out and "guidance" not in out
    code, out, _ = run(capsys, "info", str(path), "--json")
    assert Request.from_json(out) == request and json.loads(out)["seed"] == 42


def test_progress_in_a_log_is_short_and_plain():
    text = io.StringIO()
    with cli._Display(Console(file=text)) as display:
        display(Progress("diffusion", 0, 4))
        for step in range(1, 5):
            display(Progress("diffusion", step, 4, 125.0 * (4 - step)))
        for step in range(1, 101):
            display(Progress("decode", step, 100, 0.1 * (100 - step)))
    lines = text.getvalue().splitlines()
    assert lines[:4] == [
        "diffusion 1/4, 6 min 15 s left",
        "diffusion 2/4, 4 min 10 s left",
        "diffusion 3/4, 2 min 05 s left",
        "diffusion 4/4",
    ]
    assert len(lines) < 10 and lines[-1] == "decode 100/100"


def test_progress_on_a_terminal_fits_and_vanishes():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60, legacy_windows=False)
    with cli._Display(console) as display:
        for step in range(5):
            display(Progress("diffusion", step, 4, 30.0 * (4 - step)))
    shown = text.getvalue()
    assert "2/4, 60 s left" in shown and "━" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the bars are erased; the summary takes their place


def test_quiet_progress_prints_nothing():
    text = io.StringIO()
    with cli._Display(Console(file=text, quiet=True, force_terminal=True)) as display:
        display(Progress("diffusion", 1, 4, 30.0))
    assert text.getvalue() == ""
