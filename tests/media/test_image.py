"""Every common kind of picture in, one clear line for the rest; fitting; sizes that follow a picture's shape."""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from turbodiffusion.errors import UserError
from turbodiffusion.media.image import MAX_PIXELS, adaptive_size, fit, load_image

COLOUR = (200, 100, 50)


def picture() -> Image.Image:
    """40 wide, 24 high: the left half in one colour, the right half black."""
    image = Image.new("RGB", (40, 24))
    image.paste(COLOUR, (0, 0, 20, 24))
    return image


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff", "gif", "ppm"])
def test_common_kinds(tmp_path, ending):
    picture().save(tmp_path / f"a.{ending}")
    pixels = load_image(tmp_path / f"a.{ending}")
    assert pixels.shape == (24, 40, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    # JPEG and WebP are lossy: a flat patch comes back within a few steps
    assert np.abs(pixels[4:20, 4:16].astype(int) - COLOUR).max() <= 6
    assert pixels[4:20, 26:36].max() <= 6


def test_exif_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "the camera was turned": show it rotated by 90 degrees clockwise
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = load_image(tmp_path / "a.jpg")
    assert pixels.shape == (40, 24, 3)
    assert np.abs(pixels[4:16, 4:20].astype(int) - COLOUR).max() <= 6  # the left half is now on top


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.new("L", rgba.size, 255))
    rgba.paste((9, 9, 9, 0), (20, 0, 40, 24))
    if mode == "P":
        rgba.quantize(8).save(tmp_path / "a.png")
    else:
        rgba.convert(mode if mode != "PA" else "LA").save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png")
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    expected = (grey,) * 3 if mode in ("LA", "PA") else COLOUR
    assert np.abs(pixels[2:22, 2:18].astype(int) - expected).max() <= 2  # rounding, and the palette's choice
    assert (pixels[2:22, 22:38] == 255).all()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[[127, 127, 127]] * 8] * 8


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path, ending):
    values = np.array([[0, 257, 32768, 65535]] * 4, np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert load_image(tmp_path / f"a.{ending}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_rgb_png(tmp_path):
    row = b"\0" + struct.pack(">3H", 65535, 32768, 0) * 5

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", 5, 3, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 3)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert load_image(tmp_path / "a.png")[1, 2].tolist() == [255, 128, 0]


def test_float_tiff(tmp_path):
    for top, expected in ((1.0, [0, 128, 255]), (255.0, [0, 128, 255])):
        Image.fromarray(np.array([[0, 0.5 * top, top]], np.float32)).save(tmp_path / "a.tiff")
        assert (
            np.abs(load_image(tmp_path / "a.tiff")[0, :, 0].astype(int) - expected).max() <= 1
        )  # 127.5 rounds either way
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="not finite"):
        load_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes(tmp_path, mode):
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    white.save(tmp_path / "a.tiff")
    assert (load_image(tmp_path / "a.tiff") >= 254).all()


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "a.jpg")[8, 8].astype(int) - (255, 0, 0)).max() <= 4  # JPEG's loss


def test_colour_profile_is_honoured(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / "a.png", icc_profile=lab)
    assert np.abs(load_image(tmp_path / "a.png")[0, 0].astype(int) - COLOUR).max() <= 1  # sRGB to sRGB, rounded
    # the same profile with its red and blue primaries exchanged: red becomes blue
    swapped = lab.replace(b"rXYZ", b"tmp1").replace(b"bXYZ", b"rXYZ").replace(b"tmp1", b"bXYZ")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "b.png", icc_profile=swapped)
    assert np.abs(load_image(tmp_path / "b.png")[0, 0].astype(int) - (0, 0, 255)).max() <= 3
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / "c.png", icc_profile=b"no profile at all")
    assert load_image(tmp_path / "c.png")[0, 0].tolist() == list(COLOUR)


def test_phone_photo_with_a_second_view(tmp_path):
    picture().save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (40, 24), "blue")])
    assert np.abs(load_image(tmp_path / "a.mpo")[4:20, 4:16].astype(int) - COLOUR).max() <= 6


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size; nothing of it has to be stored."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, format="PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">2I", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_what_cannot_be_read_gets_one_line(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for ending in ("gif", "webp", "png", "tiff"):
        frames[0].save(tmp_path / f"two.{ending}", save_all=True, append_images=frames[1:])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "webp", "bmp", "tiff"):
        noise.save(tmp_path / f"whole.{ending}")
        data = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bomb.png").write_bytes(png_of(60000, 60000))
    (tmp_path / "large.png").write_bytes(png_of(10000, MAX_PIXELS // 10000 + 10))
    cases = {f"two.{ending}": "2 pictures" for ending in ("gif", "webp", "png", "tiff")}
    cases |= {f"cut.{ending}": "broken|not an image" for ending in ("png", "jpg", "webp", "bmp", "tiff")}
    cases |= {"text.png": "not an image", "empty.png": "not an image", "none.png": "no image", ".": "a folder"}
    cases |= {"bomb.png": "89 megapixels", "large.png": "89 megapixels"}
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value), name


def test_fit_covers_and_cuts_at_the_centre():
    image = np.zeros((60, 300, 3), np.uint8)
    image[:, 120:180] = 255  # the middle fifth is white
    assert (fit(image, 32, 32)[:, 4:-4] == 255).all()  # Lanczos looks three pixels far
    assert fit(image, 100, 48).shape == (48, 100, 3)
    assert np.array_equal(fit(image, 300, 60), image)
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 32, 32)
    assert np.abs(small.astype(int) - 128).max() <= 6  # one-pixel stripes shrink to grey (Lanczos), not to moiré


