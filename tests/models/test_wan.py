"""The transformer against another team's outputs (tests/golden) and against diffusers' on random weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd import forward_ad

from turbodiffusion.config import WanConfig
from turbodiffusion.models.wan import WanTransformer, patchify, unpatchify

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


REAL = {
    "wan2.1-t2v-1.3b": (WanConfig(1536, 8960, 12, 30), 1.419e9),
    "wan2.1-t2v-14b": (WanConfig(5120, 13824, 40, 40), 14.289e9),
    "wan2.2-i2v-a14b": (WanConfig(5120, 13824, 40, 40, in_dim=36), 14.289e9),
    "wan2.1-i2v-14b": (WanConfig(5120, 13824, 40, 40, in_dim=36, image_dim=1280), 16.4e9),
}


@pytest.mark.parametrize(("config", "parameters"), REAL.values(), ids=REAL)
def test_real_sizes_have_diffusers_tensors(config, parameters):
    with torch.device("meta"):
        theirs = {key: tuple(w.shape) for key, w in diffusers_model(config).state_dict().items()}
    theirs["patch_embedding.weight"] = (config.dim, config.in_dim * 4)
    ours = WanTransformer(config, device="meta").state_dict()
    assert {diffusers_key(key): tuple(w.shape) for key, w in ours.items()} == theirs
    assert sum(w.numel() for w in ours.values()) == pytest.approx(parameters, rel=0.001)


@pytest.mark.parametrize("attention_type", ["original", "sla", "sage", "sagesla"])
@pytest.mark.parametrize("quant_linear", ["off", "int8_block", "fp8_row"])
def test_keys_of_every_kind(attention_type, quant_linear):
    config = dataclasses.replace(SMALL, image_dim=80, attention_type=attention_type, quant_linear=quant_linear)
    keys = set(WanTransformer(config, device="meta").state_dict())
    dense = set(WanTransformer(dataclasses.replace(SMALL, image_dim=80), device="meta").state_dict())
    if attention_type in ("sla", "sagesla"):
        dense |= {f"blocks.{n}.self_attn.attention.proj_l.{w}" for n in range(2) for w in ("weight", "bias")}
    if quant_linear != "off":
        matrices = ("q", "k", "v", "o", "k_img", "v_img", "0", "2")
        replaced = {
            key
            for key in dense
            if key.startswith("blocks.") and key.endswith(".weight") and key.split(".")[-2] in matrices
        }
        assert len(replaced) == 2 * 12
        dense -= replaced
        for name in ("scale", "fp8_weight" if quant_linear == "fp8_row" else "int8_weight"):
            dense |= {key.removesuffix("weight") + name for key in replaced}
    assert keys == dense


def test_dtypes_are_the_constructors():
    config = dataclasses.replace(SMALL, image_dim=80, attention_type="sla")
    state = WanTransformer(config, device="meta", dtype=torch.bfloat16).state_dict()
    wide = {key for key, weight in state.items() if weight.dtype == torch.float32}
    wide_parts = ("time_", "head.", "modulation", "norm", "proj_l", "img_emb.proj.0", "img_emb.proj.4")
    assert wide == {key for key in state if any(part in key for part in wide_parts)}
    assert all(weight.dtype == torch.bfloat16 for key, weight in state.items() if key not in wide)


TINY = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=5)


def perturbed(config: WanConfig, dtype: torch.dtype = torch.float32) -> WanTransformer:
    """A network whose head is not zero, so that everything behind it shows."""
    torch.manual_seed(0)
    model = WanTransformer(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def inputs(config: WanConfig, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_dim, 3, 8, 6, generator=generator)
    t = 1000 * torch.rand(batch, generator=generator)
    return x, t, torch.randn(batch, config.text_len, config.text_dim, generator=generator)


@torch.no_grad()
def test_videos_of_a_batch_do_not_mix():
    model, (x, t, text) = perturbed(TINY), inputs(TINY)
    together = model(x, t, model.encode_context(text))
    apart = [model(x[i : i + 1], t[i : i + 1], model.encode_context(text[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)  # other shapes, other order of sums


@pytest.mark.parametrize("attention_type", ["original", "sla"])
def test_every_weight_receives_a_gradient(attention_type):
    config = dataclasses.replace(TINY, image_dim=10, attention_type=attention_type, sla_block_q=16, sla_block_k=8)
    model, (x, t, text) = perturbed(config), inputs(config)
    x.requires_grad_()
    model(x, t, model.encode_context(text, torch.randn(2, 3, 10))).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_gradient_is_the_slope():
    """Directional derivative of the whole network in float32 against a central difference."""
    model, (x, t, text) = perturbed(TINY), inputs(TINY)
    direction = torch.randn_like(x)

    def loss(step: float) -> Tensor:
        return model(x + step * direction, t, model.encode_context(text)).square().mean()

    x.requires_grad_()
    loss(0.0).backward()
    with torch.no_grad():
        slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    # 1 %: the difference's own error, of third order in the step and of float32 rounding over it
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=0.01)


@torch.no_grad()
def test_autocast_leaves_the_time_path_and_the_head_in_float32():
    model, (x, t, text) = perturbed(TINY), inputs(TINY)
    expected = model.time_modulation(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model.time_modulation(t)
        velocity = model(x, t, model.encode_context(text))
    assert all(map(torch.equal, actual, expected))
    assert velocity.dtype == torch.float32
    # 5 %: bfloat16 linears (2^-9 a rounding) in two blocks; above 0, or autocast had no effect
    assert 0 < relative(velocity, model(x, t, model.encode_context(text))) < 0.05


@torch.no_grad()
def test_time_is_rounded_to_bfloat16_where_the_checkpoint_was_trained_so():
    rounding = perturbed(dataclasses.replace(TINY, round_time_to_bf16=True))
    exact = WanTransformer(TINY)
    exact.load_state_dict(rounding.state_dict())
    times, rounded = torch.tensor([987.65, 608.98]), torch.tensor([988.0, 608.0])
    assert all(map(torch.equal, rounding.time_modulation(times), exact.time_modulation(rounded)))
    assert not torch.equal(exact.time_modulation(times)[0], exact.time_modulation(rounded)[0])


@pytest.mark.slow
def test_compiles_without_a_break_and_for_another_size():
    """The training step as torch.compile captures it; "eager" runs the captured graph without generating code."""
    model, (x, t, text) = perturbed(dataclasses.replace(TINY, num_layers=1)), inputs(TINY)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x, t, model.encode_context(text)).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for video in (x, x[:, :, :2]):
        expected = torch.autograd.grad(loss(video), model.head.head.weight)
        assert torch.equal(torch.autograd.grad(compiled(video), model.head.head.weight)[0], expected[0])


def test_training_may_follow_generation_of_the_same_size():
    model, (x, t, text) = perturbed(TINY), inputs(TINY)
    x = x[:, :, :, :4]  # a size of its own: its rope angles are first made here
    with torch.inference_mode():
        model(x, t, model.encode_context(text))
    model(x, t, model.encode_context(text)).sum().backward()
    assert model.patch_embedding.weight.grad.any()


@torch.no_grad()
def test_fresh_network_is_ready_for_training():
    torch.manual_seed(0)
    model = WanTransformer(SMALL)
    x, t, text = torch.randn(1, 16, 1, 4, 4), torch.ones(1), torch.randn(1, SMALL.text_len, SMALL.text_dim)
    assert not model(x, t, model.encode_context(text)).any()
    block = model.blocks[0]
    bound = (6 / (SMALL.dim + SMALL.ffn_dim)) ** 0.5  # Xavier's
    assert 0.99 * bound < block.ffn[0].weight.abs().max() <= bound
    assert model.text_embedding[0].weight.std() == pytest.approx(0.02, rel=0.05)
    assert block.modulation.std() == pytest.approx(SMALL.dim**-0.5, rel=0.1)
    biases = [weight for name, weight in model.named_parameters() if name.endswith(".bias")]
    assert not any(weight.any() for weight in biases)


def test_reset_parameters_forgets_what_was_loaded():
    config = dataclasses.replace(TINY, image_dim=10, attention_type="sla")
    model = perturbed(config)
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    fresh = WanTransformer(config, device="meta").to_empty(device="cpu")
    fresh.reset_parameters()
    assert all(torch.equal(weight, fresh.state_dict()[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 130}, "num_heads times an even head dim"),
        ({"num_heads": 64}, "at least 6"),
        ({"num_layers": 0}, "num_layers must be a whole number from 1 to 200, got 0"),
        ({"ffn_dim": 1.5}, "ffn_dim must be a whole number from 1 to 131072, got 1.5"),
        ({"image_dim": 0}, "image_dim must be a whole number"),
        ({"freq_dim": 63}, "freq_dim must be even"),
        ({"eps": 0.0}, "eps must be over 0"),
        ({"num_layers": 10**9}, "got 1000000000"),
        ({"dim": True}, "dim must be a whole number"),
        ({"sla_topk": 0.0}, "sla_topk must be over 0"),
        ({"sla_topk": 1.5}, "at most 1"),
        ({"sla_block_q": -64}, "sla_block_q must be a whole number"),
        ({"attention_type": "flash"}, "one of original, sla, sage, sagesla, got 'flash'"),
        ({"quant_linear": "on"}, "one of off, int8_block, int8_row, fp8_row, got 'on'"),
    ],
)
def test_impossible_configurations_raise(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_misshapen_inputs_raise():
    model, (x, t, text) = perturbed(TINY), inputs(TINY)
    context = model.encode_context(text)
    with pytest.raises(ValueError, match=r"x_BCTHW must be \[B, 16, T, even H, even W\], got \[2, 16, 3, 8, 5\]"):
        model(x[..., :5], t, context)
    with pytest.raises(ValueError, match=r"got \[2, 15, 3, 8, 6\]"):
        model(x[:, :15], t, context)
    with pytest.raises(ValueError, match=r"t_B must be \[2\], one time a video, got \[1\]"):
        model(x, t[:1], context)
    with pytest.raises(ValueError, match=r"prompt_embeds_BSE must be \[B, 5, 12\], got \[2, 4, 12\]"):
        model.encode_context(text[:, :4])
    with pytest.raises(ValueError, match="image_embeds_BNE fits no network"):
        model.encode_context(text, torch.zeros(2, 3, 10))
    with pytest.raises(ValueError, match="image_embeds_BNE is needed"):
        perturbed(dataclasses.replace(TINY, image_dim=10)).encode_context(text)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_the_network_has_a_tangent_in_place_and_time():
    """Forward mode, as rCM's consistency loss asks for it, against a central difference."""
    torch.manual_seed(0)
    model = WanTransformer(SMALL)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "bias" in name:  # the head and the modulation begin at zero
            torch.nn.init.normal_(parameter, std=0.05)
    context = model.encode_context(torch.randn(1, SMALL.text_len, SMALL.text_dim))
    x, t, dx, dt = torch.randn(1, 16, 3, 8, 8), torch.tensor([500.0]), torch.randn(1, 16, 3, 8, 8), torch.tensor([20.0])
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x, dx), forward_ad.make_dual(t, dt), context)
        velocity, tangent = forward_ad.unpack_dual(dual)
    assert relative(velocity, model(x, t, context)) < 1e-6
    step = 3e-3
    difference = (model(x + step * dx, t + step * dt, context) - model(x - step * dx, t - step * dt, context)) / (
        2 * step
    )
    assert relative(tangent, difference) < 5e-3  # what is left out grows with the step's square, rounding falls with it
