"""What a model's name means: presets, our folders, other projects' folders and files, on this machine or the hub."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError, RequestError
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
        ({"sampler": "rcm", "num_step": 4}, "sampling has sampler, num_steps, .*, not num_step"),
        ({"sampler": "ddim", "num_steps": 4}, "no usable sampling defaults: sampler must be rcm or flow"),
        ({"sampler": "rcm"}, "no usable sampling defaults: .*num_steps"),
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


def test_two_experts_lie_beside_each_other(tmp_path):
    config = replace(SMALL, in_dim=36, text_dim=4096, text_len=512)
    low = write_transformer(tmp_path / "a14b-low.pth", config)
    origin = resolve_model(str(low))
    assert (origin.preset.task, origin.preset.experts, origin.preset.boundary) == ("i2v", 2, 0.9)
    assert (origin.preset.num_steps, origin.preset.guidance) == (40, 3.5)
    with pytest.raises(MissingFilesError, match="the other must lie beside it"):
        fetch_files(origin)


def test_a_file_that_is_no_transformer_is_told(tmp_path):
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="holds a vae; a model is a transformer's file, or a folder"):
        resolve_model(str(tmp_path / "Wan2.1_VAE.pth"))


def test_clip_models_are_refused_with_the_way_out(tmp_path):
    path = write_transformer(tmp_path / "i2v.pth", replace(SMALL, in_dim=36, image_dim=64))
    with pytest.raises(CheckpointError, match=r"needs CLIP's image encoder; wan2\.2-i2v-a14b does without"):
        resolve_model(str(path))


def test_a_small_models_own_parts_are_not_looked_for_on_the_hub(others_folder, offline):
    (others_folder / "spiece.model").unlink()
    with pytest.raises(MissingFilesError, match="has no tokenizer"):
        fetch_files(resolve_model(str(others_folder)))
