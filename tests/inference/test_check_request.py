"""What is known to fail before a model is loaded, and what people give as a request or an image."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from turbodiffusion import Pipeline, Request
from turbodiffusion.errors import MachineError, RequestError, UserError
from turbodiffusion.inference.check_request import as_request, as_requests
from turbodiffusion.inference.load_options import LoadOptions
from turbodiffusion.inference.model_source import resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "turbodiffusion" / "images"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a red fox", "write Request('a red fox')"),
        ({"prompt": "a"}, "a request is needed, as Request('an orange cat runs')"),
        (None, "a request is needed"),
        (Request, "a request is needed"),
        (["a"], "a request is needed"),
    ],
)
def test_what_is_no_request_is_told_what_to_write(value, words, flow_folder):
    with pytest.raises(RequestError) as caught:
        as_request(value)
    assert words in str(caught.value)
    if value is not None:
        with pytest.raises(RequestError):
            Pipeline.load(flow_folder, device="cpu", requests=value)


def test_one_request_is_a_list_of_one(flow_folder):
    assert as_requests(Request("a")) == as_requests([Request("a")]) == [Request("a")]
    pipeline = Pipeline.load(Path(flow_folder), device="cpu", requests=Request("a", num_steps=1))  # a Path is a name
    with pytest.raises(RequestError, match="write Request"):
        pipeline.generate("a red fox")  # type: ignore[arg-type]
    result = pipeline.generate(Request("a red fox", seed=np.int64(7), num_steps=np.int32(1), guidance=np.float32(1.5)))
    assert (result.request.seed, result.request.num_steps, result.request.guidance) == (7, 1, 1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, "much", 10**400])
def test_memory_that_is_no_number(value):
    with pytest.raises(MachineError, match="max_memory is in GiB and more than 0") as caught:
        LoadOptions(max_memory=value)
    assert len(str(caught.value)) < 200
    assert LoadOptions(max_memory=np.float32(8)).max_memory == 8.0 == LoadOptions(max_memory=8).max_memory


@pytest.mark.parametrize("model", [None, 3, b"demo", ["demo"]])
def test_a_model_that_is_no_name(model):
    with pytest.raises(RequestError, match="a model is a name, a folder or a file"):
        LoadOptions(model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("m" * 300, "300 bytes is longer"),
        ("m/" * 2500, "4999 bytes is longer"),
        ("~nouser/x", "no such user's home"),
        ("a\0b", "NUL"),
        ("/dev/zero", "may never end"),
        ("https://example.org/model.safetensors", "download it first"),
        ("hf://owner/name", "download it first"),
    ],
)
def test_model_names_that_no_file_has(model, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve_model(model)
    assert len(str(caught.value)) < 300 and "\0" not in str(caught.value)


def test_options_from_json_that_is_none():
    for words in ("[", "[" * 60_000, "9" * 5000, "[1]", "null"):
        with pytest.raises(RequestError):
            LoadOptions.from_json(words)


# ---- pictures in memory ----


def picture() -> np.ndarray:
    y, x = np.mgrid[:96, :160]
    return np.stack((x, y, 255 - x), axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["uint8", "float", "pil", "alpha", "path"])
def test_an_image_may_be_a_picture_in_memory(kind, i2v_folder, cache, tmp_path):
    array = picture()
    opaque = np.concatenate((array, np.full_like(array[..., :1], 255)), axis=-1)
    Image.fromarray(array).save(tmp_path / "a.png")
    image = {
        "uint8": array,
        "float": array.astype(np.float32) / 255,
        "pil": Image.fromarray(array),
        "alpha": opaque,
        "path": tmp_path / "a.png",
    }[kind]
    request = as_request(Request("a fox", image=image))
    kept = np.asarray(Image.open(request.image))
    assert np.array_equal(kept, array) and len(list(cache.glob("*.png"))) == (kind != "path")
    assert as_request(request) == request and Request.from_json(request.to_json()) == request
    assert as_request(Request("a fox", image=image)).image == request.image  # by its pixels
    if kind == "uint8":
        pipeline = Pipeline.load(i2v_folder, device="cpu", requests=[Request("a fox", image=image)])
        result = pipeline.generate(Request("a fox", image=image, seed=3, num_steps=1))
        again = pipeline.generate(result.request)
        assert result.request.image == request.image and again.mp4 == result.mp4


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((64, 64, 2), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros(5),
        np.zeros((2, 2, 2, 3)),
        np.full((8, 8, 3), np.nan, np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 3), complex),
        np.array([["a"]]),
        np.array([[None]]),
        np.array(5),
    ],
)
def test_arrays_that_are_no_pictures(image):
    with pytest.raises(UserError) as caught:
        as_request(Request("a", image=image))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_picture_in_memory_has_no_place_in_json():
    with pytest.raises(RequestError, match="save it as a PNG"):
        Request("a", image=picture()).to_json()


def test_a_picture_of_which_little_is_seen_gets_a_notice(i2v_folder):
    pipeline = Pipeline.load(i2v_folder, device="cpu")
    notices = []
    for image in (np.zeros((10, 1000, 3), np.uint8), picture()):
        request = Request("a fox", image=image, seed=3, num_steps=1)
        pipeline.generate(request, on_notice=notices.append)
    assert [str(notice) for notice in notices if "1000x10" in str(notice)] == [
        "of the picture, 1000x10, 1% are seen in a video of 64x64: the rest is cut off; --adaptive-resolution follows "
        "its shape as far as sizes go"
    ]


def test_a_picture_of_any_shape_stays_within_the_limits(i2v_folder):
    pipeline = Pipeline.load(i2v_folder, device="cpu")
    fields = {"resolution": "96x96", "adaptive_resolution": True, "seed": 3, "num_steps": 1}
    result = pipeline.generate(Request("a fox", image=np.full((1000, 1, 3), 99, np.uint8), **fields))
    assert result.frames.shape == (9, 144, 64, 3)


# ---- notices ----


def test_a_prompt_that_is_cut_gets_a_notice(flow_folder):
    pipeline = Pipeline.load(flow_folder, device="cpu")
    notices = []

    def told(**fields) -> list[str]:
        notices.clear()
        pipeline.generate(Request(seed=3, num_steps=1, **fields), on_notice=notices.append)
        return [str(notice) for notice in notices]

    assert told(prompt="a red fox runs") == []
    (notice,) = told(prompt="a red fox runs " * 4 + "and a blue cat flies away over the green hills of the north")
    assert re.match(r'prompt has \d\d tokens, and the model reads 16: lost is all from "', notice)
    assert "and a blue cat" in notice and notice.endswith('..." on')
    (notice,) = told(prompt="a fox", negative_prompt="a red cat flies " * 5)
    assert notice.startswith("negative_prompt has")
    assert told(prompt="a fox", negative_prompt="a red cat flies " * 5, guidance=1) == [
        "negative_prompt is ignored: guidance is 1, which is none; give more, as 4"
    ]


def test_the_tokens_that_are_lost_are_those_that_the_encoder_does_not_get(flow_folder):
    tokenizer = Pipeline.load(flow_folder, device="cpu").model.prompt_encoder.tokenizer
    for words in range(1, 30):
        prompt = " ".join(["red"] * words)
        count, lost = tokenizer.lost(prompt)
        _, mask = tokenizer([prompt])
        assert int(mask.sum()) == min(count, 16) and bool(lost) == (count > 16)
