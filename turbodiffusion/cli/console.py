"""What goes to standard output and standard error: safe to show on any terminal, in any encoding, with any reader."""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from turbodiffusion.errors import UserError
from turbodiffusion.texts import Text, text

# Control characters (an escape sequence could retitle, clear or rewrite a terminal), what reverses the direction of a
# line, what ends one, and halves of characters that no encoding takes.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class StdoutConsole(Console):
    """Rich's console on standard output. A reader that is gone is a BrokenPipeError; Rich would end the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise what Rich has caught."""
        raise BrokenPipeError


class StderrConsole(Console):
    """Rich's console on standard error: that nobody reads there is no reason to end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


def printable(words: object) -> str:
    """Return a text with control characters and line ends written as escapes: it stays in its line and does nothing."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(words))


def json_safe(line: str) -> str:
    """Return JSON of the same meaning that this standard output can show: escapes where a character could do harm."""

    def escaped(found: re.Match[str]) -> str:
        units = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[k : k + 2].hex()}" for k in range(0, len(units), 2))

    line = _UNSAFE.sub(escaped, line)
    try:
        line.encode(sys.stdout.encoding or "ascii")
        return line
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", escaped, line)


def prepare_streams() -> None:
    """Let a character that an encoding lacks be written as an escape; a stream that was closed swallows its lines."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process's life)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush standard output. Raises OSError, and then nothing more is written there, at the process's end neither."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        raise


def drop_stdout() -> None:
    """Send what is left of standard output nowhere: its reader is gone, or its disk is full."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def print_path(path: Path) -> None:
    """Print a result's path alone on its line, byte for byte as the system has it. Raises OSError."""
    try:
        str(path).encode(sys.stdout.encoding or "ascii")
        print(path)
    except UnicodeEncodeError:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    flush_stdout()


def error_line(message: Text | UserError | str) -> None:
    """Print an error to standard error, in one line."""
    line(StderrConsole(), f"[bold red]{text('cli.error')}[/]", message)


def note_line(console: Console, message: Text | str) -> None:
    """Print a notice, in one line."""
    line(console, f"[yellow]{text('cli.note')}[/]", message)


def line(console: Console, markup: str, words: object = "") -> None:
    """Print markup of ours and words of anyone in one line."""
    with contextlib.suppress(OSError):  # that standard error is gone is no reason to end
        console.print(f"{markup} {escape(printable(words))}".strip(), soft_wrap=True)
