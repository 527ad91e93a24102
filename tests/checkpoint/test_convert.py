"""Conversion of every family to ours, and the configuration that tensors tell."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from turbodiffusion.checkpoint.convert import convert
from turbodiffusion.checkpoint.files import open_tensors
from turbodiffusion.checkpoint.folder import read_folder, save_folder
from turbodiffusion.checkpoint.infer import read_config, read_header
from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_CONFIG = WanConfig(dim=128, ffn_dim=320, num_heads=2, num_layers=2, freq_dim=64, text_dim=96, text_len=24)
TEXT = TextConfig(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=64)


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # a dense file tells neither its head size nor text_len: published ones are taken
        ("t2v_dense.pth", dataclasses.replace(GOLDEN_CONFIG, num_heads=1, text_len=512)),
        (
            "t2v_sla.pth",
            dataclasses.replace(GOLDEN_CONFIG, text_len=512, attention_type="sla", round_time_to_bf16=True),
        ),
        (
            "t2v_quant.pth",
            dataclasses.replace(GOLDEN_CONFIG, dim=256, ffn_dim=512, text_len=512, round_time_to_bf16=True),
        ),
        ("i2v22.pth", dataclasses.replace(GOLDEN_CONFIG, num_heads=1, ffn_dim=384, in_dim=36, text_len=512)),
    ],
)
def test_transformer_configuration_from_shapes(name, expected):
    assert read_config(GOLDEN / name, "transformer") == expected


def test_config_beside_the_weights_tells_the_rest(tmp_path):
    torch.save(torch.load(GOLDEN / "t2v_dense.pth", weights_only=True), tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2, "text_len": 24}))  # the original's names
    assert read_config(tmp_path, "transformer") == GOLDEN_CONFIG
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_config(tmp_path, "transformer")


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(dim=8),
        VAEConfig(dim=16, dim_mult=(1, 2, 3), temporal_downsample=(True, False), num_res_blocks=1),
    ],
)
def test_vae_configuration_from_shapes(config, tmp_path):
    torch.save(WanVAE(config).state_dict(), tmp_path / "vae.pth")
    assert read_config(tmp_path / "vae.pth", "vae") == config


def test_vae_scale_of_another_latent_must_be_told(tmp_path):
    config = VAEConfig(dim=8, z_dim=2, latents_mean=(0.5, 1.0), latents_std=(2.0, 3.0))
    torch.save(WanVAE(config).state_dict(), tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match="latents_mean"):
        read_config(tmp_path / "vae.pth", "vae")
    (tmp_path / "config.json").write_text(json.dumps({"latents_mean": [0.5, 1.0], "latents_std": [2.0, 3.0]}))
    assert read_config(tmp_path / "vae.pth", "vae") == config


def test_text_configuration_from_shapes(tmp_path):
    torch.save(TextEncoder(TEXT).state_dict(), tmp_path / "text.pth")
    assert read_config(tmp_path / "text.pth", "text") == TEXT


def test_configuration_that_shapes_do_not_tell_is_an_error(tmp_path):
    state = torch.load(GOLDEN / "t2v_dense.pth", weights_only=True)
    del state["patch_embedding.weight"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"lacks 'patch_embedding\.weight'"):
        read_config(tmp_path / "model.pth", "transformer")


@pytest.mark.parametrize("name", ["t2v_dense.pth", "t2v_sla.pth", "t2v_quant.pth", "i2v22.pth"])
def test_transformer_file_loads_by_itself(name, tmp_path):
    target = tmp_path / "out.safetensors"
    assert convert(GOLDEN / name, target) == target
    config = read_config(target, "transformer")
    assert config == read_config(GOLDEN / name, "transformer")
    model, expected = WanTransformer(config, device="meta"), WanTransformer(config, device="meta")
    load_transformer(model, target)
    load_transformer(expected, GOLDEN / name)
    assert same(model, expected)


def test_configuration_given_wins_and_must_fit(tmp_path):
    target = tmp_path / "out.safetensors"
    convert(GOLDEN / "t2v_dense.pth", target, config={"transformer": GOLDEN_CONFIG})
    assert read_config(target, "transformer") == GOLDEN_CONFIG
    target.unlink()
    with pytest.raises(CheckpointError, match=r"unknown 27: blocks\.1\."):
        wrong = dataclasses.replace(GOLDEN_CONFIG, num_layers=1)
        convert(GOLDEN / "t2v_dense.pth", target, config={"transformer": wrong})
    assert list(tmp_path.iterdir()) == []


def test_quantize_gives_the_published_format(tmp_path):
    """The golden file was quantized by another implementation: ours has the same names."""
    target = tmp_path / "out.safetensors"
    convert(GOLDEN / "t2v_quant.pth", target, quantize="int8_block")  # 8-bit weights are left alone
    published = torch.load(GOLDEN / "t2v_quant.pth", weights_only=True)
    file = open_tensors(target)
    assert set(file.shapes) == set(published)
    assert all(torch.equal(file.read(name), tensor) for name, tensor in published.items())

    config = read_config(target, "transformer")
    model = WanTransformer(config, device="meta")
    load_transformer(model, target)
    torch.save(model.state_dict(), tmp_path / "float.pth")
    convert(tmp_path / "float.pth", target, quantize="int8_block")
    again = open_tensors(target)
    assert set(again.shapes) == set(published)


def test_vae_and_text_files(tmp_path):
    convert(GOLDEN / "vae.pth", tmp_path / "vae.safetensors", quantize="int8_block")
    config = read_config(tmp_path / "vae.safetensors", "vae")
    assert config.dim == 8
    load_vae(WanVAE(config, device="meta"), tmp_path / "vae.safetensors")

    encoder = TextEncoder(TEXT)
    torch.save(encoder.state_dict(), tmp_path / "text.pth")
    convert(tmp_path / "text.pth", tmp_path / "text.safetensors")
    loaded = TextEncoder(read_config(tmp_path / "text.safetensors", "text"), device="meta")
    load_text(loaded, tmp_path / "text.safetensors")
    assert same(loaded, encoder)


def diffusers_folder(folder):
    """A tiny model as diffusers saves one, with two experts."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    for name in ("transformer", "transformer_2"):
        WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2
        ).save_pretrained(folder / name)
    AutoencoderKLWan(base_dim=8).save_pretrained(folder / "vae")
    text = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48))
    text.encoder.embed_tokens = text.shared
    text.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"pieces")


