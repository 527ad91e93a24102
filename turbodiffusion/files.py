"""Files out and in: what is written appears whole or not at all, what is read is a file that ends.

Every file that this package writes goes through `write_file`: beside its final name first, then under it in one step.
Only regular files are replaced: a device, a pipe or a folder is refused, a link is followed to the file that it names.
What a killed process left beside its names is removed by the next that writes into the same folder.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import select
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from turbodiffusion.errors import OutputError, RequestError, UserError
from turbodiffusion.texts import Text, text

try:
    import fcntl
except ImportError:  # Windows: leftovers are told by their age alone
    fcntl = None  # type: ignore[assignment]

AnyPath = str | os.PathLike[str]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.]+:/+\w")  # a Path has made one slash of two
_BESIDE = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_LEFT_ALONE = 60.0  # seconds: between the moment when a file is whole and its final name lie milliseconds
_PROBE = 65_536  # bytes that must fit where a file is going to be written
_SILENCE = 20.0  # seconds that a pipe may be silent


# ---- names ----


def check_name(path: AnyPath) -> Path:
    """Return a path that a file may have. Raises RequestError for one that no file can have: too long, or with a NUL."""
    name = os.fspath(path)
    if "\0" in name:
        raise RequestError("files.nul", path=name.replace("\0", "\\0"))
    try:
        os.lstat(name)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RequestError("files.long_name", path=_shortened(name), length=len(os.fsencode(name))) from None
    return Path(name)


def home(path: AnyPath) -> Path:
    """Return a path with ~ written out. Raises RequestError where there is no such home folder, or no such name."""
    try:
        return check_name(Path(path).expanduser())
    except RuntimeError:
        raise RequestError("files.no_home", path=path) from None


def cache_folder() -> Path:
    """Return this package's folder under XDG_CACHE_HOME, else ~/.cache, else among temporary files."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        base = tempfile.gettempdir()
    return Path(base) / "turbodiffusion"


def _shortened(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:40]}...{name[-20:]}"


# ---- writing ----


def write_file(path: AnyPath, content: bytes | Callable[[Path], object], *, fresh: bool = False) -> Path:
    """Write a file whole or not at all, with its folder, and return its path.

    content: the bytes, or a function that writes them to a path. fresh: never replace: `path` becomes path_2, path_3,
    ... where it exists. Raises OutputError, one line, for what cannot be written and for what is not a regular file.
    """
    try:
        path = check_name(path)
        target = path if fresh else _replaceable(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with _beside(target) as beside:
            _fill(beside, content)
            if not fresh:
                os.replace(beside, target)
                return path
            return _name_once(beside, target)
    except OSError as error:
        size = len(content) if isinstance(content, bytes) else 0
        raise OutputError("files.cannot_write", path=path, reason=reason(error, Path(path).parent, size)) from error


def check_writable(path: AnyPath) -> None:
    """Raise OutputError where `write_file` surely would, before the work whose result it is; leaves nothing."""
    path = check_name(path)
    try:
        _replaceable(path)
    except OSError as error:
        raise OutputError("files.cannot_write", path=path, reason=reason(error, path.parent, 0)) from error
    check_folder(path.parent)


def check_folder(folder: AnyPath) -> None:
    """Raise OutputError where a file surely cannot be written into a folder, which need not exist yet."""
    folder = check_name(folder)
    place = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path("."))
    try:
        if not place.is_dir():
            if place.is_symlink() and not place.exists():
                raise OutputError("files.cannot_write_into", path=folder, reason=text("files.broken_link", path=place))
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with _beside(place / "probe") as probe:
            _fill(probe, bytes(_PROBE))
    except OSError as error:
        why = reason(error, place if error.errno != errno.ENOTDIR else folder, _PROBE)
        raise OutputError("files.cannot_write_into", path=folder, reason=why) from error


