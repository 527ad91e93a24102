"""What can be known to fail about a request before a model is loaded for it: its fields, its image, the mp4's size."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbodiffusion.errors import RequestError
from turbodiffusion.media.image import adaptive_size, keep_picture, load_image
from turbodiffusion.presets import ModelPreset
from turbodiffusion.request import Request, in_memory


def as_request(value: Any) -> Request:
    """Return a request, its image as a file. Raises RequestError, which says what to write, for anything else."""
    if isinstance(value, Request):
        return replace(value, image=keep_picture(value.image)) if in_memory(value.image) else value
    code = "request.plain_text" if isinstance(value, str) else "request.not_request"
    raise RequestError(code, value=repr(value)[:60])


def as_requests(value: Any) -> list[Request]:
    """Return a list of requests; one alone is taken as such a list."""
    if isinstance(value, Request | str) or not isinstance(value, Iterable):
        return [as_request(value)]
    return [as_request(each) for each in value]


def check_request(request: Request, preset: ModelPreset) -> None:
    """Raise a UserError for a request that cannot end in a video of this model, whatever the machine."""
    from turbodiffusion.media.video import check_encoder

    resolved = request.resolve(preset)
    image = None if resolved.image is None else load_image(resolved.image)
    check_encoder(*video_size(resolved, image), preset.fps)


def video_size(resolved: Request, image: NDArray[np.uint8] | None) -> tuple[int, int]:
    """Return width and height of the video of a resolved request, from its image where it follows that one's shape."""
    width, height = resolved.size
    if image is not None and resolved.adaptive_resolution:
        return adaptive_size(image.shape[1], image.shape[0], width * height)
    return width, height