def test_diffusers_folder_becomes_ours_and_ours_a_smaller_one(tmp_path):
    diffusers_folder(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", config={"about": {"title": "tiny"}})
    config = read_folder(tmp_path / "ours")
    assert config.two_experts
    assert config.about == {"title": "tiny"}
    assert config.transformer == WanConfig(
        dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=32
    )  # heads of 24: from diffusers' config.json
    assert (config.vae.dim, config.text) == (8, TEXT)
    for part in ("transformer", "transformer_low"):
        model, expected = (WanTransformer(config.transformer, device="meta") for _ in range(2))
        load_transformer(model, tmp_path / "ours", part=part)
        load_transformer(expected, tmp_path / "theirs", part=part)
        assert same(model, expected)

    convert(tmp_path / "ours", tmp_path / "small", quantize="int8_block")
    assert read_folder(tmp_path / "small").about == {"title": "tiny"}
    assert "decoder.middle.0.residual.2.int8_weight" in open_tensors(tmp_path / "small" / "vae.safetensors").shapes
    convert(tmp_path / "small", tmp_path / "again")  # 8-bit convolutions keep their shapes
    vae, expected = (WanVAE(config.vae, device="meta") for _ in range(2))
    load_vae(vae, tmp_path / "again")
    load_vae(expected, tmp_path / "small")
    assert same(vae, expected)


def test_missing_shard_of_the_second_expert_is_not_passed_over(tmp_path):
    diffusers_folder(tmp_path / "theirs")
    weights = tmp_path / "theirs" / "transformer_2" / "diffusion_pytorch_model.safetensors"
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"proj_out.weight": "part-2.safetensors"}})
    )
    with pytest.raises(MissingFilesError, match=r"part-2\.safetensors"):
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_requests_that_make_no_sense_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds a VAE"):
        convert(GOLDEN / "vae.pth", tmp_path / "folder")
    with pytest.raises(CheckpointError, match="there are rcm, for distilled models, and flow"):
        convert(GOLDEN / "t2v_dense.pth", tmp_path / "out.safetensors", sampler="ddim")
    with pytest.raises(CheckpointError, match="not 'fp8_row'"):
        convert(GOLDEN / "vae.pth", tmp_path / "out.safetensors", quantize="fp8_row")
    with pytest.raises(CheckpointError, match="is not a Wan checkpoint"):
        convert(GOLDEN / "sla_op.safetensors", tmp_path / "out.safetensors")


def test_a_folder_without_a_part_is_named(tmp_path):
    save_folder(
        tmp_path / "model",
        config={},
        transformer=WanTransformer(GOLDEN_CONFIG),
        vae=WanVAE(VAEConfig(dim=8)),
        text=TextEncoder(TEXT),
        tokenizer=GOLDEN / "README.md",
    )
    (tmp_path / "model" / "vae.safetensors").unlink()
    with pytest.raises(
        MissingFilesError, match=r"holds no VAE; looked for: vae.safetensors, .*; name a file with --vae"
    ):
        convert(tmp_path / "model", tmp_path / "copy")


