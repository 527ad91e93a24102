"""Decoded chunks on a device to frames in memory, while the chunks after them are being decoded."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbodiffusion.errors import OutputError

FLAT = 4 / 127.5  # a video whose darkest and lightest values are nearer than this shows nothing
AHEAD = 4  # chunks that a GPU has been given beyond the one that is waited for: as many as the VAE makes at once


@dataclass(frozen=True)
class _Coming:
    """A chunk on its way: its frames' places, its smallest and largest value, and what to wait for."""

    rows: slice
    range: Tensor  # float32 [2], in memory
    there: torch.cuda.Event | None

    def arrive(self) -> tuple[float, float]:
        if self.there is not None:
            self.there.synchronize()
        low, high = self.range.tolist()
        return low, high


def new_frames(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """uint8 [F, H, W, 3] in memory to which `device` copies without help of the CPU."""
    return torch.empty(count, height, width, 3, dtype=torch.uint8, pin_memory=device.type == "cuda")


def fetch(chunks: Iterable[Tensor], frames_FHWC: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Write chunks [1, 3, n, H', W'] in [-1, 1], cut at the centre, into `frames`; yields each chunk's rows when there.

    Raises OutputError for values that are not finite, and at the end if all frames together are one flat colour.
    """
    coming: deque[_Coming] = deque()
    seen: list[tuple[float, float]] = []
    frames, first = frames_FHWC.numpy(), 0

    def wait() -> NDArray[np.uint8]:
        chunk = coming.popleft()
        seen.append(chunk.arrive())
        if not np.isfinite(seen[-1]).all():
            raise OutputError(
                "the VAE gave values that are not finite: its weights are damaged or too coarse in this dtype"
            )
        return frames[chunk.rows]

    for chunk_BCFHW in chunks:
        rows = slice(first, first + chunk_BCFHW.shape[2])
        coming.append(_send(chunk_BCFHW, frames_FHWC[rows], rows))
        first = rows.stop
        if len(coming) > (AHEAD if chunk_BCFHW.is_cuda else 0):
            yield wait()
    while coming:
        yield wait()
    assert first == len(frames), f"{first} frames came, {len(frames)} were expected"
    if max(high for _, high in seen) - min(low for low, _ in seen) < FLAT:
        raise OutputError(
            f"every frame is one flat colour, about {frames[0, 0, 0].tolist()}: the weights are damaged or do not "
            "belong together"
        )


def _send(chunk_BCFHW: Tensor, frames_FHWC: Tensor, rows: slice) -> _Coming:
    height, width = frames_FHWC.shape[1:3]
    top, left = (chunk_BCFHW.shape[3] - height) // 2, (chunk_BCFHW.shape[4] - width) // 2
    cut_CFHW = chunk_BCFHW[0, :, :, top : top + height, left : left + width].float()
    range_2 = torch.stack(cut_CFHW.aminmax())  # NaN if any value is
    pixels_FHWC = ((cut_CFHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    frames_FHWC.copy_(pixels_FHWC, non_blocking=True)
    if not chunk_BCFHW.is_cuda:
        return _Coming(rows, range_2, None)
    in_memory = torch.empty(2, pin_memory=True).copy_(range_2, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(chunk_BCFHW.device))
    return _Coming(rows, in_memory, there)
