"""What ends a command: which exceptions are a user's or a machine's matter, told in one line, and the exit codes."""

import contextlib
import errno
import sys
from collections.abc import Iterator

from turbodiffusion.errors import MachineError, UserError, short_of_memory

_OURS = "turbodiffusion"
_STREAM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)  # of one that is written
_PYTORCH = 1 << 30  # bytes of address space: with less, its libraries abort while they are loaded


class StdoutGoneError(Exception):
    """The reader of standard output is gone (`| head`): nobody is left to be told."""


class EndedEarlyError(UserError):
    """A file ended where more was expected."""


@contextlib.contextmanager
def past_click() -> Iterator[None]:
    """Carry what click would take for something else through it: it reads EOFError as Ctrl-C, EPIPE as exit code 1."""
    try:
        yield
    except EOFError as error:
        raise EndedEarlyError("cli.ended_early", reason=error) from error
    except BrokenPipeError as error:
        raise StdoutGoneError from error


def check_memory_limit() -> None:
    """Raise MachineError where this process may not have the memory that PyTorch alone takes: it would abort."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _PYTORCH:
        raise MachineError("machine.memory_limit", limit=limit >> 10, needed=_PYTORCH >> 10)


def explain(error: Exception) -> UserError | None:
    """Return the one line of an exception that is no fault of this program; None for one that keeps its traceback."""
    if isinstance(error, UserError):
        return error
    if short_of_memory(error):
        return MachineError("machine.cpu_memory")
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        ours = package in ("", _OURS) or package in sys.stdlib_module_names
        return None if ours else MachineError("machine.no_package", name=package)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.filename is None:
            return UserError("cli.stream", reason=reason) if error.errno in _STREAM else None
        return UserError("cli.file", path=error.filename, reason=reason)
    return None
