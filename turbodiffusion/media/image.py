"""Pictures in: any common image file as 8-bit sRGB, fitted to a video's size; sizes that follow a picture's shape."""

import contextlib
import hashlib
import io
import math
import os
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from turbodiffusion.errors import UserError
from turbodiffusion.files import cache_folder, read_file, write_file
from turbodiffusion.request import SIDES

MAX_PIXELS = 89_000_000  # a little under where Pillow begins to warn of decompression bombs; 11000 x 8000, say
MAX_BYTES = 1 << 30  # of a file: more than MAX_PIXELS of 16 bits and four channels, uncompressed
_KINDS = "PNG, JPEG, WebP, BMP, TIFF, GIF"
_HEIF = ("heic", "heix", "heim", "heis", "hevc", "mif1", "msf1", "avif", "avis")  # brands of a file's first box
_WORDS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")  # of a PNG: what its pixels do without


def load_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture as uint8 [H, W, 3] sRGB, upright as its EXIF says.

    Transparency is laid on white. 16-bit values are scaled by 65535; floats in [0, 1] by 255, floats up to 255 taken
    as they are. An embedded colour profile (wide-gamut phones, CMYK scans) is converted to sRGB. Only the pixels
    decide: what is wrong with texts, profile or EXIF beside them is no fault of a picture.
    UserError for a missing, broken, truncated, animated, several-page or more than 89-megapixel file.
    """
    try:
        data = read_file(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError("media.no_image", path=path) from None
    except IsADirectoryError:
        raise UserError("media.image_folder", path=path) from None
    except OSError as error:
        raise UserError("media.image_unreadable", path=path, reason=error.strerror) from error
    return _decoded(data, path)


def _decoded(data: bytes, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    try:
        return np.array(_to_srgb(_upright(_opened(data, path))))
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        bare = _without_words(data)
        if bare is not None:
            return _decoded(bare, path)
        raise UserError("media.image_cut", path=path, reason=str(error)) from error


def _opened(data: bytes, path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file's bytes, not yet decoded. Raises UserError for what is none, too large or several."""
    _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError("media.image_large", path=path, megapixels=MAX_PIXELS // 1_000_000) from None
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12].decode("latin-1") in _HEIF:
            raise UserError("media.heif", path=path, kind=data[8:12].decode("latin-1").upper()) from None
        raise UserError("media.not_image", path=path, kinds=_KINDS) from None
    if picture.width * picture.height > MAX_PIXELS:
        raise UserError("media.image_large", path=path, megapixels=MAX_PIXELS // 1_000_000)
    # MPO is how phones keep a second view or a preview inside an ordinary JPEG: its first picture is the photo
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format not in ("MPO", "HEIF"):
        raise UserError("media.many_pictures", path=path, count=count)
    return picture


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, the format of phones, where pillow-heif is installed; AVIF is Pillow's own since 11.3."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF: no viewer would turn it either
        return picture


def _without_words(data: bytes) -> bytes | None:
    """A PNG without its texts, profile and EXIF, which Pillow refuses when they are large; None: it has none."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, at, left_out = [data[:8]], 8, False
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _WORDS:
            left_out = True
        else:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) if left_out else None


def keep_picture(picture: Any) -> str:
    """Write a picture in memory, of PIL's or an array, into the cache as a PNG, and return its path.

    An array is [H, W, 3], [H, W, 4] or [H, W], uint8 or floats in [0, 1]. Raises UserError for another. The name is
    a digest of the pixels: a request with this path makes the same video again.
    """
    if not isinstance(picture, Image.Image):
        picture = _of_array(np.asarray(picture))
    file = io.BytesIO()
    pixels = _to_srgb(_upright(picture.copy()))
    pixels.info.clear()
    pixels.save(file, format="PNG", compress_level=1)
    digest = hashlib.sha256(str(pixels.size).encode() + pixels.tobytes()).hexdigest()[:32]
    path = cache_folder() / "images" / f"{digest}.png"
    if not path.is_file():
        write_file(path, file.getvalue())
    return str(path)


def _of_array(array: NDArray[Any]) -> Image.Image:
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not good or 0 in array.shape or array.dtype.kind not in "fu" or array.dtype.kind + str(array.itemsize) == "u8":
        raise UserError("media.array", shape=list(array.shape), dtype=str(array.dtype))
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise UserError("media.image_large", path="image", megapixels=MAX_PIXELS // 1_000_000)
    if array.dtype != np.uint8:
        try:
            array = _to_8_bits(array)
        except ValueError as error:
            raise UserError("media.image_cut", path="image", reason=str(error)) from None
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Make an RGB picture of 8 bits from any of Pillow's modes."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(picture))).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        alpha = rgba.getchannel("A")
        colour = _through_profile(rgba.convert("RGB"), picture.info.get("icc_profile"))
        return Image.composite(colour, Image.new("RGB", picture.size, "white"), alpha)
    if picture.mode == "P":
        picture = picture.convert("RGB")
    return _through_profile(picture, picture.info.get("icc_profile")).convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale grey integers (range 65535) or floats (range 1, or 255 where they pass 1) to 8 bits."""
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    top = float(values.max())
    if values.dtype.kind == "f":
        scale = 255.0 if top <= 1 else 255.0 / max(top, 255.0)
    else:
        scale = 255.0 / max(top, 65535.0)
    return np.clip(np.rint(values.astype(np.float64) * scale), 0, 255).astype(np.uint8)


def _through_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert colours to sRGB by the embedded profile; one that is broken or of another mode counts as none.

    Viewers do the same with such a profile, so the video shows what its maker saw.
    """
    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        result = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture
    assert result is not None  # only an in-place conversion returns nothing
    return result


def fit(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Scale uint8 [H, W, 3] to cover width x height (Lanczos) and cut what hangs over at the centre."""
    picture = ImageOps.fit(Image.fromarray(image), (width, height), method=Image.Resampling.LANCZOS)
    return np.array(picture)


def adaptive_size(image_w: int, image_h: int, area: int, sides: tuple[int, int] = SIDES) -> tuple[int, int]:
    """Return the (width, height), multiples of 16, nearest to a picture's shape within `area` pixels and the limits.

    sides: the limits that a typed size has. A picture that is narrower than they allow is cut.
    """
    low, high = sides
    shape = image_w / image_h
    ideal_w, ideal_h = min((area * shape) ** 0.5, high * shape), min((area / shape) ** 0.5, high / shape)
    sizes = []
    for w in (int(ideal_w / 16) * 16, int(ideal_w / 16) * 16 + 16):
        w = min(max(w, low), high, area // low // 16 * 16)
        for h in (int(ideal_h / 16) * 16, int(ideal_h / 16) * 16 + 16):
            sizes.append((w, min(max(h, low), high, area // w // 16 * 16)))
    # the logarithm of the ratio of shapes treats too wide and too tall alike
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] * image_h / image_w)), -size[0] * size[1]))


def share_seen(image: NDArray[np.uint8], width: int, height: int) -> float:
    """Return the share of a picture that `fit` leaves in a video of that size."""
    shapes = image.shape[1] / image.shape[0], width / height
    return min(shapes) / max(shapes)
