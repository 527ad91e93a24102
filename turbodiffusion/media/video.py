"""Videos out and in: H.264 in mp4 with the request inside, file names, safe writing, contact sheets, small animations.

An mp4 is built in memory, so nothing touches the disk before the video is whole, and `write_file` gives it its name in
one step: a name under the output folder is always a whole video.

H.264 comes from libx264 through PyAV: 4:2:0, 8 bit, BT.709 matrix, primaries and transfer, limited range, all tagged.
A GPU decodes 81 frames of 832x480 in half a second: `superfast` keeps up with it on a server's cores where `veryfast`
does not, at the same PSNR (within 0.5 dB on our clips) for files larger by a quarter to a half. The same frames must
give the same bytes on every machine: eight threads always, not one a core, because x264's output depends on their
number; and `cpu-independent`, without which `veryfast` gave one of nine files for the same 24 frames, run after run.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from turbodiffusion.errors import MachineError, OutputError, UserError
from turbodiffusion.files import write_file
from turbodiffusion.media.metadata import METADATA_TAG, reading

Frames = NDArray[np.uint8]  # [F, H, W, 3], sRGB

FPS = 16
_X264 = {"preset": "superfast", "crf": "17", "threads": "8", "x264-params": "cpu-independent=1"}
_BT709 = 1  # the number of BT.709 in H.273's tables of primaries, transfers and matrices alike
_LIMITED_RANGE = 1


# ---- mp4 ----


class _Reader:
    """A second, read-only position in a BytesIO: the muxer reads back what it wrote to move the index to the front."""

    def __init__(self, buffer: io.BytesIO):
        self._buffer, self._at = buffer, 0

    def read(self, size: int) -> bytes:
        with self._buffer.getbuffer() as view:
            data = bytes(view[self._at : self._at + size])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._buffer.getbuffer().nbytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        pass


class Encoder:
    """Encode frames in 4:2:0 to mp4 bytes, chunk by chunk.

    The index comes first (faststart): players start while loading.

    H.264's 4:2:0 needs even sides: an odd width or height loses its last column or row in the file, nothing else
    (4:4:4 would keep it, but browsers and phones do not play that). `metadata.read_metadata` reads `metadata` back.
    The same frames and metadata give the same bytes.
    """

    def __init__(self, width: int, height: int, fps: float, metadata: Mapping[str, str]):
        assert width >= 2 and height >= 2, (width, height)
        self._buffer = io.BytesIO()
        self._mp4: Any = av.open(
            self._buffer,
            "w",
            format="mp4",
            options={"movflags": "+faststart+use_metadata_tags", "fflags": "bitexact"},
            io_open=lambda url, flags, options: _Reader(self._buffer),
        )
        self._mp4.metadata[METADATA_TAG] = json.dumps(dict(metadata))
        rate = Fraction(fps).limit_denominator(1001)  # 1001 keeps 24000/1001 and its kin
        try:
            self._stream: Any = self._mp4.add_stream("libx264", rate=rate, options=dict(_X264))
        except (ValueError, av.FFmpegError) as error:
            raise MachineError("media.no_encoder") from error
        self._stream.width, self._stream.height = width & ~1, height & ~1
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        self._count = 0
        try:
            context.open()
        except (OSError, av.FFmpegError) as error:
            raise OutputError("media.encoder", size=f"{width}x{height}", reason=error.strerror or error) from error

    def add(self, planes: Frames) -> None:
        """Encode frames as `frames.to_yuv420` gives them, uint8 [F, H * 3 / 2, W] with the even part of H and W."""
        size = self._stream.height * 3 // 2, self._stream.width
        assert planes.dtype == np.uint8 and planes.shape[1:] == size, (planes.dtype, planes.shape)
        for picture in planes:
            self._mux(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
            self._count += 1

    def finish(self) -> bytes:
        """Flush the encoder and return the whole file; the encoder is used up."""
        assert self._count > 0, "a video needs a frame"
        self._mux(None)
        self._mp4.close()
        return self._buffer.getvalue()

    def _mux(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            self._mp4.mux(packet)


def check_encoder(width: int, height: int, fps: float) -> None:
    """Raise OutputError or MachineError where a video of that size cannot become an mp4 here."""
    encoder = Encoder(width, height, fps, {})
    encoder.add(np.zeros((1, (height & ~1) * 3 // 2, width & ~1), np.uint8))
    encoder.finish()


def read_frames(path: str | os.PathLike[str]) -> Frames:
    """All frames of a video, uint8 [F, H, W, 3]. FFmpeg's conversion truncates: up to 2 of 255 darker than encoded."""
    with reading(path) as container:
        frames = [_to_rgb(frame) for frame in container.decode(video=0)]
    if not frames:
        raise UserError("media.no_frames", path=path)
    return np.stack(frames)


def _to_rgb(frame: Any) -> NDArray[np.uint8]:
    """Convert to RGB [H, W, 3]. PyAV before 17 heeds a frame's matrix only where another is asked of the RGB result."""
    matrix = {"src_colorspace": "ITU709", "dst_colorspace": "ITU601"} if frame.colorspace == _BT709 else {}
    return frame.reformat(format="rgb24", **matrix).to_ndarray()


