"""The transformer against another team's outputs (tests/golden) and against diffusers' on random weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from turbodiffusion.models.wan import WanConfig, WanTransformer, patchify, unpatchify

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = WanConfig(dim=128, ffn_dim=320, num_heads=2, num_layers=2, freq_dim=64, text_dim=96, text_len=24)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def golden(name: str, config: WanConfig, dtype=torch.float32) -> tuple[WanTransformer, dict[str, Tensor]]:
    model = WanTransformer(config, dtype=dtype)
    state = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    published = "self_attn.attn_op.local_attn.proj_l"
    model.load_state_dict({key.replace(published, "self_attn.attention.proj_l"): w for key, w in state.items()})
    return model, load_file(GOLDEN / f"{name}_io.safetensors")


# 1e-5: both are float32, their sums run in another order (measured 4e-7)
@torch.no_grad()
def test_text_to_video_as_the_independent_implementation():
    model, io = golden("t2v_dense", SMALL)
    velocity = model(io["x"], io["t"][0], model.encode_context(io["context"]))
    assert velocity.dtype == torch.float32
    assert relative(velocity, io["velocity_fp32"]) < 1e-5


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_the_independent_bfloat16():
    model, io = golden("t2v_dense", SMALL, dtype=torch.bfloat16)
    velocity = model(io["x"], io["t"][0], model.encode_context(io["context"]))
    assert velocity.dtype == torch.float32
    theirs = relative(io["velocity_bf16"], io["velocity_fp32"])
    assert relative(velocity, io["velocity_fp32"]) < 1.5 * theirs  # two roundings of one network: alike, not equal


@torch.no_grad()
def test_image_to_video_2_2_as_the_independent_implementation():
    config = dataclasses.replace(SMALL, ffn_dim=384, in_dim=36)
    model, io = golden("i2v22", config)
    velocity = model(torch.cat((io["x"], io["cond"]), dim=1), io["t"][0], model.encode_context(io["context"]))
    assert relative(velocity, io["velocity_fp32"]) < 1e-5


@torch.no_grad()
def test_sla_as_the_independent_implementation():
    io = load_file(GOLDEN / "t2v_sla_io.safetensors")
    model, _ = golden("t2v_sla", dataclasses.replace(SMALL, attention_type="sla", sla_topk=float(io["topk"])))
    velocity = model(io["x"], io["t"][0], model.encode_context(io["context"]))
    # 1e-3: their attention rounds to bfloat16 inside, 2^-9 of each of its outputs, and ours does not
    assert relative(velocity, io["velocity_fp32"]) < 1e-3


@torch.no_grad()
def test_published_int8_weights_as_the_independent_implementation():
    config = dataclasses.replace(SMALL, dim=256, ffn_dim=512, text_len=128, quant_linear="int8_block")
    model, io = golden("t2v_quant", config, dtype=torch.bfloat16)
    velocity = model(io["x"], io["t"][0], model.encode_context(io["context"]))
    # 1 %: what eight bits themselves cost this network (velocity_fp32); rounding before it sends values to either side
    assert relative(velocity, io["velocity_quant"]) < 0.01


def diffusers_key(key: str) -> str:
    """Wan's name of a tensor to diffusers'."""
    for ours, theirs in (
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
        ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
        ("head.head", "proj_out"),
        ("head.modulation", "scale_shift_table"),
        (".modulation", ".scale_shift_table"),
        (".self_attn.", ".attn1."),
        (".cross_attn.", ".attn2."),
        (".norm_k_img.", ".norm_added_k."),
        (".k_img.", ".add_k_proj."),
        (".v_img.", ".add_v_proj."),
        (".q.", ".to_q."),
        (".k.", ".to_k."),
        (".v.", ".to_v."),
        (".o.", ".to_out.0."),
        (".norm3.", ".norm2."),
        (".ffn.0.", ".ffn.net.0.proj."),
        (".ffn.2.", ".ffn.net.2."),
    ):
        key = key.replace(ours, theirs)
    return key


def diffusers_model(config: WanConfig) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        eps=config.eps,
        image_dim=config.image_dim,
        added_kv_proj_dim=config.dim if config.image_dim else None,
    )


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(dataclasses.replace(SMALL, num_heads=4), id="t2v"),
        # text_len 512: diffusers splits image from text tokens at that number, whatever the configuration
        pytest.param(dataclasses.replace(SMALL, in_dim=36, image_dim=80, text_len=512), id="wan2.1-i2v"),
    ],
)
@torch.no_grad()
def test_as_diffusers(config):
    torch.manual_seed(0)
    ours, theirs = WanTransformer(config), diffusers_model(config).eval()
    for weight in ours.parameters():  # no zeros and ones left: each weight must be in its place
        weight += 0.05 * torch.randn_like(weight)
    state = {diffusers_key(key): w for key, w in ours.state_dict().items()}
    state["patch_embedding.weight"] = state["patch_embedding.weight"].unflatten(1, (config.in_dim, 1, 2, 2))
    theirs.load_state_dict(state)
    x = torch.randn(2, config.in_dim, 3, 10, 6)
    t = torch.tensor([3.5, 17.25])  # small: diffusers takes the sinusoid in float32, off by 1e-7 t radians
    text = torch.randn(2, config.text_len, config.text_dim)
    image = None if config.image_dim is None else torch.randn(2, 7, config.image_dim)
    expected = theirs(x, t, text, image).sample
    # 1e-5: both are float32, their sums run in another order
    assert relative(ours(x, t, ours.encode_context(text, image)), expected) < 1e-5


def test_patchify_orders_tokens_by_place_and_features_by_channel():
    x = torch.arange(1 * 3 * 2 * 4 * 6).view(1, 3, 2, 4, 6)
    tokens = patchify(x)
    assert tokens.shape == (1, 2 * 2 * 3, 3 * 4)
    t, h, w = 1, 1, 2
    assert torch.equal(tokens[0, (t * 2 + h) * 3 + w], x[0, :, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten())


def test_unpatchify_reads_features_by_place_then_channel():
    patches = torch.arange(1 * 2 * 2 * 3 * 12).view(1, 12, 12)
    video = unpatchify(patches, (2, 2, 3))
    assert video.shape == (1, 3, 2, 4, 6)
    t, h, w = 1, 1, 2
    patch = video[0, :, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
    assert torch.equal(patch.permute(1, 2, 0).flatten(), patches[0, (t * 2 + h) * 3 + w])
