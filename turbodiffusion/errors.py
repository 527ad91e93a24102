"""Errors meant for a person: the message is one clear line that names the nearest thing that works.

The command line prints such a message without a traceback and ends with exit code 2.
"""

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
