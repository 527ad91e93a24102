"""Ctrl-C and SIGTERM from the first moment on: one line, an exit code, and nothing half-written.

Imports nothing heavy: it stands before the imports of the command line, which take longest.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143


class Terminated(BaseException):
    """The process was asked to end (SIGTERM): what is open closes, as after Ctrl-C."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt and Terminated where SIGINT and SIGTERM come; what the parent has ignored stays ignored.

    Within another `stoppable` nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not _stop
    heard = [each for each in (signal.SIGINT, signal.SIGTERM) if ours and signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, _stop) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop at once where a module is being imported: nothing is being written, and some libraries' own code takes an
    exception then for a fault of its own, or aborts."""
    interrupted = number == signal.SIGINT
    if _importing(frame):
        with suppress(BaseException):
            tell("cli.interrupted" if interrupted else "cli.terminated")
        os._exit(INTERRUPTED if interrupted else TERMINATED)
    if interrupted:
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one does not disturb the end
    raise Terminated


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def tell(code: str) -> None:
    """Write a sentence of the catalogue to standard error, past Python's buffers."""
    from turbodiffusion.texts import text

    os.write(2, f"{text(code)}\n".encode(errors="replace"))
