"""Errors meant for a person: the message is one clear line that names the nearest thing that works.

The command line prints such a message without a traceback and ends with exit code 2.
"""


class UserError(ValueError):
    """Something the user asked for cannot be done as asked."""


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
