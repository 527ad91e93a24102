"""What a user may ask for (`Request`, checked once and used by every front end), what is reported while it is made
(`Progress`), and what comes back (`Result`).

A resolved request is complete: it is stored inside the video that it made and makes the same one again on the same
device.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from turbodiffusion.errors import RequestError

_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Request:
    """One video to make. None and "auto" mean the model's own default; seed 0 draws one.

    Building one checks the types of its fields, `resolve` all the rest; both raise RequestError, one clear line.
    """

    prompt: str
    negative_prompt: str | None = None  # the undistilled teacher's only
    image: str | Path | None = None  # path of the first frame, for image to video
    model: str | None = None  # None: the model that the pipeline holds
    resolution: str | None = None  # a name that the model knows ("480p") or "WxH"
    aspect_ratio: str | None = None  # of a named resolution
    num_frames: int | None = None
    num_steps: int | None = None
    seed: int = 0
    sigma_max: float | None = None  # distilled models' first noise level
    guidance: float | None = None  # the teacher's
    shift: float | None = None  # of the teacher's times
    attention_type: str = "auto"
    sla_topk: float | None = None
    quant_linear: str = "auto"
    boundary: float | None = None  # flow time at which the low-noise expert takes over
    ode: bool = False
    adaptive_resolution: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.image, Path):
            object.__setattr__(self, "image", str(self.image))
        for name, hint in get_type_hints(type(self)).items():
            kinds, value = get_args(hint) or (hint,), getattr(self, name)
            if float in kinds and type(value) is int:
                object.__setattr__(self, name, float(value))
            elif type(value) not in kinds:
                raise RequestError(f"{name}: {_KIND_NAMES[kinds[0]]} is needed, not {value!r}")
            elif isinstance(value, float) and not math.isfinite(value):
                raise RequestError(f"{name}: a finite number is needed, not {value}")

    def to_json(self) -> str:
        """Every field, in one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> "Request":
        """Back from `to_json`, or from what a JSON parser made of it. RequestError names unknown fields."""
        try:
            values = text if isinstance(text, Mapping) else json.loads(text)
        except ValueError as error:
            raise RequestError(f"not a request in JSON: {error}") from None
        if not isinstance(values, Mapping):
            raise RequestError(f"not a request in JSON: an object is needed, not {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise RequestError(f"unknown field {', '.join(unknown)}; a request has {', '.join(known)}")
        if "prompt" not in values:
            raise RequestError("prompt is missing")
        return cls(**values)


@dataclass(frozen=True)
class Progress:
    """`step` of `total` steps of a stage (load, text, image, diffusion, decode, encode) are done.

    seconds_left: of this stage, measured from its own steps; None until the first is done.
    """

    stage: str
    step: int
    total: int
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Result:
    """A finished video: the resolved request with the drawn seed, the frames, the file, and what it took."""

    request: Request
    frames: NDArray[np.uint8]  # [F, H, W, 3], sRGB
    mp4: bytes
    name: str  # kind, seed, model and time: t2v_42_Wan2_1_1_3B_20251224_153000.mp4
    seconds: dict[str, float]  # by stage
    notices: tuple[str, ...] = ()  # what was asked for and does not apply, or a prompt that the model does not know

    # PyAV is imported where files are written: asking for a video does not need it.

    def save(self, folder: str | Path = "outputs") -> Path:
        """Write the mp4 as `name` (or name_2, ...) in the folder. OutputError: nothing is left under that name."""
        from turbodiffusion import video

        return video.save(self.mp4, folder, self.name)

    def contact_sheet(self, path: str | Path) -> Path:
        """Write a PNG of frames from first to last under the prompt."""
        from turbodiffusion import video

        return video.contact_sheet(self.frames, path, title=self.request.prompt, caption=self.name)
