"""The key maps, name for name and shape for shape, at the published sizes (nothing is allocated)."""

from pathlib import Path

import pytest
import torch

from turbodiffusion.checkpoint.files import TensorFile
from turbodiffusion.checkpoint.formats import interpret
from turbodiffusion.config import TextConfig, WanConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer

PUBLISHED = {
    "Wan2.1-T2V-1.3B": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "Wan2.1-T2V-14B": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "Wan2.2-I2V-A14B": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36),
    "Wan2.1-I2V-14B": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=36, image_dim=1280),
}
T5_LAYER = {
    "norm1": (4096,),
    "norm2": (4096,),
    **{f"attn.{name}": (4096, 4096) for name in "qkvo"},
    "pos_embedding.embedding": (32, 64),
    "ffn.gate.0": (10240, 4096),
    "ffn.fc1": (10240, 4096),
    "ffn.fc2": (4096, 10240),
}


def on_file(shapes):
    """A checkpoint that has names and shapes alone."""

    def read(name):
        raise AssertionError(f"{name} was read, though names and shapes are enough")

    return TensorFile(Path("published"), {name: tuple(shape) for name, shape in shapes.items()}, read)


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_diffusers_transformer(name):
    from diffusers import WanTransformer3DModel

    config = PUBLISHED[name]
    image = config.image_dim is not None
    with torch.device("meta"):
        peer = WanTransformer3DModel(
            num_attention_heads=config.num_heads,
            in_channels=config.in_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            image_dim=config.image_dim,
            added_kv_proj_dim=config.dim if image else None,
        )
    checkpoint = interpret(on_file(shapes_of(peer)), "transformer")
    assert checkpoint.shapes == shapes_of(WanTransformer(config, device="meta"))


def test_original_transformer_has_a_convolution_for_its_patches():
    ours = shapes_of(WanTransformer(PUBLISHED["Wan2.1-T2V-1.3B"], device="meta"))
    original = ours | {"patch_embedding.weight": (1536, 16, 1, 2, 2)}
    assert interpret(on_file(original), "transformer").shapes == ours


@pytest.mark.parametrize("prefix", ["", "net."])
def test_turbodiffusion_transformer_with_sla(prefix):
    config = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, attention_type="sla")
    ours = shapes_of(WanTransformer(config, device="meta"))
    theirs = {
        prefix + name.replace("self_attn.attention.proj_l", "self_attn.attn_op.local_attn.proj_l"): shape
        for name, shape in ours.items()
    }
    assert sum("attn_op.local_attn.proj_l.weight" in name for name in theirs) == 30
    assert interpret(on_file(theirs), "transformer").shapes == ours