# ---- names and files ----


def output_name(task: str, seed: int, model_file_name: str, when: datetime) -> str:
    """Name a video: `t2v_42_Wan2_1_1_3B_20251224_153000.mp4` for ("t2v", 42, "Wan2.1-1.3B", ...)."""
    model = re.sub(r"\W+", "_", model_file_name).strip("_")[:60]  # a name may have 255 bytes; a CJK character takes 3
    return f"{task}_{seed}_{model}_{when:%Y%m%d_%H%M%S}.mp4"


def save(data: bytes, folder: str | os.PathLike[str], name: str) -> Path:
    """Write `data` as folder/name, or name_2, name_3, ... where that exists; return the path that was written.

    Creates the folder. OutputError (full disk, read-only folder, the folder is a file) leaves nothing behind.
    """
    return write_file(Path(folder) / name, data, fresh=True)


# ---- pictures of a video ----

# The first found that has a text's characters draws it: Pillow looks a file name up in the system's font folders.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "simhei.ttf",
)
_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_INK, _GREY, _PAPER = (24, 26, 30), (110, 116, 126), (250, 250, 248)


def contact_sheet(
    frames: Frames,
    path: str | os.PathLike[str],
    *,
    columns: int = 4,
    rows: int = 3,
    title: str = "",
    caption: str = "",
    fps: float = FPS,
) -> Path:
    """Write a PNG of evenly spaced frames, first and last included, with their times under `title` and `caption`.

    A text is drawn in a font of this machine that has its characters; characters that no font here has are left out.
    """
    assert frames.ndim == 4 and len(frames) > 0, frames.shape
    width, height = frames.shape[2], frames.shape[1]
    scale = (320 * 180 / (width * height)) ** 0.5  # every shape of video gets cells of one area
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    picks = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(columns * rows, len(frames)))})
    columns = min(columns, len(picks))
    margin, gap, label = 24, 12, 24
    sheet_w = max(columns * cell_w + (columns - 1) * gap, 480) + 2 * margin
    lines = [(line, 20, _INK) for line in _wrapped(title, 20, sheet_w - 2 * margin, most=3)]
    lines += [(line, 14, _GREY) for line in _wrapped(caption, 14, sheet_w - 2 * margin, most=2)]
    top = margin + sum(size + 10 for _, size, _ in lines) + (8 if lines else 0)
    sheet_h = top + -(-len(picks) // columns) * (cell_h + label) + margin - 6
    sheet = Image.new("RGB", (sheet_w, sheet_h), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = margin
    for line, size, ink in lines:
        draw.text((margin, y), line, fill=ink, font=_font_for(line, size))
        y += size + 10
    for place, index in enumerate(picks):
        x, y = margin + place % columns * (cell_w + gap), top + place // columns * (cell_h + label)
        sheet.paste(Image.fromarray(frames[index]).resize((cell_w, cell_h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + cell_h + 4), f"{index / fps:.2f} s", fill=_GREY, font=_font_for("0", 12))
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return write_file(path, file.getvalue())


def animated(frames: Frames, path: str | os.PathLike[str], *, width: int | None = None, fps: float = FPS) -> Path:
    """Write a looping GIF or WebP (by the path's ending), `width` pixels wide, for a page that plays no mp4."""
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("gif", "webp"):
        raise UserError("media.animation", path=path)
    pictures = [Image.fromarray(frame) for frame in frames]
    if width is not None:
        size = (width, max(1, round(width * frames.shape[1] / frames.shape[2])))
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    if kind == "gif":
        # one palette from frames across the clip: a palette a frame flickers and costs 768 bytes each
        sample = np.concatenate([np.asarray(picture) for picture in pictures[:: max(1, len(pictures) // 8)]])
        palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 80, "method": 6} if kind == "webp" else {"optimize": False}
    pictures[0].save(
        file, format=kind, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **options
    )
    return write_file(path, file.getvalue())


@cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, ...]:
    """Load the fonts of this machine among `_FONTS`, and Pillow's own Latin one last."""
    found: list[Any] = []
    for name in _FONTS:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return (*found, ImageFont.load_default(size))


@cache
def _has(font: Any, character: str) -> bool:
    """Say whether a font has a character: what it lacks is drawn as the same box as a code point that nothing has."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def _font_for(text: str, size: int) -> Any:
    """Choose the font that has the most of a text's characters, the earliest of equals."""
    return max(_fonts(size), key=lambda font: sum(_has(font, character) for character in text))


def _wrapped(text: str, size: int, width: int, most: int) -> Sequence[str]:
    """Wrap the drawable part of a text in at most `most` lines of at most `width` pixels, cut with an ellipsis."""
    font = _font_for(text, size)
    text = " ".join("".join(character for character in text if _has(font, character)).split())
    lines = [""]
    for word in re.findall(rf"[{_CJK}]|[^\s{_CJK}]+\s*|\s+", text):
        pieces = [word] if font.getlength(word.rstrip()) <= width else list(word)
        for piece in pieces:
            if font.getlength((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > most:
        last = lines[most - 1]
        while font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "..."]
    return lines
