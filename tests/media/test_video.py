"""mp4 in and out: colours and tags, the request inside, names, safe writing, sheets and animations."""

import io
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from turbodiffusion.errors import UserError
from turbodiffusion.media import video
from turbodiffusion.media.frames import to_yuv420
from turbodiffusion.media.metadata import METADATA_TAG, read_metadata

REQUEST = {"request": '{"prompt": "一只红色的气球 🎈 \\"rises\\"\\nslowly", "seed": 42}'}


def moving(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture that moves: uint8 [F, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    clip = [
        np.stack([128 + 90 * np.sin((x + 3 * i) / 20), 4 * y % 256 / 2 + 60, 0 * x + 90], -1) for i in range(frames)
    ]
    return np.stack(clip).clip(0, 255).astype(np.uint8)


def encoded(frames: np.ndarray, fps: float = 16, metadata: dict[str, str] = REQUEST, chunk: int = 4) -> bytes:
    encoder = video.Encoder(frames.shape[2], frames.shape[1], fps, metadata)
    for start in range(0, len(frames), chunk):
        encoder.add(to_yuv420(torch.from_numpy(frames[start : start + chunk])).numpy())
    return encoder.finish()


def test_frames_survive_the_round_trip(tmp_path):
    frames = moving()
    (tmp_path / "a.mp4").write_bytes(encoded(frames))
    back = video.read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape and back.dtype == np.uint8
    # CRF 17 of a smooth picture and chroma at half size: under 4 of 255 on average; a wrong matrix is 10 and more off
    assert np.abs(back.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255), (0, 0, 0)])
def test_stored_values_are_those_of_bt709(colour):
    data = encoded(np.full((2, 32, 32, 3), colour, np.uint8))
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    planes = [int(np.frombuffer(plane, np.uint8)[0]) for plane in frame.planes]
    red, green, blue = np.array(colour) / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # H.273, matrix 1
    exact = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    assert np.abs(np.subtract(planes, exact)).max() <= 1  # rounding, and a flat block's quantization
    assert tags == (1, 1, 1, 1)
    assert frame.format.name == "yuv420p"


def test_index_comes_before_the_pictures_and_the_rate_is_kept():
    data = encoded(moving(), fps=24000 / 1001)
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.frames == 9
        assert float(stream.average_rate) == pytest.approx(24000 / 1001, rel=1e-6)


def test_same_frames_give_the_same_bytes_however_they_are_chunked():
    assert encoded(moving(), chunk=1) == encoded(moving(), chunk=4)


def test_a_video_of_real_size_gives_the_same_bytes_every_time():
    """Without x264's cpu-independent, 8 of 10 encodings of these frames differed."""
    generator = np.random.default_rng(0)
    coarse = generator.normal(128, 6, (16, 60, 104, 3))
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2).clip(0, 255).astype(np.uint8)
    assert len({encoded(frames) for _ in range(5)}) == 1


def test_an_odd_side_loses_one_line_in_the_file_only(tmp_path):
    frames = moving(height=49, width=63)
    (tmp_path / "a.mp4").write_bytes(encoded(frames))
    back = video.read_frames(tmp_path / "a.mp4")
    assert back.shape == (9, 48, 62, 3)
    assert np.abs(back.astype(int) - frames[:, :48, :62]).mean() < 4  # as above: cut, not scaled


def test_metadata_comes_back_as_given(tmp_path):
    metadata = {**REQUEST, "odd": "a=b; \x01 \ud800"}  # a lone surrogate is what a broken terminal hands over
    (tmp_path / "a.mp4").write_bytes(encoded(moving(), metadata=metadata))
    assert read_metadata(tmp_path / "a.mp4") == metadata


