"""What ends a command: which exceptions are a user's or a machine's matter, told in one line, and the exit codes."""

import contextlib
from collections.abc import Iterator

from turbodiffusion.errors import MachineError, UserError, short_of_memory

_OURS = "turbodiffusion"


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


def explain(error: Exception) -> UserError | None:
    """Return the one line of an exception that is no fault of this program; None for one that keeps its traceback."""
    if isinstance(error, UserError):
        return error
    if short_of_memory(error):
        return MachineError("machine.cpu_memory")
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != _OURS:
        return MachineError("machine.no_package", name=error.name.split(".")[0])
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.filename is None:
            return UserError("cli.stream", reason=reason)
        return UserError("cli.file", path=error.filename, reason=reason)
    return None
