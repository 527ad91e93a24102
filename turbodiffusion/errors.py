"""Errors meant for a person: the message is one clear line that names the nearest thing that works.

The command line prints such a message without a traceback and ends with exit code 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from turbodiffusion.texts import Text, catalogue


class UserError(ValueError):
    """Something the user asked for cannot be done as asked.

    `UserError("request.prompt_empty", field=...)`: a code of the catalogue (`texts/`) and its parameters; `str` renders
    it in the language of the moment, `text.render("zh")` in another.
    """

    def __init__(self, code: str, **params: Any) -> None:
        # A sentence that has no code yet is its own text.
        self.text = Text(code, params) if code in catalogue("en") else Text("error.internal", {"message": code})
        super().__init__(code, params)

    @property
    def code(self) -> str:
        return self.text.code

    def __str__(self) -> str:
        return str(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry code and parameters to another process."""
        return _rebuild, (type(self), self.args)


def _rebuild(kind: type[UserError], args: tuple[str, dict[str, Any]]) -> UserError:
    return kind(args[0], **args[1])


class RequestError(UserError):
    """A field of a request is out of range, or two fields exclude each other."""


class CheckpointError(UserError):
    """A checkpoint is truncated, foreign, or does not fit the model; the message names the tensor."""


class MissingFilesError(CheckpointError):
    """Weights are not on this machine; the message says which files, how large, from where, and the command."""


class MachineError(UserError):
    """This machine cannot run the request: no GPU, too little memory, a missing package."""


class OutputError(UserError):
    """A result is not a video (non-finite or flat), or it cannot be written; nothing is left under the final name."""


# What PyTorch, numpy, Python and the system's loader say where the address space or the memory of a CPU ends.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "failed to map segment",
    "unable to mmap",
    "std::bad_alloc",
    "can't start new thread",
    "unable to allocate",
)


def short_of_memory(error: BaseException) -> bool:
    """Whether an exception says that this process has no more CPU memory; a GPU's is torch.OutOfMemoryError."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).lower()
    told = isinstance(error, RuntimeError | OSError | ImportError)
    return told and any(words in said for words in _NO_MEMORY)


@contextmanager
def telling_memory() -> Iterator[None]:
    """Turn an exception that says so into the one line that CPU memory is short."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not short_of_memory(error):
            raise
        raise MachineError("machine.cpu_memory") from error
