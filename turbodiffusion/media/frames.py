"""Decoded chunks on a device to frames in memory, RGB and as H.264 takes them, while later chunks are being decoded.

Conversion to 4:2:0 is the device's work: a CPU needs 6 ms for a frame of 832x480, half of what its encoding takes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbodiffusion.errors import OutputError

FLAT = 4 / 127.5  # a video whose darkest and lightest values are nearer than this shows nothing
CHUNKS_IN_FLIGHT = 4  # that a GPU has been given beyond the one that is waited for: as many as the VAE makes at once


# BT.709 (H.273, matrix 1): luma's weights, and blue's and red's distance from it at their most.
LUMA, BLUE, RED = (0.2126, 0.7152, 0.0722), 1.8556, 1.5748


@dataclass(frozen=True)
class _PendingChunk:
    """A chunk that is being copied: its frames in 4:2:0, its smallest and largest value, and what to wait for."""

    planes: Tensor
    range: Tensor  # float32 [2]
    copied: torch.cuda.Event | None

    def wait(self) -> tuple[float, float]:
        if self.copied is not None:
            self.copied.synchronize()
        low, high = self.range.tolist()
        return low, high


def new_frames(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Allocate uint8 [F, H, W, 3] in memory to which `device` copies without help of the CPU."""
    return torch.empty(count, height, width, 3, dtype=torch.uint8, pin_memory=device.type == "cuda")


def copy_to_host(chunks: Iterable[Tensor], frames_FHWC: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Copy chunks [1, 3, n, H', W'] in [-1, 1], cut at the centre, into `frames`; yield each as `to_yuv420` gives it.

    Raises OutputError for values that are not finite, and at the end if all frames together are one flat colour.
    """
    pending: deque[_PendingChunk] = deque()
    seen: list[tuple[float, float]] = []
    first = 0

    def wait() -> NDArray[np.uint8]:
        chunk = pending.popleft()
        seen.append(chunk.wait())
        if not np.isfinite(seen[-1]).all():
            raise OutputError("media.not_finite")
        return chunk.planes.numpy()

    for chunk_BCFHW in chunks:
        last = first + chunk_BCFHW.shape[2]
        pending.append(_send(chunk_BCFHW, frames_FHWC[first:last]))
        first = last
        if len(pending) > (CHUNKS_IN_FLIGHT if chunk_BCFHW.is_cuda else 0):
            yield wait()
    while pending:
        yield wait()
    assert first == len(frames_FHWC), f"{first} frames came, {len(frames_FHWC)} were expected"
    # As pixels: what is beyond -1 and 1 on one side alone is flat too.
    if min(max(high for _, high in seen), 1.0) - max(min(low for low, _ in seen), -1.0) < FLAT:
        raise OutputError("media.flat", colour=str(frames_FHWC[0, 0, 0].tolist()))


def to_yuv420(frames_FHWC: Tensor) -> Tensor:
    """Convert uint8 RGB [F, H, W, 3] to limited-range BT.709 in 4:2:0, uint8 [F, H * 3 / 2, W].

    Luma, then both chroma planes, row by row. An odd last row or column is left out. Chroma is where H.264 has it by
    default: at every second column, and between two rows.
    """
    H, W = (side // 2 * 2 for side in frames_FHWC.shape[1:3])
    red, green, blue = frames_FHWC[:, :H, :W].float().div(255).unbind(-1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    planes = [(16 + 219 * luma).flatten(1)]
    for part, range_ in ((blue, BLUE), (red, RED)):
        rows = (part - luma).unflatten(1, (-1, 2)).mean(2)
        left = torch.cat((rows[..., :1], rows[..., 1:-1:2]), -1)  # of each second column; the first repeats itself
        planes.append((128 + 224 / range_ * (left + 2 * rows[..., ::2] + rows[..., 1::2]) / 4).flatten(1))
    return torch.cat(planes, 1).round().to(torch.uint8).unflatten(1, (-1, W))


def _send(chunk_BCFHW: Tensor, frames_FHWC: Tensor) -> _PendingChunk:
    height, width = frames_FHWC.shape[1:3]
    top, left = (chunk_BCFHW.shape[3] - height) // 2, (chunk_BCFHW.shape[4] - width) // 2
    cut_CFHW = chunk_BCFHW[0, :, :, top : top + height, left : left + width].float()
    range_2 = torch.stack(cut_CFHW.aminmax())  # NaN if any value is
    pixels_FHWC = ((cut_CFHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    frames_FHWC.copy_(pixels_FHWC, non_blocking=True)
    planes = to_yuv420(pixels_FHWC)
    if not chunk_BCFHW.is_cuda:
        return _PendingChunk(planes, range_2, None)
    planes, range_2 = (
        torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in (planes, range_2)
    )
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(chunk_BCFHW.device))
    return _PendingChunk(planes, range_2, copied)
