"""What comes back from a pipeline: the video, the request that made it, and what it took."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbodiffusion.request import Request


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
        from turbodiffusion.media import video

        return video.save(self.mp4, folder, self.name)

    def contact_sheet(self, path: str | Path) -> Path:
        """Write a PNG of frames from first to last under the prompt."""
        from turbodiffusion.media import video

        return video.contact_sheet(self.frames, path, title=self.request.prompt, caption=self.name)
