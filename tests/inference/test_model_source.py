"""What a model's name means: presets, our folders, other projects' folders and files, on this machine or the hub."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError, RequestError, UserError
from turbodiffusion.inference.model_source import fetch_files, resolve_model
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import find_model

SMALL = WanConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1, text_dim=32, text_len=16, freq_dim=32)
TEXT = TextConfig(d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=64, vocab_size=330, text_len=16)


def write_transformer(path, config=SMALL):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(WanTransformer(config).state_dict(), path)
    (path.parent / "config.json").write_text(json.dumps({"num_heads": config.num_heads, "text_len": config.text_len}))
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A hub that cannot be reached and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def others_folder(tmp_path, tiny_model):
    """A folder as diffusers lays it out, with the tensors of small models."""
    folder = tmp_path / "others"
    transformer = {name: t.contiguous() for name, t in WanTransformer(SMALL).state_dict().items()}
    (folder / "transformer").mkdir(parents=True)
    save_file(transformer, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(json.dumps({"num_attention_heads": 1, "text_len": 16}))
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), folder / "Wan2.1_VAE.pth")
    (folder / "text_encoder").mkdir()
    save_file(TextEncoder(TEXT).state_dict(), folder / "text_encoder" / "model.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"text_len": 16}))
    shutil.copy(tiny_model / "spiece.model", folder / "spiece.model")
    return folder


def test_names_are_presets_in_any_case():
    assert resolve_model("WAN2.1-T2V-14B").preset is find_model("wan2.1-t2v-14b")
    assert resolve_model("wan2.2-i2v-a14b").path is None


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3", "wan2.1-t2v-1.3B "])
def test_a_wrong_name_is_told_the_nearest(name):
    with pytest.raises(RequestError, match=r"did you mean 'wan2\.1-t2v-1\.3b'"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["models/none", "none.pth", "/no/where.safetensors"])
def test_a_missing_path_is_told_as_one(name):
    with pytest.raises(MissingFilesError, match=f"no model file or folder {name}"):
        resolve_model(name)


def test_our_folder_brings_its_defaults(tiny_model):
    origin = resolve_model(str(tiny_model))
    preset = origin.preset
    assert (preset.sampler, preset.num_steps, preset.shift, preset.guidance) == ("flow", 2, 3.0, 4.0)
    assert (preset.width, preset.height, preset.num_frames, preset.file_name) == (64, 64, 5, "Tiny")
    found = fetch_files(origin)
    assert set(found) == {"transformer", "vae", "text", "tokenizer"}
    assert all(path.parent == tiny_model for path in found.values())


def edit(folder, target, **changes):
    shutil.copytree(folder, target)
    model = json.loads((target / "model.json").read_text())
    model |= changes
    (target / "model.json").write_text(json.dumps(model))
    return target


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"sampler": "rcm", "num_step": 4}, "sampling has sampler, num_steps, .*, not 'num_step'"),
        ({"sampler": "ddim", "num_steps": 4}, "'ddim' is no value of sampler in sampling"),
        ({"sampler": "rcm"}, "sampling with rcm lacks num_steps, sigma_max"),
    ],
)
def test_our_folder_with_unusable_defaults_is_told(tiny_model, tmp_path, sampling, words):
    with pytest.raises(CheckpointError, match=words):
        resolve_model(str(edit(tiny_model, tmp_path / "edited", sampling=sampling)))


def test_our_folder_that_lacks_a_part_is_told(tiny_model, tmp_path):
    folder = edit(tiny_model, tmp_path / "edited")
    (folder / "vae.safetensors").unlink()
    with pytest.raises(MissingFilesError, match=r"lacks vae\.safetensors"):
        resolve_model(str(folder))


def test_another_projects_folder_is_understood_by_its_shapes(others_folder):
    origin = resolve_model(str(others_folder))
    preset = origin.preset
    assert preset.transformer == SMALL and preset.text == TEXT and preset.vae == VAEConfig(dim=8)
    assert (preset.task, preset.sampler, preset.num_steps, preset.shift, preset.guidance) == (
        "t2v",
        "flow",
        50,
        8.0,
        6.0,
    )
    found = {part: path.relative_to(others_folder).as_posix() for part, path in fetch_files(origin).items()}
    assert found == {
        "transformer": "transformer/diffusion_pytorch_model.safetensors",
        "vae": "Wan2.1_VAE.pth",
        "text": "text_encoder/model.safetensors",
        "tokenizer": "spiece.model",
    }


def test_a_distilled_file_takes_wans_own_parts_from_the_hub(tmp_path, offline):
    config = replace(SMALL, text_dim=4096, text_len=512, attention_type="sla")
    path = write_transformer(tmp_path / "weights" / "TurboWan-tiny.pth", config)
    origin = resolve_model(str(path))
    preset = origin.preset
    assert (preset.sampler, preset.num_steps, preset.sigma_max, preset.file_name) == ("rcm", 4, 80.0, "TurboWan-tiny")
    assert preset.transformer.attention_type == "sla" and preset.transformer.round_time_to_bf16
    with pytest.raises(MissingFilesError) as error:
        fetch_files(origin)
    words = str(error.value)
    assert "Wan2.1_VAE.pth" in words and "models_t5_umt5-xxl-enc-bf16.pth" in words and "spiece.model" in words
    assert "TurboWan" not in words


def test_parts_beside_a_file_are_taken(others_folder):
    origin = resolve_model(str(others_folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    assert origin.preset.transformer == SMALL
    moved = others_folder / "mine.safetensors"
    shutil.move(others_folder / "transformer" / "diffusion_pytorch_model.safetensors", moved)
    (others_folder / "config.json").write_text(json.dumps({"num_heads": 1, "text_len": 16}))
    found = fetch_files(resolve_model(str(moved)))
    assert found["transformer"] == moved and found["vae"] == others_folder / "Wan2.1_VAE.pth"


def test_a_file_that_is_no_transformer_is_told(tmp_path):
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="holds a VAE; a model is a transformer's file, or a folder"):
        resolve_model(str(tmp_path / "Wan2.1_VAE.pth"))


def test_clip_models_are_refused_with_the_way_out(tmp_path):
    path = write_transformer(tmp_path / "i2v.pth", replace(SMALL, in_dim=36, image_dim=64))
    with pytest.raises(CheckpointError, match=r"needs CLIP's image encoder; wan2\.2-i2v-a14b does without"):
        resolve_model(str(path))


def test_a_small_models_own_parts_are_not_looked_for_on_the_hub(others_folder, offline):
    (others_folder / "spiece.model").unlink()
    with pytest.raises(
        MissingFilesError,
        match=r"holds no tokenizer; looked for: spiece.model, .*seen: Wan2.1_VAE.pth .*name a file with --tokenizer",
    ):
        fetch_files(resolve_model(str(others_folder)))


# ---- pairs ----

WIDE = replace(SMALL, text_dim=4096, text_len=512)


@pytest.mark.parametrize(
    ("high", "low", "in_dim", "numbers"),
    [
        ("wan2.2_t2v_high_noise_14B.pth", "wan2.2_t2v_low_noise_14B.pth", 16, ("t2v", 0.875, 12.0, 4.0, 3.0)),
        ("Wan2.2-T2V-A14B_HIGH.pth", "Wan2.2-T2V-A14B_LOW.pth", 16, ("t2v", 0.875, 12.0, 4.0, 3.0)),
        ("a14b-high.pth", "a14b-low.pth", 36, ("i2v", 0.9, 5.0, 3.5, None)),
        ("high_noise_model/model.pth", "low_noise_model/model.pth", 36, ("i2v", 0.9, 5.0, 3.5, None)),
    ],
)
@pytest.mark.parametrize("named", [0, 1])
def test_either_file_of_a_pair_loads_both(high, low, in_dim, numbers, named, tmp_path):
    config = replace(WIDE, in_dim=in_dim)
    paths = [write_transformer(tmp_path / name, config) for name in (high, low)]
    source = resolve_model(str(paths[named]))
    preset = source.preset
    assert (preset.task, preset.boundary, preset.shift, preset.guidance, preset.guidance_low) == numbers
    assert (preset.experts, preset.num_steps, preset.sampler) == (2, 40, "flow")
    assert (source.parts["transformer"], source.parts["transformer_low"]) == tuple(paths)
    told = [str(notice) for name, notice in preset.assumed if name == "experts"]
    assert f"{paths[0].name} for high noise, {paths[1].name} for low noise" in told[0]
    folder = resolve_model(str(tmp_path))
    assert folder.preset.experts == 2 and folder.parts["transformer_low"] == paths[1]


@pytest.mark.parametrize(
    ("name", "in_dim", "words"),
    [
        (
            "wan2.2_t2v_high_noise_14B.pth",
            16,
            "high-noise network of a pair, and there is no wan2.2_t2v_low_noise_14B.pth",
        ),
        ("Wan-Low-Noise.pth", 16, "low-noise network of a pair, and there is no Wan-High-Noise.pth beside it"),
        ("a14b-low.pth", 36, "there is no a14b-high.pth beside it"),
        ("i2v.pth", 36, "with high and low in their names"),
        ("low_noise_model/model.pth", 16, "there is no high_noise_model/model.pth beside it"),
        ("transformer_2/model.pth", 16, "there is no transformer/model.pth beside it"),
    ],
)
def test_half_a_pair_is_refused(name, in_dim, words, tmp_path):
    path = write_transformer(tmp_path / name, replace(WIDE, in_dim=in_dim))
    for given in (path, tmp_path):
        with pytest.raises(MissingFilesError, match=words):
            resolve_model(str(given))


def test_half_of_diffusers_two_experts_is_refused(tmp_path):
    write_transformer(tmp_path / "transformer" / "model.pth", WIDE)
    (tmp_path / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875}))
    for given in (tmp_path, tmp_path / "transformer" / "model.pth", tmp_path / "model_index.json"):
        with pytest.raises(MissingFilesError, match=r"transformer_2/model.pth"):
            resolve_model(str(given))


def test_two_that_are_no_pair_are_told(tmp_path):
    write_transformer(tmp_path / "x_high_noise.pth", WIDE)
    write_transformer(tmp_path / "x_low_noise.pth", replace(WIDE, num_layers=2))
    with pytest.raises(CheckpointError, match="are no pair: num_layers is 1 in the one and 2 in the other"):
        resolve_model(str(tmp_path / "x_high_noise.pth"))


def test_one_network_of_wan_2_2_is_told_as_what_it_is_taken_for(tmp_path):
    preset = resolve_model(str(write_transformer(tmp_path / "wan2.2-rapid.pth", WIDE))).preset
    assert preset.experts == 1
    assert "taken as one network for all noise levels" in str(dict(preset.assumed)["experts"])


def test_diffusers_own_numbers_are_taken(others_folder):
    (others_folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.8}))
    shutil.copytree(others_folder / "transformer", others_folder / "transformer_2")
    (others_folder / "scheduler").mkdir()
    (others_folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"flow_shift": 7.0}))
    preset = resolve_model(str(others_folder)).preset
    assert (preset.experts, preset.boundary, preset.shift, preset.guidance) == (2, 0.8, 7.0, 4.0)


# ---- numbers of files ----


@pytest.mark.parametrize(
    ("part", "values"),
    [
        *(("transformer", {name: value}) for name in ("num_layers", "dim") for value in (10**9, -1, 0, "7", None, [])),
        *(("text", {"text_len": value}) for value in (0, 10**9, 16.5, True)),
        ("text", {"vocab_size": 10**12}),
        ("vae", {"dim_mult": [1] * 1000}),
        ("vae", {"dim_mult": "1"}),
        ("vae", {"latents_std": [0.0] * 16}),
        ("vae", {"latents_mean": [None] * 16}),
        ("vae", {"temporal_downsample": [2, 2, 2]}),
        ("transformer", {"kernels": "triton"}),
        ("transformer", {"eps": 1e9}),
        ("transformer", {"round_time_to_bf16": "yes"}),
        ("sampling", {"num_frames": 8}),  # not 4k+1
    ],
)
def test_a_folders_broken_numbers_are_told_at_once(tiny_model, tmp_path, part, values):
    model = json.loads((tiny_model / "model.json").read_text())
    folder = edit(tiny_model, tmp_path / "edited", **{part: model[part] | values})
    with pytest.raises(CheckpointError, match="edited") as caught:
        resolve_model(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("section", ["transformer", "vae", "text", "sampling", "about", "two_experts", "version"])
@pytest.mark.parametrize("value", [None, [], "text", 5, {"x": 1}])
def test_a_folders_section_of_another_type_is_told(tiny_model, tmp_path, section, value):
    if section == "about" and isinstance(value, dict):
        value = {"title": value}  # what else is known about a model may be anything
    with pytest.raises(CheckpointError, match=r"model\.json"):
        resolve_model(str(edit(tiny_model, tmp_path / "edited", **{section: value})))


@pytest.mark.parametrize("content", ["[" * 60_000, '{"version": ' + "9" * 5000 + "}", "[]", "null", "NaN", "\x00", ""])
def test_a_folder_whose_json_is_none_is_told(tiny_model, tmp_path, content):
    folder = edit(tiny_model, tmp_path / "edited")
    (folder / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json") as caught:
        resolve_model(str(folder))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_attention_heads": 10**9}, "num_attention_heads must be a whole number from 1 to 512"),
        ({"num_attention_heads": []}, "num_attention_heads must be"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"text_len": 0}, "text_len must be"),
        ({"num_layers": 10**9}, "num_layers must be"),
        ({"_class_name": "WanTransformer3DModel", "num_layers": 5}, "num_layers is 1 in the one and 5 in the other"),
        ([], "an object is needed"),
    ],
)
def test_diffusers_configuration_is_checked_too(others_folder, values, words):
    (others_folder / "transformer" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=words):
        resolve_model(str(others_folder))


# ---- parts that do not belong together ----


@pytest.mark.parametrize(
    ("replace_with", "words"),
    [
        (
            TextEncoder(replace(TEXT, d_model=48, num_heads=3)),
            "the width of the text is 32 in the one and 48 in the other",
        ),
        (TextEncoder(replace(TEXT, vocab_size=100)), "329 pieces in the one, 100 embeddings in the other"),
        (
            WanVAE(VAEConfig(dim=8, z_dim=8, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8)),
            "latent channels is 16 .* 8",
        ),
    ],
)
def test_parts_of_different_models_are_told_before_weights_are_read(others_folder, replace_with, words):
    if isinstance(replace_with, TextEncoder):
        save_file(replace_with.state_dict(), others_folder / "text_encoder" / "model.safetensors")
    else:
        torch.save(replace_with.state_dict(), others_folder / "Wan2.1_VAE.pth")
        scale = {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}
        (others_folder / "config.json").write_text(json.dumps(scale))
    with pytest.raises(CheckpointError, match=rf"do not belong together: .*{words}") as caught:
        resolve_model(str(others_folder))
    assert str(caught.value).count(str(others_folder)) == 2


def test_a_text_length_of_another_model_is_told(others_folder):
    (others_folder / "text_encoder" / "config.json").write_text(json.dumps({"text_len": 77}))
    with pytest.raises(CheckpointError, match="the length of the text in tokens is 16 in the one and 77 in the other"):
        resolve_model(str(others_folder))


@pytest.mark.parametrize(("part", "changes"), [("text", {"d_model": 48}), ("transformer", {"num_layers": 2})])
def test_our_folders_files_must_be_as_its_json_says(tiny_model, tmp_path, part, changes):
    model = json.loads((tiny_model / "model.json").read_text())
    folder = edit(tiny_model, tmp_path / "edited", **{part: model[part] | changes})
    with pytest.raises(CheckpointError, match=r"safetensors and .*model\.json do not belong together"):
        resolve_model(str(folder))


# ---- own parts ----


def test_own_parts_take_the_place_of_the_models(tiny_model, others_folder, tmp_path):
    vae = tmp_path / "my.pth"
    torch.save(WanVAE(VAEConfig(dim=16)).state_dict(), vae)
    source = resolve_model(str(tiny_model), vae=str(vae))
    assert source.preset.vae == VAEConfig(dim=16) and fetch_files(source)["vae"] == vae
    (others_folder / "spiece.model").unlink()
    words = shutil.copy(tiny_model / "spiece.model", tmp_path / "words")
    found = fetch_files(
        resolve_model(str(others_folder), vae=str(vae), tokenizer=str(shutil.copy(words, f"{words}.model")))
    )
    assert found["vae"] == vae and found["tokenizer"] == tmp_path / "words.model"


def test_own_parts_of_a_published_model(tmp_path, offline):
    vae = tmp_path / "my.pth"
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), vae)
    source = resolve_model("wan2.1-t2v-1.3b", vae=str(vae))
    assert source.preset.vae.dim == 8 and source.preset.name == "wan2.1-t2v-1.3b"
    with pytest.raises(MissingFilesError, match="3 files are missing") as caught:
        fetch_files(source)
    assert "VAE" not in str(caught.value)
    text = tmp_path / "text.pth"
    torch.save(TextEncoder(TEXT).state_dict(), text)
    with pytest.raises(
        CheckpointError, match=f"Wan's own transformer and the text encoder {text} do not belong together"
    ):
        resolve_model("wan2.1-t2v-1.3b", text_encoder=str(text))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "~nouser/x", "a\0b"])
def test_names_that_are_no_path_are_told(name):
    with pytest.raises((RequestError, MissingFilesError)):
        resolve_model(name)


def test_a_file_that_stands_for_its_folder(tiny_model):
    assert resolve_model(str(tiny_model / "model.json")).path == tiny_model


# ---- damage ----

VALUES = (None, True, 0, -1, 10**9, 10**18, 1e308, "", "16", [], [[1]], [None] * 16, {}, {"a": 1}, "é" * 1000)
CONTENTS = (b"", b"<html>", b"GGUF", b"[]", b"[" * 60_000, b'{"a": ' + b"9" * 5000 + b"}", bytes(300))
NAMES = ("a-high.safetensors", "x_LOW_noise.pth", "config.json", "y.model", "z-00001-of-00003.safetensors")


def damage(path, rng):
    """Do to a file what disks, downloads and editors do."""
    content, kind = path.read_bytes(), rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.rename(path.with_name(rng.choice(NAMES)))
    elif kind == 2:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 3:
        path.write_bytes(rng.choice(CONTENTS))
    elif path.suffix == ".json":
        values = section = json.loads(content)
        while isinstance(section[key := rng.choice(list(section))], dict) and section[key] and rng.random() < 0.9:
            section = section[key]
        section[key] = rng.choice(VALUES)
        path.write_text(json.dumps(values))
    else:  # a byte of a header
        place = 8 + rng.randrange(min(len(content) - 8, 4000))
        path.write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_is_one_line(seed, tiny_model, others_folder, offline, tmp_path):
    rng = random.Random(seed)
    source = tiny_model if seed % 2 else others_folder
    (others_folder / "model_index.json").write_text(json.dumps({"boundary_ratio": None, "transformer_2": [None]}))
    folder = shutil.copytree(source, tmp_path / "damaged")
    damage(rng.choice(sorted(path for path in folder.rglob("*") if path.is_file())), rng)
    try:
        fetch_files(resolve_model(str(folder)))
    except UserError as error:
        for lang in ("en", "zh"):
            words = error.text.render(lang)
            assert "\n" not in words and len(words) < 1500
        assert error.code != "error.internal"
