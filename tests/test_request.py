"""Requests: what is refused and in which words, what is filled in, and the way through JSON."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest

from turbodiffusion.errors import OutputError, RequestError
from turbodiffusion.inference.result import Result
from turbodiffusion.presets import MODELS, find_model, wan_sampling
from turbodiffusion.request import MAX_SEED, WAN_NEGATIVE_PROMPT, Request, field_specs, made_size
from turbodiffusion.texts import text

T2V, I2V, DEMO = find_model("wan2.1-t2v-14b"), find_model("wan2.2-i2v-a14b"), find_model("demo")
TEACHER = replace(DEMO, name="teacher", sampler="flow", shift=5.0, guidance=6.0, num_steps=50)


def ask(prompt="a cat", **fields):
    return Request(prompt=prompt, **fields)


def test_defaults_of_a_distilled_model_are_filled_in():
    r = ask(seed=7).resolve(T2V)
    assert r == Request(
        prompt="a cat",
        model="wan2.1-t2v-14b",
        resolution="480p",
        aspect_ratio="16:9",
        num_frames=81,
        num_steps=4,
        sampler="rcm",
        seed=7,
        sigma_max=80.0,
        attention_type="sagesla",
        sla_topk=0.1,
    )
    assert r.size == (832, 480)


def test_defaults_of_two_experts_and_of_a_teacher():
    r = ask(image="cat.png").resolve(I2V)
    assert (r.sigma_max, r.boundary, r.size) == (200.0, 0.9, (1280, 720))
    r = ask(attention_type="original").resolve(TEACHER)
    assert (r.shift, r.guidance, r.num_steps, r.sigma_max, r.sla_topk) == (5.0, 6.0, 50, None, None)
    assert r.negative_prompt == ""


# Wan 2.2 T2V-A14B: the same network as Wan 2.1 14B, twice
A14B = replace(T2V, name="a14b", experts=2, sigma_max=None, **wan_sampling(T2V.transformer, "t2v", 2, "flow"))


def test_two_experts_take_the_numbers_of_their_task():
    r = ask().resolve(A14B)
    assert (r.num_steps, r.boundary, r.shift, r.guidance, r.guidance_low) == (40, 0.875, 12.0, 4.0, 3.0)
    i2v = replace(I2V, **wan_sampling(I2V.transformer, "i2v", 2, "flow"))
    r = ask(image="cat.png").resolve(i2v)
    assert (r.num_steps, r.boundary, r.shift, r.guidance, r.guidance_low) == (40, 0.9, 5.0, 3.5, 3.5)
    assert r.guided


@pytest.mark.parametrize(
    ("given", "scales"),
    [
        ({"guidance": 5.0}, (5.0, 5.0)),  # alone it is for both, as in diffusers
        ({"guidance_low": 2.0}, (4.0, 2.0)),
        ({"guidance": 5.0, "guidance_low": 1.0}, (5.0, 1.0)),
    ],
)
def test_guidance_of_either_expert(given, scales):
    r = ask(**given).resolve(A14B)
    assert (r.guidance, r.guidance_low) == scales and r.guided
    assert not ask(guidance=1.0).resolve(A14B).guided
    with pytest.raises(RequestError, match="guidance_low 101: 0 to 100"):
        ask(guidance_low=101.0).resolve(A14B)


def test_guidance_low_is_for_undistilled_models_with_two_experts():
    for preset, reason in ((TEACHER, "one network"), (T2V, "is distilled")):
        asked = ask(guidance_low=2.0)
        assert [reason in str(notice) for notice in asked.notices(preset)] == [True]
        assert asked.resolve(preset).guidance_low is None


def test_the_sampler_that_is_asked_for_overrules_what_was_guessed():
    guess = text("sampling.assumed_flow", path="student.pth", steps=50)
    dense = replace(TEACHER, assumed=(("sampler", guess),))
    assert ask().notices(dense) == (guess,)
    student = ask(sampler="rcm")
    assert student.notices(dense) == ()
    r = student.resolve(dense)
    assert (r.sampler, r.num_steps, r.sigma_max, r.guidance, r.shift) == ("rcm", 4, 80.0, None, None)
    assert r.resolve(dense) == r and not r.guided
    with pytest.raises(RequestError, match="num_steps 50: a distilled model takes 1 to 4"):
        ask(sampler="rcm", num_steps=50).resolve(dense)
    teacher = ask(sampler="flow").resolve(T2V)
    assert (teacher.num_steps, teacher.shift, teacher.guidance, teacher.sigma_max) == (50, 5.0, 5.0, None)
    assert ask(image="c.png", sampler="flow", boundary=0.8).resolve(I2V).boundary == 0.8
    for word, near in (("rcn", "'rcm'"), ("distilled", "'rcm'"), ("euler", "'flow'")):
        with pytest.raises(RequestError, match=f"did you mean {near}"):
            ask(sampler=word).resolve(T2V)


def test_wans_own_negative_prompt_goes_to_models_with_its_text_encoder():
    wan = replace(T2V, sampler="flow", shift=5.0, guidance=5.0)
    assert ask().resolve(wan).negative_prompt == WAN_NEGATIVE_PROMPT
    assert ask(negative_prompt="").resolve(wan).negative_prompt == ""


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
def test_resolving_twice_changes_nothing(preset):
    image = "cat.png" if preset.task == "i2v" else None
    once = ask(image=image).resolve(preset)
    assert once.resolve(preset) == once
    assert once.notices(preset) == ()
    assert Request.from_json(once.to_json()) == once


@pytest.mark.parametrize(
    ("preset", "fields", "words"),
    [
        (T2V, {"prompt": "  \n"}, "prompt is empty"),
        (T2V, {"num_frames": 80}, r"80 frames: .* 33 to 161, 4k\+1; 81 is the nearest"),
        (T2V, {"num_frames": 83}, "81 is the nearest"),
        (T2V, {"num_frames": 17}, "33 is the nearest"),
        (T2V, {"num_frames": 1001}, "161 is the nearest"),
        (T2V, {"num_frames": -3}, "33 is the nearest"),
        (DEMO, {"num_frames": 1}, "5 is the nearest"),
        (T2V, {"num_steps": 5}, "num_steps 5: a distilled model takes 1 to 4"),
        (T2V, {"num_steps": 0}, "num_steps 0: a distilled model takes 1 to 4"),
        (TEACHER, {"num_steps": 201}, "takes 1 to 200, 50 by default"),
        (T2V, {"sigma_max": 3.0}, r"sigma_max 3 is not above the schedule's next level, 14\.10"),
        (T2V, {"sigma_max": -1.0, "num_steps": 1}, "sigma_max -1"),
        (T2V, {"sigma_max": 1e300}, r"sigma_max 1e\+300: at most 10000, 80 by default"),
        (T2V, {"resolution": "32x480"}, "32x480 is too small: .* 64x480 is the nearest"),
        (T2V, {"resolution": "8000x480"}, "too large: .* 1920x480 is the nearest"),
        (T2V, {"resolution": "0x0"}, "64x64 is the nearest"),
        (T2V, {"resolution": "460p"}, "did you mean '480p'"),
        (T2V, {"resolution": "wide"}, "480p, 720p, or a size as 854x480"),
        (T2V, {"resolution": "854x"}, "854x"),
        (T2V, {"aspect_ratio": "16x9"}, "did you mean '16:9'"),
        (T2V, {"resolution": "854x480", "aspect_ratio": "16:9"}, "goes with a named resolution"),
        (T2V, {"aspect_ratio": "16:10"}, "did you mean '16:9'.* for another shape give the resolution as WxH"),
        (T2V, {"quant_linear": "True"}, "did you mean 'on'"),
        (T2V, {"quant_linear": "False"}, "did you mean 'off'"),
        (T2V, {"attention_type": "slaa"}, "did you mean 'sla'"),
        (T2V, {"seed": -1}, f"seed -1: 0 .* to {MAX_SEED}"),
        (T2V, {"seed": MAX_SEED + 1}, "seed"),
        (T2V, {"image": "cat.png"}, "makes videos from text alone"),
        (I2V, {}, "starts from an image"),
        (I2V, {"image": "c.png", "boundary": 0.4}, r"boundary 0\.4: .* 0\.5 to 1, 0\.9 by default"),
        (I2V, {"image": "c.png", "boundary": 1.1}, "0.5 to 1"),
        (T2V, {"sla_topk": 0.0}, "sla_topk 0: .* over 0 and up to 1"),
        (T2V, {"sla_topk": 10.0}, "sla_topk 10"),
        (T2V, {"attention_type": "flash"}, "there are auto, original, sla, sage, sagesla"),
        (T2V, {"quant_linear": "int4"}, "there are auto, on, off, int8_block"),
        (TEACHER, {"shift": 0.0}, "shift 0: 0.1 to 100, 5 by default"),
        (TEACHER, {"guidance": -1.0}, "guidance -1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(preset, fields, words):
    with pytest.raises(RequestError, match=words) as error:
        ask(**fields).resolve(preset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields", [{"num_frames": n} for n in (33, 81, 161)] + [{"num_steps": n} for n in (1, 2, 3, 4)]
)
def test_the_ends_of_the_ranges_are_allowed(fields):
    assert vars(ask(**fields).resolve(T2V)).items() >= fields.items()
    assert ask(sla_topk=1.0).resolve(T2V).sla_topk == 1.0
    assert ask(num_frames=5).resolve(DEMO).num_frames == 5
    for boundary in (0.5, 1.0):
        assert ask(image="c.png", boundary=boundary).resolve(I2V).boundary == boundary


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_frames": "81"}, "num_frames: a whole number is needed, not '81'"),
        ({"num_frames": 81.0}, "num_frames: a whole number"),
        ({"seed": True}, "seed: a whole number"),
        ({"ode": 1}, "ode: true or false"),
        ({"sigma_max": "80"}, "sigma_max: a number"),
        ({"sigma_max": float("nan")}, "sigma_max: a finite number"),
        ({"prompt": None}, "prompt: text is needed"),
        ({"attention_type": None}, "attention_type: text is needed"),
        ({"model": ""}, "model is empty: .* leave it out"),
        ({"resolution": ""}, "resolution is empty"),
        ({"seed": 10**5000}, "seed: a number of so many digits"),
        ({"sigma_max": 10**400}, "sigma_max: a number of so many digits"),
    ],
)
def test_fields_have_types(fields, words):
    with pytest.raises(RequestError, match=words):
        ask(**fields)


def test_dense_attention_is_stored_as_original():
    assert ask(attention_type="dense") == ask(attention_type="original")
    assert ask(attention_type="dense").resolve(T2V).attention_type == "original"


def test_every_field_describes_itself():
    specs = {spec.name: spec for spec in field_specs()}
    assert list(specs) == [field.name for field in fields(Request)]
    for spec in specs.values():
        assert spec.type in (str, int, float, bool)
        assert spec.group in ("what", "how", "run")
        assert spec.applies in ("all", "distilled", "teacher", "two_experts", "teacher_experts", "image", "sparse")
        assert spec.help.render("en") != spec.help.render("zh")
        assert (spec.low is None) == (spec.high is None) == (spec.type not in (int, float) or spec.low is None)
    assert specs["sla_topk"].type is float and specs["prompt"].default is MISSING
    assert (specs["num_frames"].low, specs["num_frames"].high) == (5, 161)
    assert specs["num_steps"].model_defaults == {"demo": 30, **dict.fromkeys(list(MODELS)[1:], 4)}


@pytest.mark.parametrize("preset", [*MODELS.values(), TEACHER], ids=lambda preset: preset.name)
def test_ranges_and_choices_of_the_fields_hold_what_a_model_takes_by_default(preset):
    resolved = ask(image="cat.png" if preset.task == "i2v" else None).resolve(preset)
    for spec in field_specs():
        value = getattr(resolved, spec.name)
        if value is not None and spec.low is not None:
            assert spec.low <= value <= spec.high, spec.name
        if value is not None and spec.choices:
            assert value in spec.choices, spec.name


@pytest.mark.parametrize(
    ("resolution", "words"),
    [
        ("854x480", "854x480 is made as 864x480 and cut; 480p at 16:9 is 832x480"),
        ("1280x704", "720p at 16:9 is 1280x720"),
        ("832x480", None),
        ("480p", None),
        ("512x512", None),
    ],
)
def test_who_asks_for_nearly_a_named_size_is_told_the_name(resolution, words):
    notices = [str(notice) for notice in ask(resolution=resolution).notices(T2V)]
    assert len(notices) == (words is not None) and all(words in notice for notice in notices)


def test_a_refusal_in_chinese():
    with pytest.raises(RequestError) as error:
        ask(num_frames=80).resolve(T2V)
    assert error.value.code == "request.num_frames" and "最接近的是 81" in error.value.text.render("zh")


def test_a_whole_number_is_a_number_and_a_path_is_text():
    r = ask(sigma_max=80, image=Path("pictures") / "cat.png")
    assert type(r.sigma_max) is float
    assert r.image == str(Path("pictures") / "cat.png")
    assert Request.from_json(r.to_json()) == r


@pytest.mark.parametrize(
    ("resolution", "aspect_ratio", "size", "made"),
    [
        ("480p", "9:16", (480, 832), (480, 832)),
        ("720p", None, (1280, 720), (1280, 720)),
        ("854x480", None, (854, 480), (864, 480)),
        ("65X100", None, (65, 100), (80, 112)),
    ],
)
def test_sizes(resolution, aspect_ratio, size, made):
    r = ask(resolution=resolution, aspect_ratio=aspect_ratio).resolve(T2V)
    assert r.size == size
    assert made_size(*size) == made


def test_seed_zero_draws_one_and_another_stays():
    drawn = {ask().resolve(T2V).seed for _ in range(8)}
    assert len(drawn) == 8 and all(0 < seed <= MAX_SEED for seed in drawn)
    assert ask(seed=42).resolve(T2V).seed == 42


def test_8_bit_linears_by_name():
    assert ask(quant_linear="on").resolve(T2V).quant_linear == "on"
    assert ask(quant_linear="fp8_row").resolve(T2V).quant_linear == "fp8_row"
    assert ask().resolve(T2V).quant_linear == "auto"


def test_what_a_model_does_not_use_is_told_and_left_out():
    r = ask(negative_prompt="blur", guidance=5, shift=3.0, boundary=0.9, adaptive_resolution=True)
    assert [str(n).split()[0] for n in r.notices(T2V)] == [
        "negative_prompt",
        "guidance",
        "shift",
        "boundary",
        "adaptive_resolution",
    ]
    assert "wan2.1-t2v-14b is distilled and runs without guidance" in str(r.notices(T2V)[0])
    resolved = r.resolve(T2V)
    assert (resolved.negative_prompt, resolved.guidance, resolved.boundary) == (None, None, None)
    assert resolved.adaptive_resolution is False
    teacher = ask(sigma_max=80.0, ode=True, sla_topk=0.2, attention_type="sage")
    assert [str(n).split()[0] for n in teacher.notices(TEACHER)] == ["sigma_max", "sla_topk", "ode"]


def test_json_names_what_it_does_not_know():
    with pytest.raises(RequestError, match="unknown field n_frames, sead; a request has prompt, "):
        Request.from_json({"prompt": "a cat", "n_frames": 81, "sead": 1})
    with pytest.raises(RequestError, match="prompt is missing"):
        Request.from_json("{}")
    with pytest.raises(RequestError, match="an object is needed, not list"):
        Request.from_json("[]")
    with pytest.raises(RequestError, match="not a request in JSON"):
        Request.from_json('{"prompt": ')
    with pytest.raises(RequestError, match="num_steps: a whole number"):
        Request.from_json('{"prompt": "a cat", "num_steps": "4"}')


def test_json_holds_every_field_and_plain_chinese():
    r = ask(prompt="一只橙色的猫", seed=3)
    assert "一只橙色的猫" in r.to_json()
    assert set(json.loads(r.to_json())) == set(vars(r))


def result(folder_name="t2v_42_Demo_20251224_153000.mp4"):
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    return Result(ask(seed=42).resolve(DEMO), frames, b"an mp4", folder_name, {"load": 1.0})


def test_result_saves_whole_files(tmp_path):
    path = result().save(tmp_path / "new")
    assert path == tmp_path / "new" / "t2v_42_Demo_20251224_153000.mp4"
    assert path.read_bytes() == b"an mp4"
    assert result().save(tmp_path / "new") != path
    sheet = result().contact_sheet(tmp_path / "sheet.png")
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_result_leaves_nothing_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        result().save(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_values_of_numpy_are_numbers():
    r = Request("a", seed=np.int64(42), num_steps=np.uint8(3), guidance=np.float32(4), ode=np.bool_(True))
    assert (r.seed, r.num_steps, r.guidance, r.ode) == (42, 3, 4.0, True)
    assert [type(value) for value in (r.seed, r.guidance, r.ode)] == [int, float, bool]
    assert Request.from_json(r.to_json()) == r
    for value in (np.float64(4.5), np.array([4]), np.nan):
        with pytest.raises(RequestError):
            Request("a", seed=value)


@pytest.mark.parametrize("value", ["a\ud800b", "\udcff"])
def test_bytes_that_are_no_text(value):
    for words in ({"prompt": value}, {"prompt": "a", "negative_prompt": value}):
        with pytest.raises(RequestError, match="is not text: it has bytes that are not UTF-8"):
            Request(**words)


def test_what_is_shown_of_a_value_has_an_end():
    class Foreign:
        def __repr__(self) -> str:
            raise ValueError

    for value in (list(range(10_000)), Foreign(), b"x" * 9999):
        with pytest.raises(RequestError) as caught:
            Request("a", seed=value)
        assert len(str(caught.value)) < 300