def foreign_mp4(path: Path, tag: str | None) -> Path:
    with av.open(path, "w", options={"movflags": "use_metadata_tags"}) as container:
        if tag is not None:
            container.metadata[METADATA_TAG] = tag
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 32
        for frame in np.zeros((2, 32, 32, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_files_of_others_get_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(encoded(moving())[:600])
    (tmp_path / "empty.mp4").write_bytes(b"")
    cases = {
        foreign_mp4(tmp_path / "foreign.mp4", None): "another program",
        foreign_mp4(tmp_path / "damaged.mp4", '{"request": '): "damaged",
        foreign_mp4(tmp_path / "list.mp4", "[1]"): "damaged",
        foreign_mp4(tmp_path / "number.mp4", '{"request": 1}'): "damaged",
        foreign_mp4(tmp_path / "digits.mp4", '{"request": ' + "9" * 5000 + "}"): "damaged",
        foreign_mp4(tmp_path / "nest.mp4", '{"request": ' + "[" * 60_000): "damaged",
        Path("/dev/zero"): "may never end",
        Path("https://example.org/a.mp4"): "download it first",
        tmp_path / "text.mp4": "cannot be read as a video",
        tmp_path / "cut.mp4": "cannot be read as a video",
        tmp_path / "empty.mp4": "cannot be read as a video",
        tmp_path / "none.mp4": "no file",
        tmp_path: "cannot be read as a video",
    }
    for path, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            read_metadata(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read as a video"):
        video.read_frames(tmp_path / "cut.mp4")


def test_names():
    when = datetime(2025, 12, 24, 15, 30)
    assert video.output_name("t2v", 42, "Wan2.1-1.3B", when) == "t2v_42_Wan2_1_1_3B_20251224_153000.mp4"
    assert video.output_name("i2v", 7, "../évil name/", when) == "i2v_7_évil_name_20251224_153000.mp4"
    assert len(video.output_name("t2v", 2**32 - 1, "模" * 300, when).encode()) < 255


def test_save_makes_the_folder_and_never_overwrites(tmp_path):
    names = [video.save(bytes([i]), tmp_path / "a" / "b", "v.mp4") for i in range(3)]
    assert [path.name for path in names] == ["v.mp4", "v_2.mp4", "v_3.mp4"]
    assert [path.read_bytes() for path in names] == [b"\0", b"\1", b"\2"]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["v.mp4", "v_2.mp4", "v_3.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert names[0].stat().st_mode & 0o777 == 0o666 & ~umask  # readable like any other file, not private


def test_save_where_the_disk_has_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")  # what vfat answers

    monkeypatch.setattr(os, "link", no_links)
    names = [video.save(bytes([i]), tmp_path, "v.mp4") for i in range(3)]
    assert [path.name for path in names] == ["v.mp4", "v_2.mp4", "v_3.mp4"]
    assert len(list(tmp_path.iterdir())) == 3


SAVE = "import sys; from turbodiffusion.media import video; video.save(b'x' * 2_000_000, sys.argv[1], 'v.mp4')"


def test_file_that_does_not_fit_leaves_nothing(tmp_path):
    # the kernel refuses to let this process write files over 1 MB: the write fails half-way, as on a full disk
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); " + SAVE
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "OutputError" in done.stderr and "the disk is full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet(tmp_path):
    path = video.contact_sheet(moving(81), tmp_path / "s" / "sheet.png", title="A red balloon rises", caption="seed 42")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height * 0.9
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # twelve pictures: columns of the sheet's middle row of cells that carry the clip's constant blue of 90
    inside = (np.abs(pixels[..., 2] - 90) < 3).mean()
    assert 0.5 < inside < 0.95


def test_contact_sheet_of_one_tall_frame(tmp_path):
    path = video.contact_sheet(moving(1, 128, 64), tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.height > 300


def test_text_without_a_font_is_left_out_not_boxed():
    size = 20
    unknown = "\U0010fffd"  # a private code point that no font draws
    assert video._wrapped(f"ab{unknown}cd", size, 400, most=2) == ["abcd"]
    assert video._wrapped(unknown * 5, size, 400, most=2) == []
    font = video._font_for("balloon", size)
    lines = video._wrapped("a red balloon rises over the long grey sea " * 9, size, 300, most=2)
    assert len(lines) == 2 and lines[1].endswith("...")
    assert all(font.getlength(line) <= 300 for line in lines)
    assert len(video._wrapped("x" * 200, size, 300, most=9)) > 1  # one endless word is broken


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animation(tmp_path, kind):
    path = video.animated(moving(), tmp_path / f"a.{kind}", width=32)
    with Image.open(path) as picture:
        assert (picture.size, picture.n_frames, picture.info["loop"]) == ((32, 24), 9, 0)
    with pytest.raises(UserError, match=r"\.gif or a \.webp"):
        video.animated(moving(), tmp_path / "a.avi")
