"""Chunks become frames: cut at the centre, rounded, in their order, on a CPU and on a GPU."""

import pytest
import torch

from turbodiffusion.errors import OutputError
from turbodiffusion.frames import AHEAD, fetch, new_frames

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_land_where_they_belong(device: str) -> None:
    video = torch.rand(1, 3, 9, 6, 8, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    frames = new_frames(9, 4, 6, torch.device(device))
    frames.fill_(7)
    given = []

    def chunks():
        for first, last in ((0, 1), (1, 3), (3, 5), (5, 7), (7, 8), (8, 9)):
            given.append(last)
            yield video[:, :, first:last].to(device)

    came = 0
    for number, rows in enumerate(fetch(chunks(), frames), start=1):
        came += len(rows)
        # A GPU has work beyond the chunk that is waited for, a CPU does one after the other.
        assert len(given) == min(6, number + (AHEAD if device == "cuda" else 0))
    expected = ((video[0, :, :, 1:5, 1:7].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
    assert came == 9 and torch.equal(frames, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "not finite"), (float("-inf"), "not finite"), (0.02, r"flat colour, about \[128, 128, 128\]")],
)
def test_what_is_no_video_is_refused(device: str, value: float, message: str) -> None:
    video = torch.zeros(1, 3, 2, 4, 4, device=device)
    video[0, 1, 1, 2, 2] = value
    with pytest.raises(OutputError, match=message):
        list(fetch(video.split(1, dim=2), new_frames(2, 4, 4, torch.device(device))))
