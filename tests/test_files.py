"""Files out and in: whole or not at all, regular files only, nothing left, nothing read without end."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from turbodiffusion import files
from turbodiffusion.errors import OutputError, UserError


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    assert files.write_file(path, b"one") == path
    assert files.write_file(path, b"two") == path
    assert path.read_bytes() == b"two" and only(path.parent) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # readable like any other file, not private


def test_a_writer_that_fails_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.bin"
    files.write_file(path, b"old")

    def half(beside: Path) -> None:
        beside.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(path, half)
    assert path.read_bytes() == b"old" and only(tmp_path) == ["a.bin"]


def test_a_writer_may_replace_its_file(tmp_path):
    def private(beside: Path) -> None:  # as safetensors does
        other = beside.with_suffix(".tmp")
        other.write_bytes(b"new")
        other.chmod(0o600)
        other.replace(beside)

    path = files.write_file(tmp_path / "a.bin", private)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o044 and only(tmp_path) == ["a.bin"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_bytes(b"old")
    link = tmp_path / "a.json"
    link.symlink_to(tmp_path / "real" / "a.json")
    files.write_file(link, b"new")
    assert link.is_symlink() and (tmp_path / "real" / "a.json").read_bytes() == b"new"


def hostile(folder: Path) -> dict[Path, str]:
    """Names that no result may have, and what is said of them."""
    os.mkfifo(folder / "pipe")
    (folder / "file").write_bytes(b"mine")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "device").symlink_to("/dev/null")
    (folder / "folder").mkdir()
    return {
        folder / "pipe": "device or a pipe",
        folder / "device": "device or a pipe",
        Path("/dev/null"): "device or a pipe",
        folder / "folder": "it is a folder",
        Path(""): "it is a folder",
        folder / "dangling": "leads nowhere",
        folder / "loop": "leads nowhere",
        folder / "loop" / "a.json": "leads nowhere",
        folder / "dangling" / "a.json": "leads nowhere|is a file",
        folder / "file" / "a.json": "is a file or lies under one",
        folder / "file" / "deep" / "a.json": "is a file or lies under one",
        folder / ("x" * 300): "300 bytes is longer|bytes is longer",
        folder / ("x/" * 2500): "is longer",
        folder / "a\0b": "NUL",
        Path("/proc/a.json"): "cannot write",
    }


def test_what_no_result_may_replace(tmp_path):
    for path, words in hostile(tmp_path).items():
        for write in (files.check_writable, lambda path: files.write_file(path, b"new")):
            with pytest.raises(UserError, match=words) as caught:
                write(path)
            assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"mine" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "loop").is_symlink() and Path("/dev/null").is_char_device()
    assert only(tmp_path) == ["dangling", "device", "file", "folder", "loop", "pipe"]


def test_a_check_leaves_nothing(tmp_path):
    files.check_folder(tmp_path / "new" / "folder")
    files.check_writable(tmp_path / "a.json")
    assert only(tmp_path) == []


ASK = """
import os, sys
from turbodiffusion import files
if os.geteuid() == 0: os.setuid(65534)  # root may write anywhere, so root asks as nobody
for folder in sys.argv[1:]:
    for call in (lambda: files.check_folder(folder + "/new"), lambda: files.write_file(folder + "/v.mp4", b"x")):
        try: call()
        except files.OutputError as error: print(error)
"""


def test_read_only_and_closed_folders():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o700)
        Path(folder).chmod(0o555)
        within = str(closed / "within")
        done = subprocess.run([sys.executable, "-c", ASK, folder, within], capture_output=True, text=True, check=True)
        assert done.stdout.count(f"{folder} is read-only") == 2
        assert done.stdout.count("cannot write") == len(done.stdout.splitlines()) == 4
        assert only(Path(folder)) == ["closed"]


def leave(folder: Path, name: str, age: float) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_a_killed_process_left_is_swept(tmp_path):
    old = leave(tmp_path, ".v.mp4.0123abcd.part", 90)
    young = leave(tmp_path, ".v.mp4.0123abce.part", 5)
    foreign = [leave(tmp_path, name, 90) for name in ("v.mp4.part", ".v.mp4.part", ".x.0123abcd.tmp")]
    with files._beside(tmp_path / "other.bin") as mine:  # being written for long
        os.utime(mine, (0, 0))
        files.write_file(tmp_path / "a.json", b"{}")
        assert mine.exists()
    assert not old.exists() and young.exists() and all(path.exists() for path in foreign)


def test_many_writers_of_one_name(tmp_path):
    def write(number: int) -> None:
        files.write_file(tmp_path / "v.mp4", bytes([number]) * 1000, fresh=True)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.read_bytes()[0] for path in tmp_path.iterdir()} == set(range(12))
    assert all(re.fullmatch(r"v(_\d+)?\.mp4", name) for name in only(tmp_path))


def test_reading_ends(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 2_000_000)
    assert len(files.read_file(path, 2_000_000)) == 2_000_000
    with pytest.raises(UserError, match="more than 1 MB"):
        files.read_file(path, 1_000_000)
    for device in ("/dev/zero", "/dev/urandom", "/dev/tty"):
        with pytest.raises(UserError, match="may never end"):
            files.read_file(device, 1_000_000)
    with pytest.raises(FileNotFoundError):
        files.read_file(tmp_path / "none", 10)
    with pytest.raises(IsADirectoryError):
        files.read_file(tmp_path, 10)


def test_a_pipe_is_read_to_its_end_and_not_waited_for_without_one(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.write(write, b"a cat\n")
    monkeypatch.setattr(files, "_SILENCE", 0.1)
    with pytest.raises(UserError, match="said nothing"):
        files.read_file(f"/dev/fd/{read}", 100)
    os.write(write, b"a dog\n")
    os.close(write)
    assert files.read_file(f"/dev/fd/{read}", 100) == b"a dog\n"
    os.close(read)
    os.mkfifo(tmp_path / "pipe")  # that nobody writes into
    with pytest.raises(UserError, match="said nothing"):
        files.read_file(tmp_path / "pipe", 100)


def test_errors_are_output_errors(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        files.write_file(tmp_path / "file" / "x", b"")
    assert caught.value.code == "files.cannot_write"
    assert caught.value.text.render("zh").startswith("无法写入")
