"""Making videos from the command line: what fails at the beginning, what is printed, where a prompts file goes on."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from turbodiffusion.cli import main as cli
from turbodiffusion.cli import prompts_file
from turbodiffusion.errors import OutputError
from turbodiffusion.media import video
from turbodiffusion.media.metadata import read_metadata


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """A model that must not be loaded: what is wrong is known before."""
    from turbodiffusion.inference.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("a model was loaded"))


def prompts_of(out: str) -> list[str]:
    return [json.loads(read_metadata(line)["request"])["prompt"] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("dangling", "leads nowhere"),
        ("loop", "leads nowhere"),
        ("loop/a.mp4", "leads nowhere"),
        ("file/deeper", "is a file or lies under one"),
        ("x" * 300, "300 bytes is longer"),
        ("y" * 5000, "5000 bytes is longer"),
        ("z" * 252 + ".mp4", "256 bytes is longer"),
        ("a\0b", "NUL"),
        ("/dev/null/a", "is a file or lies under one"),
        ("/proc/a.mp4", "cannot write into /proc"),
    ],
)
def test_outputs_that_cannot_be_are_told_before_the_work(capsys, here, tiny_model, no_work, output, words):
    (here / "dangling").symlink_to(here / "nowhere")
    (here / "loop").symlink_to(here / "loop")
    (here / "file").write_text("mine")
    code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--output", output)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err
    assert sorted(path.name for path in here.iterdir()) == ["dangling", "file", "loop"]


def test_a_contact_sheet_that_cannot_be_is_told_before_the_work(capsys, here, tiny_model, no_work):
    (here / "a.png").mkdir()
    arguments = ["generate", "a fox", "--model", str(tiny_model), "--output", "a.mp4", "--contact-sheet"]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "a.png: it is a folder" in err


def test_an_mp4_encoder_that_is_missing_is_told_before_the_work(capsys, here, tiny_model, no_work, monkeypatch):
    monkeypatch.setattr(video, "_X264", {"preset": "no such preset"})
    code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model))
    assert (code, out) == (2, "") and "the mp4 encoder cannot be opened for 64x64" in err


def test_a_saved_videos_path_is_printed_whatever_fails_after_it(capsys, here, tiny_model, monkeypatch):
    from turbodiffusion.inference.result import Result

    def full(*_):
        raise OutputError("files.cannot_write", path="sheet.png", reason="the disk is full")

    monkeypatch.setattr(Result, "contact_sheet", full)
    code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--contact-sheet", "--quiet")
    assert code == 2 and Path(out.strip()).is_file() and "the disk is full" in err


# ---- prompts files ----


def test_comments_and_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\n\n a red balloon rises \r\n一只猫 # 1\na\u2028b\n", encoding="utf-8")
    items = prompts_file.read_items(path, {})
    assert [item.words for item in items] == ["a red balloon rises", "一只猫 # 1", "a\u2028b"]
    assert [item.line for item in items] == [3, 4, 5]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("一只橙色的猫在花园里奔跑\n".encode("gbk"), "GBK"),
        ("一只橙色的猫\n".encode("utf-16"), "UTF-16"),
        ("a cat runs\n".encode("utf-16-le"), "UTF-16LE"),
        ("a cat runs\n".encode("utf-16-be"), "UTF-16BE"),
        ("un café noir, déjà vu".encode("latin-1"), "is not text in UTF-8; save it as UTF-8"),
        (bytes(range(256)), "is not text in UTF-8; save it as UTF-8"),
        (b"a cat\0", "is not text in UTF-8"),
        (b"# nothing\n", "has no prompt"),
    ],
)
def test_what_is_no_prompts_file(capsys, here, no_work, data, words):
    (here / "p.txt").write_bytes(data)
    code, out, err = run(capsys, "generate", "--prompts-file", "p.txt")
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    if "iconv" in err:
        assert "iconv -f " in err and "p.txt > p.utf8.txt" in err


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "folder", "none.txt", "a\0b", "p" * 5000])
def test_prompts_files_that_cannot_be_read(capsys, here, no_work, path):
    (here / "folder").mkdir()
    code, out, err = run(capsys, "generate", "--prompts-file", path)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": ',
        '{"seed": 1}',
        '{"prompt": "a", "sed": 1}',
        '{"prompt": "a", "seed": "x"}',
        '{"prompt": 1}',
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"prompt": ' + "[" * 60_000,
        '{"prompt": ' + "[" * 60_000 + "]" * 60_000 + "}",
        '{"prompt": "a", "num_frames": 6}',
        '{"prompt": "a", "model": "wan2.1-t2v-1.3b"}',
        '{"prompt": "\\ud800"}',
        '{"prompt": "a", "image": "none.png"}',
    ],
    ids=range(12),
)
def test_one_bad_line_does_not_end_the_rest(capsys, here, tiny_model, line):
    (here / "p.txt").write_text(f"a red fox\n{line}\na blue fox\n")
    arguments = ["generate", "--prompts-file", "p.txt", "--model", str(tiny_model), "--output", "o"]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and prompts_of(out) == ["a red fox", "a blue fox"]
    assert err.splitlines()[-2].startswith("error: line 2: ")
    assert err.splitlines()[-1].startswith("error: not made: 1 of 3 lines")
    assert max(map(len, err.splitlines())) < 1000
    code, out, err = run(capsys, *arguments)  # once more: nothing is made twice
    assert (code, out) == (2, "") and "left out: 2, in o" in err


def test_fields_of_a_line_go_before_the_options(capsys, here, tiny_model):
    (here / "p.txt").write_text('a red fox\n{"prompt": "a ball", "seed": 7, "num_steps": 1}\n')
    arguments = ["generate", "--prompts-file", "p.txt", "--model", str(tiny_model), "--seed", "3"]
    code, out, _ = run(capsys, *arguments)
    made = [json.loads(read_metadata(line)["request"]) for line in out.splitlines()]
    assert code == 0 and [(each["seed"], each["num_steps"]) for each in made] == [(3, 2), (7, 1)]


def test_a_prompts_file_goes_on_where_it_stopped(capsys, here, tiny_model, monkeypatch):
    from turbodiffusion.inference.pipeline import Pipeline

    generate = Pipeline.generate
    made = []

    def until_the_third(self, request, *args, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(request)
        return generate(self, request, *args, **options)

    (here / "p.txt").write_text("a red fox\na blue fox\na red fox\na ball\n")
    arguments = ["generate", "--prompts-file", "p.txt", "--model", str(tiny_model), "--output", "o"]
    monkeypatch.setattr(Pipeline, "generate", until_the_third)
    code, out, err = run(capsys, *arguments)
    assert code == 130 and len(out.splitlines()) == 2
    monkeypatch.setattr(Pipeline, "generate", generate)
    code, out, err = run(capsys, *arguments)  # the same prompt twice is two videos
    assert code == 0 and prompts_of(out) == ["a red fox", "a ball"]
    assert "done before and left out: 2, in o; --redo makes them again" in err
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (0, "") and "left out: 4" in err
    (here / "p.txt").write_text("a red fox\na blue fox\na red fox\na ball\na red ball\n")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and prompts_of(out) == ["a red ball"]
    next((here / "o").glob("*.mp4")).unlink()  # what was thrown away is made again
    (here / "o" / prompts_file.DONE).write_text((here / "o" / prompts_file.DONE).read_text() + "{damaged\n[1]\n")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and len(out.splitlines()) == 1
    code, out, _ = run(capsys, *arguments, "--redo")
    assert code == 0 and len(out.splitlines()) == 5
    code, out, _ = run(capsys, *arguments, "--num-steps", "1")  # other options ask for other videos
    assert code == 0 and len(out.splitlines()) == 5


def test_the_digest_tells_images_apart(tmp_path):
    from turbodiffusion.request import Request

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    red = prompts_file.digest_of(Request("a", image=tmp_path / "a.png"))
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    assert prompts_file.digest_of(Request("a", image=tmp_path / "a.png")) != red


def test_a_pipe_of_prompts(capsys, here, tiny_model):
    read, write = os.pipe()
    os.write(write, b"a red fox\n")
    os.close(write)
    arguments = ["generate", "--prompts-file", f"/dev/fd/{read}", "--model", str(tiny_model), "--quiet"]
    code, out, _ = run(capsys, *arguments)
    os.close(read)
    assert code == 0 and prompts_of(out) == ["a red fox"]
