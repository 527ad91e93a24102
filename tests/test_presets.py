"""Presets against the models they describe, on the meta device at real sizes, and against the published names."""

import dataclasses

import pytest
import torch

from turbodiffusion.errors import RequestError
from turbodiffusion.memory.weights import text_parameters
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import MODELS, RECIPES, SIZES, find_model, find_recipe, size_for


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
def test_parts_fit_together(preset):
    assert MODELS[preset.name] is preset
    assert preset.transformer.out_dim == preset.vae.z_dim
    assert preset.transformer.in_dim == {"t2v": preset.vae.z_dim, "i2v": 2 * preset.vae.z_dim + 4}[preset.task]
    assert preset.transformer.text_dim == preset.text.d_model
    assert preset.transformer.text_len == preset.text.text_len
    assert preset.num_frames % preset.vae.time_factor == 1
    assert preset.width % 16 == 0 and preset.height % 16 == 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("wan2.1-t2v-1.3b", 1.42e9), ("wan2.1-t2v-14b", 14.29e9), ("wan2.2-i2v-a14b", 14.29e9)],
)
def test_real_sizes(name, parameters):
    config = dataclasses.replace(find_model(name).transformer, attention_type="original")
    count = sum(weight.numel() for weight in WanTransformer(config, device="meta").parameters())
    assert count == pytest.approx(parameters, rel=0.002)  # the published counts are rounded


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
def test_names_are_found_in_any_case(preset):
    assert find_model(preset.name.upper()) is preset


@pytest.mark.parametrize(
    ("name", "nearest"), [("wan2.1-t2v-1.3", "'wan2.1-t2v-1.3b'"), ("wan2.2-i2v-14b", "'wan2.2-i2v-a14b'")]
)
def test_a_wrong_model_is_told_the_nearest(name, nearest):
    with pytest.raises(RequestError, match=f"did you mean {nearest}"):
        find_model(name)


def test_an_odd_name_is_told_all():
    with pytest.raises(RequestError, match=f"unknown model 'sora': there are {', '.join(MODELS)}$"):
        find_model("sora")


def test_recipes():
    assert [(r.num_steps, r.sla_topk) for r in RECIPES.values()] == [(2, 0.05), (4, 0.1), (4, 0.15)]
    assert find_recipe("Draft") is RECIPES["draft"]
    with pytest.raises(RequestError, match="did you mean 'final'"):
        find_recipe("finale")


def test_sizes_are_what_the_models_can_make():
    for sizes in SIZES.values():
        for ratio, (width, height) in sizes.items():
            assert width % 16 == 0 and height % 16 == 0
            across, down = map(int, ratio.split(":"))
            assert width / height == pytest.approx(across / down, rel=0.03)  # 832x480 is the farthest from its name


def test_size_for():
    assert size_for("720p", "9:16") == (720, 1280)
    assert size_for("854x480", "16:9") == (854, 480)
    with pytest.raises(RequestError, match=r"did you mean '720p'\? there are 480p, 720p, or a size as 854x480"):
        size_for("720", "16:9")
    with pytest.raises(RequestError, match="did you mean '16:9'"):
        size_for("480p", "16x9")


def test_demo_needs_no_files():
    assert find_model("demo").files() == ()


def test_published_names():
    def transformers(name, *args, **kwargs):
        files = find_model(name).files(*args, **kwargs)
        return [(file.role, f"{file.repo}/{file.path}") for file in files if file.role.startswith("transformer")]

    hub = "TurboDiffusion"
    small, large = f"{hub}/TurboWan2.1-T2V-1.3B-480P", f"{hub}/TurboWan2.1-T2V-14B"
    assert transformers("wan2.1-t2v-1.3b") == [("transformer", f"{small}/TurboWan2.1-T2V-1.3B-480P.pth")]
    assert transformers("wan2.1-t2v-1.3b", "720p", quantized=True) == [
        ("transformer", f"{small}/TurboWan2.1-T2V-1.3B-480P-quant.pth")
    ]
    assert transformers("wan2.1-t2v-14b") == [("transformer", f"{large}-480P/TurboWan2.1-T2V-14B-480P.pth")]
    assert transformers("wan2.1-t2v-14b", "720p") == [("transformer", f"{large}-720P/TurboWan2.1-T2V-14B-720P.pth")]
    image = f"{hub}/TurboWan2.2-I2V-A14B-720P"
    assert transformers("wan2.2-i2v-a14b", quantized=True) == [
        ("transformer", f"{image}/TurboWan2.2-I2V-A14B-high-720P-quant.pth"),
        ("transformer_low", f"{image}/TurboWan2.2-I2V-A14B-low-720P-quant.pth"),
    ]


def test_bytes_of_the_published_files():
    plain = {file.role: file for file in find_model("wan2.1-t2v-14b").files()}
    quantized = {file.role: file for file in find_model("wan2.1-t2v-14b").files(quantized=True)}
    assert plain["transformer"].bytes == pytest.approx(2 * 14.3e9, rel=0.02)  # bfloat16, the time path in float32
    assert 0.5 < quantized["transformer"].bytes / plain["transformer"].bytes < 0.55
    assert plain["vae"].bytes == pytest.approx(508e6, rel=0.01)
    assert plain["text"].bytes == pytest.approx(11.36e9, rel=0.01)
    assert {file.repo for role, file in plain.items() if role != "transformer"} == {"Wan-AI/Wan2.1-T2V-1.3B"}


def test_text_parameters_is_the_encoders_count():
    config = find_model("demo").text
    encoder = TextEncoder(config, device="meta", dtype=torch.bfloat16)
    assert text_parameters(config) == sum(weight.numel() for weight in encoder.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "v2v"}, "task must be"),
        ({"sampler": "ddim"}, "sampler must be"),
        ({"sampler": "rcm"}, "needs sigma_max"),
        ({"guidance": None}, "needs guidance"),
        ({"experts": 2}, "need a boundary"),
        ({"boundary": 0.9}, "need a boundary"),
    ],
)
def test_a_preset_refuses_what_excludes_itself(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(find_model("demo"), **change)