def reason(error: OSError, folder: AnyPath, size: int) -> Text | str:
    """Return why something could not be written into a folder, and what would work. size: bytes that were to be."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return text("files.under_a_file", path=folder)
    if error.errno == errno.ELOOP:
        return text("files.broken_link", path=folder)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text("files.disk_full", reason=error.strerror, megabytes=max(size / 1e6, 0.1))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return text("files.read_only", path=folder, reason=error.strerror)
    named = f": {error.filename}" if isinstance(error.filename, str) and not _BESIDE.search(error.filename) else ""
    return f"{error.strerror or error}{named}"


def _replaceable(path: Path) -> Path:
    """The regular file that a path names, or may become one, behind links. Raises OutputError for anything else."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            raise OutputError("files.cannot_write", path=path, reason=text("files.broken_link", path=path)) from None
        if error.errno != errno.ENOENT:
            raise
        return path
    if stat.S_ISDIR(kind):
        raise OutputError("files.folder", path=path)
    if not stat.S_ISREG(kind):
        raise OutputError("files.not_regular", path=path)
    return path.resolve() if path.is_symlink() else path


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new file beside `target`, locked while it is written and gone at the end, unless it got another name."""
    while True:
        path = target.parent / f".{target.name[:60]}.{secrets.token_hex(4)}.part"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        _locked(descriptor)
        if path.exists():
            break
        os.close(descriptor)  # the sweep of another process was faster than the lock
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _fill(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write into a file that exists, and flush it to the disk."""
    mode = path.stat().st_mode
    if isinstance(content, bytes):
        with path.open("r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return
    content(path)
    path.chmod(mode)  # as the umask asks: safetensors makes files that only their owner can read


def _name_once(beside: Path, path: Path) -> Path:
    """Name a finished file `path`, or the first free path_2, path_3, ...: a link, unlike a rename, never replaces."""
    number, target = 1, path
    while True:
        try:
            os.link(beside, target)
            return target
        except FileExistsError:
            number += 1
            target = path.with_stem(f"{path.stem}_{number}")
        except OSError as error:
            # FAT, exFAT and some network disks have no links: look first, then rename
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if not target.exists():
                os.rename(beside, target)
                return target
            number += 1
            target = path.with_stem(f"{path.stem}_{number}")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left beside their names: a minute old, and locked by nobody."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if _BESIDE.fullmatch(entry.name)]
        for path in left:
            with contextlib.suppress(OSError):
                _remove_left(path)


def _remove_left(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode) or time.time() - path.stat().st_mtime < _LEFT_ALONE:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _locked(descriptor, wait=False):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, *, wait: bool = True) -> bool:
    """Whether an open file is this process's alone now; a disk without locks has nothing swept."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def append_line(path: AnyPath, line: str) -> None:
    """Add a line to a file, in one piece: two processes may do so at once. Raises OutputError."""
    target = _replaceable(check_name(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError("files.cannot_write", path=path, reason=reason(error, target.parent, 0)) from error


# ---- reading ----


def read_file(path: AnyPath, limit: int) -> bytes:
    """Return a file's bytes, or a pipe's until its end.

    Raises UserError for a device, for more than `limit` bytes and for a pipe that says nothing; OSError as `open` does.
    """
    path = check_name(path)
    check_ends(path, pipe=True)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        pieces, count = [], 0
        while piece := _next_piece(file, path, min(1 << 20, limit + 1 - count), pipe=stat.S_ISFIFO(kind)):
            pieces.append(piece)
            count += len(piece)
            if count > limit:
                raise UserError("files.too_large", path=path, megabytes=limit // 1_000_000)
    return b"".join(pieces)


def check_ends(path: AnyPath, *, pipe: bool = False) -> None:
    """Raise UserError for an address, and for what may never end: a device, a socket, unless `pipe` a pipe."""
    try:
        kind = os.stat(path).st_mode
    except OSError:
        if _URL.match(os.fspath(path)):
            raise UserError("files.url", path=path) from None
        return  # to be told by who opens it
    endless = stat.S_ISCHR(kind) or stat.S_ISBLK(kind) or stat.S_ISSOCK(kind)
    if endless or (stat.S_ISFIFO(kind) and not pipe):
        raise UserError("files.endless", path=path)


def _next_piece(file: io.FileIO, path: Path, size: int, *, pipe: bool) -> bytes:
    if pipe and not select.select([file], [], [], _SILENCE)[0]:
        raise UserError("files.silent_pipe", path=path, seconds=round(_SILENCE))
    return file.read(size) or b""