@pytest.mark.parametrize(
    ("image", "area", "expected"),
    [
        ((1920, 1080), 1280 * 720, (1280, 720)),
        ((1080, 1920), 1280 * 720, (720, 1280)),
        ((1664, 960), 832 * 480, (832, 480)),
        ((1000, 1000), 960 * 960, (960, 960)),
        ((4000, 3000), 640 * 480, (640, 480)),
        ((1, 100000), 256 * 256, (64, 1024)),  # as narrow as a typed size may be
        ((1, 1000), 832 * 480, (64, 1920)),
        ((1000, 1), 832 * 480, (1920, 64)),
        ((1000, 1), 64 * 64, (64, 64)),
    ],
)
def test_adaptive_size(image, area, expected):
    assert adaptive_size(*image, area) == expected


def test_adaptive_size_stays_inside_the_area_and_near_the_shape():
    rng = np.random.default_rng(0)
    for width, height in rng.integers(200, 4000, (200, 2)).tolist():
        w, h = adaptive_size(width, height, 832 * 480)
        assert w % 16 == h % 16 == 0 and w * h <= 832 * 480 and min(w, h) >= 64 and max(w, h) <= 1920
        assert w * h >= 0.85 * 832 * 480 or max(w, h) == 1920
        assert abs(np.log(w / h * height / width)) < 16 / min(w, h)  # at most one step of 16 on the shorter side


# ---- only pixels decide ----


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG of one colour with chunks before its pixels."""
    out = io.BytesIO()
    Image.new("RGB", (16, 8), (10, 200, 30)).save(out, "PNG")
    data = out.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]  # after the signature and IHDR


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 5_000_000))],
        [chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000))],
        [chunk(b"tEXt", b"parameters\0" + b"x" * 5_000_000)],
        [chunk(b"zTXt", b"a%d\0\0" % k + zlib.compress(b"x" * 1_000_000)) for k in range(90)],
        [chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 5_000_000))],
        [chunk(b"iCCP", b"profile\0\0no zlib at all")],
        [chunk(b"eXIf", b"Exif\0\0no exif at all")],
        [chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")],
        [chunk(b"tEXt", b"no key")],
        [chunk(b"zTXt", b"Comment\0\0" + b"no zlib")],
    ],
    ids=range(10),
)
def test_what_stands_beside_the_pixels_of_a_png_is_no_fault(tmp_path, chunks):
    path = tmp_path / "a.png"
    path.write_bytes(with_chunks(*chunks))
    assert load_image(path).tolist() == np.full((8, 16, 3), (10, 200, 30), np.uint8).tolist()


def test_damaged_exif_of_a_jpeg_is_no_fault(tmp_path):
    path = tmp_path / "a.jpg"
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 500):
        Image.new("RGB", (16, 8), (10, 200, 30)).save(path, exif=exif)
        assert load_image(path).shape == (8, 16, 3)


def test_pixels_that_are_cut_short_are_one(tmp_path):
    path = tmp_path / "a.png"
    data = with_chunks(chunk(b"tEXt", b"parameters\0steps"))
    path.write_bytes(data[:-30])
    with pytest.raises(UserError, match="broken or cut short"):
        load_image(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://example.org/cat.png", "is an address: download it first"),
        ("https:/example.org/cat.png", "is an address: download it first"),
        ("s3://bucket/cat.png", "is an address"),
        ("/dev/zero", "may never end"),
        ("a\0b", "NUL"),
        ("x" * 5000, "bytes is longer"),
        ("C:\\none.png", "there is no image"),
    ],
)
def test_names_that_are_no_files(path, words):
    with pytest.raises(UserError, match=words):
        load_image(path)


def test_avif_and_heic_where_a_package_reads_them(tmp_path):
    image = Image.new("RGB", (64, 48), (200, 30, 40))
    if features.check("avif"):
        image.save(tmp_path / "a.avif", quality=95)
        assert np.abs(load_image(tmp_path / "a.avif").astype(int) - (200, 30, 40)).max() < 12
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match=r"HEIC picture.*pip install pillow-heif|broken"):
        load_image(tmp_path / "a.heic")
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=95)
        assert np.abs(load_image(tmp_path / "a.heic").astype(int) - (200, 30, 40)).max() < 12
