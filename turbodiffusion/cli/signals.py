"""Ctrl-C and SIGTERM from the first moment on: one line, an exit code, and nothing half-written.

Imports nothing heavy: it stands before the imports of the command line, which take longest.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143


class Terminated(BaseException):
    """The process was asked to end (SIGTERM): what is open closes, as after Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated where SIGTERM comes, once: a second one does not disturb the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(code: str) -> None:
    """Write a sentence of the catalogue to standard error, past Python's buffers."""
    from turbodiffusion.texts import text

    os.write(2, f"{text(code)}\n".encode(errors="replace"))
