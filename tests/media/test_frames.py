"""Chunks become frames: cut at the centre, rounded, in their order, in RGB and in 4:2:0, on a CPU and on a GPU."""

import av
import numpy as np
import pytest
import torch

from turbodiffusion.errors import OutputError
from turbodiffusion.media.frames import CHUNKS_IN_FLIGHT, copy_to_host, new_frames, to_yuv420

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

    came = []
    for number, planes in enumerate(copy_to_host(chunks(), frames), start=1):
        came.append(torch.from_numpy(planes))
        # A GPU has work beyond the chunk that is waited for, a CPU does one after the other.
        assert len(given) == min(6, number + (CHUNKS_IN_FLIGHT if device == "cuda" else 0))
    expected = ((video[0, :, :, 1:5, 1:7].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
    assert torch.equal(frames, expected) and torch.equal(torch.cat(came), to_yuv420(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "not finite"), (float("-inf"), "not finite"), (0.02, r"flat colour, about \[128, 128, 128\]")],
)
def test_what_is_no_video_raises(device: str, value: float, message: str) -> None:
    video = torch.zeros(1, 3, 2, 4, 4, device=device)
    video[0, 1, 1, 2, 2] = value
    with pytest.raises(OutputError, match=message):
        list(copy_to_host(video.split(1, dim=2), new_frames(2, 4, 4, torch.device(device))))


@pytest.mark.parametrize("device", DEVICES)
def test_values_beyond_white_alone_are_flat(device: str) -> None:
    video = torch.rand(1, 3, 2, 4, 4, device=device) * 50 + 2
    with pytest.raises(OutputError, match=r"flat colour, about \[255, 255, 255\]"):
        list(copy_to_host(video.split(1, dim=2), new_frames(2, 4, 4, torch.device(device))))


def test_420_is_that_of_another_converter() -> None:
    """FFmpeg's, on a smooth picture of equal columns: it puts chroma between two of them."""
    y = torch.linspace(0, 3, 48)
    smooth = torch.stack([y.sin(), (2 * y).cos(), (y - 1).sin()], -1)[:, None].expand(48, 64, 3)
    frame = ((smooth + 1) * 127.5).round().byte()
    picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
    theirs = picture.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation="BICUBIC").to_ndarray()
    off = to_yuv420(frame[None])[0].numpy().astype(np.int16) - theirs
    assert np.abs(off).max() <= 1


def test_chroma_stands_at_every_second_column() -> None:
    blue = torch.arange(0, 256, 4).byte()
    frame = torch.zeros(1, 2, 64, 3, dtype=torch.uint8)
    frame[..., 2] = blue
    plane = to_yuv420(frame)[0].flatten()[128:160].float()
    exact = 128 + 224 / 1.8556 * (1 - 0.0722) * blue[::2] / 255
    assert (plane - exact)[1:].abs().max() <= 0.51  # of a ramp the filter keeps the value; the edge repeats itself


def test_420_leaves_out_what_is_odd() -> None:
    frames = torch.randint(256, (2, 7, 9, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(to_yuv420(frames), to_yuv420(frames[:, :6, :8])) and to_yuv420(frames).shape == (2, 9, 8)