def test_turbodiffusion_quantized_transformer_with_sla():
    config = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, attention_type="sla")
    float_model = shapes_of(WanTransformer(config, device="meta"))
    quantized = {}
    for name, shape in float_model.items():
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2 and "proj_l" not in name:
            base = name.removesuffix(".weight")
            quantized[f"{base}.int8_weight"] = shape
            quantized[f"{base}.scale"] = (-(-shape[0] // 128), -(-shape[1] // 128))
        else:
            quantized[name] = shape
    assert sum(name.endswith("int8_weight") for name in quantized) == 30 * 10
    checkpoint = interpret(on_file(quantized), "transformer")
    assert checkpoint.shapes == float_model
    assert sum(map(checkpoint.quantized, checkpoint.shapes)) == 30 * 10


def test_diffusers_vae():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        peer = AutoencoderKLWan()
    assert interpret(on_file(shapes_of(peer)), "vae").shapes == shapes_of(WanVAE(device="meta"))


def test_original_vae_has_our_names():
    ours = shapes_of(WanVAE(device="meta"))
    golden = torch.load(Path(__file__).parents[1] / "golden" / "vae.pth", weights_only=True, mmap=True)
    assert set(ours) == set(golden)
    assert interpret(on_file(ours), "vae").shapes == ours


@pytest.mark.parametrize("tables", [["shared.weight"], ["encoder.embed_tokens.weight"]])
def test_transformers_text_encoder(tables):
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(d_model=4096, num_layers=24, num_heads=64, d_kv=64, d_ff=10240, vocab_size=256384)
    with torch.device("meta"):
        peer = shapes_of(UMT5EncoderModel(config))
    layers = {name: shape for name, shape in peer.items() if name.startswith(("encoder.block", "encoder.final"))}
    assert set(peer) == set(layers) | {"shared.weight", "encoder.embed_tokens.weight"}
    file = on_file(layers | dict.fromkeys(tables, (256384, 4096)))
    assert interpret(file, "text").shapes == shapes_of(TextEncoder(TextConfig(), device="meta"))


def test_original_text_encoder():
    names = {f"blocks.{i}.{name}.weight": shape for i in range(24) for name, shape in T5_LAYER.items()}
    file = on_file({"token_embedding.weight": (256384, 4096), **names, "norm.weight": (4096,)})
    assert interpret(file, "text").shapes == shapes_of(TextEncoder(TextConfig(), device="meta"))


@pytest.mark.parametrize(
    ("shapes", "part", "message"),
    [
        ({"decoder.head.0.gamma": (8, 1, 1, 1)}, "transformer", "it holds a VAE"),
        ({"a": (1,), "b": (1,), "c": (1,), "d": (1,)}, "vae", "none of the known families has a, b, c and 1 more"),
    ],
)
def test_another_part_or_a_foreign_file_is_named(shapes, part, message):
    with pytest.raises(CheckpointError, match=message):
        interpret(on_file(shapes), part)


def test_int8_weight_without_its_scale_is_named():
    shapes = {"time_projection.1.weight": (8, 4), "blocks.0.ffn.0.int8_weight": (256, 128)}
    with pytest.raises(CheckpointError, match=r"lacks blocks\.0\.ffn\.0\.scale"):
        interpret(on_file(shapes), "transformer")
    with pytest.raises(CheckpointError, match=r"needs scales \[2, 1\].* is \[1, 1\]"):
        interpret(on_file(shapes | {"blocks.0.ffn.0.scale": (1, 1)}), "transformer")


@pytest.mark.parametrize("header", ["{", "[1]", '{"decoder.conv1.weight": 3}'])
def test_damaged_header_is_named(header):
    file = TensorFile(Path("f"), {"decoder.head.0.gamma": (8,)}, lambda name: torch.zeros(8), {"shapes": header})
    with pytest.raises(CheckpointError, match="damaged header"):
        interpret(file, "vae")


def test_header_shape_of_another_size_is_named():
    shapes = {"decoder.head.0.gamma": (8,), "conv1.int8_weight": (128, 128), "conv1.scale": (1, 1)}
    header = {"shapes": '{"conv1.weight": [128, 129]}'}
    file = TensorFile(Path("f"), shapes, lambda name: torch.zeros(8), header)
    with pytest.raises(CheckpointError, match=r"cannot be \[128, 129\]"):
        interpret(file, "vae")


def test_a_name_given_twice_must_agree():
    one, two = torch.ones(4, 2), torch.ones(4, 2)
    tensors = {"shared.weight": one, "encoder.embed_tokens.weight": two, "encoder.final_layer_norm.weight": one[:, 0]}
    file = TensorFile(Path("f"), {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__)
    assert set(interpret(file, "text").shapes) == {"shared.weight", "encoder.final_layer_norm.weight"}
    two[3, 1] = 2
    with pytest.raises(CheckpointError, match=r"shared\.weight twice"):
        interpret(file, "text")


# ---- prefixes and wrappers of people's files ----


@pytest.mark.parametrize(
    "wrap",
    [
        "model.diffusion_model.{}",
        "diffusion_model.{}",
        "module.{}",
        "_orig_mod.{}",
        "model._orig_mod.{}",
        "module._checkpoint_wrapped_module.{}",
        "generator.model._fsdp_wrapped_module.{}",
        "net_ema.{}",
    ],
)
def test_what_stands_before_the_names_is_taken_off(wrap):
    ours = shapes_of(WanTransformer(PUBLISHED["Wan2.1-T2V-1.3B"], device="meta"))
    theirs = {
        wrap.format(name.replace("blocks.3.", "blocks.3._checkpoint_wrapped_module.")): s for name, s in ours.items()
    }
    assert interpret(on_file(theirs), "transformer").shapes == ours


def test_of_an_average_and_the_last_step_the_average_is_taken():
    last, average = (
        {"net.a": (1,), "net.time_projection.1.weight": (6, 1)},
        {"net_ema.time_projection.1.weight": (12, 2)},
    )
    checkpoint = interpret(on_file(last | average), "transformer")
    assert checkpoint.shapes == {"time_projection.1.weight": (12, 2)}


def test_comfyuis_file_of_a_whole_model_has_all_parts():
    transformer = shapes_of(WanTransformer(PUBLISHED["Wan2.1-T2V-1.3B"], device="meta"))
    vae, text = shapes_of(WanVAE(device="meta")), shapes_of(TextEncoder(TextConfig(), device="meta"))
    theirs = {f"model.diffusion_model.{name}": shape for name, shape in transformer.items()}
    theirs |= {f"vae.{name}": shape for name, shape in vae.items()}
    theirs |= {f"text_encoders.umt5xxl.transformer.{name}": shape for name, shape in text.items()}
    theirs |= {"text_encoders.umt5xxl.transformer.scaled_fp8": (2,), "text_encoders.umt5xxl.spiece_model": (9,)}
    for part, shapes in (("transformer", transformer), ("vae", vae), ("text", text)):
        assert interpret(on_file(theirs), part).shapes == shapes
    plain = transformer | {name: shape for name, shape in theirs.items() if name.startswith("vae.")}
    assert interpret(on_file(plain), "transformer").shapes == transformer


def test_what_does_not_fit_is_still_unknown():
    """Only known prefixes of other parts are left out: a tensor that no network has must not be lost without a word."""
    shapes = {"time_projection.1.weight": (6, 1), "blocks.0.mystery.weight": (2, 2), "extra.weight": (1,)}
    assert set(interpret(on_file(shapes), "transformer").shapes) == set(shapes)


def test_the_decoder_of_a_whole_umt5_is_left_out():
    ours = shapes_of(TextEncoder(TextConfig(), device="meta"))
    assert (
        interpret(on_file(ours | {"decoder.block.0.x.weight": (1,), "lm_head.weight": (2, 1)}), "text").shapes == ours
    )


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_fp8_weights_are_the_floats_that_they_stand_for(suffix, rows):
    torch.manual_seed(0)
    weight = torch.randn(8, 4)
    scale = weight.abs().amax(1, keepdim=True) / 448 if rows else weight.abs().max().reshape(1) / 448
    tensors = {
        "decoder.head.0.gamma": torch.ones(8, dtype=torch.bfloat16).to(torch.float8_e5m2),
        "conv1.weight": (weight / scale).to(torch.float8_e4m3fn),
        f"conv1{suffix}": scale,
        "conv1.scale_input": torch.ones(1),
        "scaled_fp8": torch.zeros(0),
    }
    file = TensorFile(Path("f"), {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__)
    checkpoint = interpret(file, "vae")
    assert checkpoint.shapes == {"decoder.head.0.gamma": (8,), "conv1.weight": (8, 4)}
    assert checkpoint.read("conv1.weight").dtype == torch.bfloat16
    assert (checkpoint.read("conv1.weight") - weight).abs().max() < 0.07 * weight.abs().max()
    assert torch.equal(checkpoint.read("decoder.head.0.gamma"), torch.ones(8))
    with checkpoint.prefetch(torch.device("cpu")) as stored:
        for name in stored.shapes:
            assert torch.equal(stored.read(name), checkpoint.read(name))


def test_fp8_with_scales_of_another_kind_is_named():
    shapes = {"decoder.head.0.gamma": (8,), "conv1.weight": (8, 4), "conv1.weight_scale": (2, 1)}
    with pytest.raises(CheckpointError, match="quantized in a form that is not read"):
        interpret(on_file(shapes), "vae")
