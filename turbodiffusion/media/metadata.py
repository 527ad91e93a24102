"""The request inside a video: read without numpy, so that `turbodiffusion info` answers at once."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import av

from turbodiffusion.errors import UserError
from turbodiffusion.files import check_ends, check_name

METADATA_TAG = "turbodiffusion"  # one mp4 tag holds the whole dictionary as JSON: other tools keep or drop it as one


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The open container of a video file, with FFmpeg's errors turned into one line."""
    path = check_name(path)
    check_ends(path)
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise UserError("media.no_video", path=path)
            yield container
    except FileNotFoundError:
        raise UserError("media.no_file", path=path) from None
    except (OSError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError("media.not_video", path=path, reason=reason) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The dictionary given to the `Encoder` that made the mp4; UserError for a file that is none of ours."""
    with reading(path) as container:
        text = container.metadata.get(METADATA_TAG)
    if text is None:
        raise UserError("media.no_request", path=path)
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):  # numbers of thousands of digits, thousands of brackets
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError("media.request_damaged", path=path)
    return metadata