# ---- what people have ----


def test_a_file_becomes_a_folder_with_parts_that_the_user_names(tmp_path):
    from shutil import copy

    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save(WanTransformer(dataclasses.replace(GOLDEN_CONFIG, num_heads=1)).state_dict(), folder / "wan.pth")
    with pytest.raises(MissingFilesError, match=r"holds no VAE, text encoder, tokenizer; .*--vae, --text-encoder"):
        convert(folder / "wan.pth", tmp_path / "ours")
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), tmp_path / "v.pth")
    torch.save(TextEncoder(TEXT).state_dict(), tmp_path / "t.pth")
    copy(GOLDEN / "README.md", tmp_path / "words.model")
    parts = {"vae": tmp_path / "v.pth", "text": tmp_path / "t.pth", "tokenizer": tmp_path / "words.model"}
    convert(folder / "wan.pth", tmp_path / "ours", parts=parts)
    assert read_folder(tmp_path / "ours").sampling["sampler"] == "flow"
    convert(folder / "wan.pth", tmp_path / "ours", parts=parts, sampler="rcm")
    sampling = read_folder(tmp_path / "ours").sampling
    assert sampling == {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0, "resolution": "480p"}


def test_a_sampler_is_stored_in_a_file_and_in_a_folder_made_of_it(tmp_path):
    target = tmp_path / "student.safetensors"
    convert(GOLDEN / "t2v_dense.pth", target, sampler="rcm")
    header = read_header(open_checkpoint(target, "transformer"))
    assert header["sampling"] == {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0}
    with pytest.raises(CheckpointError, match="is no transformer"):
        convert(GOLDEN / "vae.pth", tmp_path / "vae.safetensors", sampler="rcm")


def test_our_own_folder_keeps_its_sampling_but_for_the_sampler(tmp_path, tiny_model):
    convert(tiny_model, tmp_path / "same")
    assert read_folder(tmp_path / "same").sampling == read_folder(tiny_model).sampling
    convert(tiny_model, tmp_path / "student", sampler="rcm")
    sampling = read_folder(tmp_path / "student").sampling
    assert sampling == {
        "sampler": "rcm",
        "num_steps": 4,
        "sigma_max": 80.0,
        "resolution": "64x64",
        "num_frames": 5,
    }


def test_a_pair_is_converted_whole_or_not_at_all(tmp_path):
    diffusers_folder(tmp_path / "theirs")
    index = {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "theirs" / "model_index.json").write_text(json.dumps(index))
    convert(tmp_path / "theirs", tmp_path / "ours")
    ours = read_folder(tmp_path / "ours")
    assert ours.two_experts
    assert (ours.sampling["boundary"], ours.sampling["guidance"], ours.sampling["guidance_low"]) == (0.875, 4.0, 3.0)
    with pytest.raises(CheckpointError, match="two networks: give a folder as the target"):
        convert(tmp_path / "theirs", tmp_path / "one.safetensors")
    (tmp_path / "theirs" / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingFilesError, match=r"transformer_2/diffusion_pytorch_model.safetensors beside it"):
        convert(tmp_path / "theirs", tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_comfyuis_text_encoder_becomes_ours_with_its_tokenizer(tmp_path, tiny_model):
    words = (tiny_model / "spiece.model").read_bytes()
    encoder, state = TextEncoder(TEXT), {}
    for name, tensor in encoder.state_dict().items():
        state[name] = tensor
        if name.endswith("SelfAttention.q.weight"):
            state[name] = (tensor / 0.5).to(torch.float8_e4m3fn)
            state[name.replace("weight", "scale_weight")] = torch.tensor(0.5)
            state[name.replace("weight", "scale_input")] = torch.tensor(1.0)
    state |= {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    state |= {"spiece_model": torch.tensor(list(words), dtype=torch.uint8)}
    save_file(state, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    torch.save(WanTransformer(dataclasses.replace(GOLDEN_CONFIG, num_heads=1)).state_dict(), tmp_path / "wan.pth")
    torch.save(WanVAE(VAEConfig(dim=8)).state_dict(), tmp_path / "v.pth")
    convert(tmp_path, tmp_path / "ours")
    assert (tmp_path / "ours" / "spiece.model").read_bytes() == words
    loaded = TextEncoder(TEXT, device="meta")
    load_text(loaded, tmp_path / "ours")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    there, here = encoder.state_dict()[name], loaded.state_dict()[name]
    assert (here - there).norm() < 0.05 * there.norm() and (here != there).any()
    assert torch.equal(loaded.state_dict()["shared.weight"], encoder.state_dict()["shared.weight"])
