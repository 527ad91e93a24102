"""Strict, streamed loading: peers' files give peers' outputs, 8-bit files meet every linear, faults are named."""

import logging
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.nn.linear import QuantizedLinear
from turbodiffusion.ops.linear.int8 import dequantize_int8_block, quantize_int8_block

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"num_heads": 2, "num_layers": 2, "freq_dim": 64, "text_dim": 96}
DENSE = WanConfig(dim=128, ffn_dim=320, text_len=24, **TINY)
SLA = WanConfig(dim=128, ffn_dim=320, text_len=24, attention_type="sla", **TINY)
TEXT = TextConfig(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=64, text_len=12)


def golden(name):
    return torch.load(GOLDEN / name, weights_only=True)


def quant_config(kind):
    return WanConfig(dim=256, ffn_dim=512, text_len=128, quant_linear=kind, **TINY)


def on_meta(config, dtype=torch.float32):
    return WanTransformer(config, device="meta", dtype=dtype)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turbodiffusion_file_fills_a_model_in_its_own_dtypes(device, dtype):
    model = WanTransformer(SLA, device=device, dtype=dtype)
    wanted = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert len(set(wanted.values())) == (1 if dtype == torch.float32 else 2)
    load_transformer(model, GOLDEN / "t2v_sla.pth")
    state = model.state_dict()
    for name, tensor in golden("t2v_sla.pth").items():
        ours = state.pop(name.replace("attn_op.local_attn", "attention"))
        assert torch.equal(ours, tensor.to(ours.dtype)), name
    assert state == {}
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == wanted
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loaded_weights_do_not_hang_on_the_file(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(golden("t2v_dense.pth"), path)
    model = on_meta(DENSE, torch.bfloat16)
    load_transformer(model, path)
    path.write_bytes(b"\0" * path.stat().st_size)  # in place: a mapped tensor would change
    assert torch.equal(model.head.head.weight, golden("t2v_dense.pth")["head.head.weight"].float())
    assert torch.equal(model.patch_embedding.weight, golden("t2v_dense.pth")["patch_embedding.weight"])


def test_training_checkpoint(tmp_path):
    torch.save({"state_dict": {f"net.{k}": v for k, v in golden("t2v_dense.pth").items()}}, tmp_path / "train.pth")
    model, expected = on_meta(DENSE), on_meta(DENSE)
    load_transformer(model, tmp_path / "train.pth")
    load_transformer(expected, GOLDEN / "t2v_dense.pth")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_original_patch_convolution_computes_the_same(tmp_path):
    state = golden("t2v_dense.pth")
    weight = state["patch_embedding.weight"].float()
    state["patch_embedding.weight"] = weight.reshape(128, 16, 1, 2, 2)
    torch.save(state, tmp_path / "original.pth")
    model = on_meta(DENSE)
    load_transformer(model, tmp_path / "original.pth")
    assert torch.equal(model.patch_embedding.weight, weight)


@pytest.mark.parametrize("image_dim", [None, 48])
def test_diffusers_transformer_computes_the_same(image_dim, tmp_path):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    # diffusers takes the last 512 states for the text's, whatever their number
    config = WanConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=40, image_dim=image_dim)
    peer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=40,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        image_dim=image_dim,
        added_kv_proj_dim=48 if image_dim else None,
    ).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    peer.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model = on_meta(config)
    load_transformer(model, tmp_path)
    x, t, text = torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 512, 40)
    image = torch.randn(1, 257, image_dim) if image_dim else None
    expected = peer(x, t, text, encoder_hidden_states_image=image, return_dict=False)[0]
    velocity = model(x, t, model.encode_context(text, image))
    # float32 on both sides; each of 2 layers adds some 1e-6 relative of rounding in another order.
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_diffusers_vae_computes_the_same(tmp_path):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    peer = AutoencoderKLWan(base_dim=8).eval()
    peer.save_pretrained(tmp_path / "vae")
    vae = WanVAE(VAEConfig(dim=8), device="meta")
    load_vae(vae, tmp_path)
    video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = peer.encode(video).latent_dist.mean
        mean, _ = vae.encode_moments(video)
        # float32 sums in another order through some 30 convolutions
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
        video = vae.decode_whole(mean).clamp(-1, 1)  # as diffusers does
        torch.testing.assert_close(video, peer.decode(expected, return_dict=False)[0], rtol=1e-4, atol=1e-4)


def test_original_vae():
    vae = WanVAE(VAEConfig(dim=8), device="meta")
    load_vae(vae, GOLDEN / "vae.pth")
    state = vae.state_dict()
    for name, tensor in golden("vae.pth").items():
        assert torch.equal(state[name], tensor.float())


def test_transformers_text_encoder_computes_the_same(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    peer = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48)).eval()
    peer.encoder.embed_tokens = peer.shared
    peer.save_pretrained(tmp_path / "text_encoder")
    encoder = TextEncoder(TEXT, device="meta")
    load_text(encoder, tmp_path)
    ids, mask = torch.randint(3, 64, (1, 12)), torch.ones(1, 12, dtype=torch.int64)
    expected = peer(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask), expected, rtol=1e-5, atol=1e-5)  # the same operations


def test_original_text_encoder_gates_with_the_right_matrix(tmp_path):
    """The original multiplies fc1(x) by gelu(gate.0(x)); which of the two is wi_0 shows in the output alone."""
    torch.manual_seed(0)
    ours = TextEncoder(TEXT)
    theirs = {}
    for name, tensor in ours.state_dict().items():
        for part, original in (
            ("shared", "token_embedding"),
            ("encoder.final_layer_norm", "norm"),
            ("encoder.block", "blocks"),
            (".layer.0.layer_norm", ".norm1"),
            (".layer.1.layer_norm", ".norm2"),
            (".layer.0.SelfAttention.relative_attention_bias", ".pos_embedding.embedding"),
            (".layer.0.SelfAttention", ".attn"),
            (".layer.1.DenseReluDense.wi_0", ".ffn.gate.0"),
            (".layer.1.DenseReluDense.wi_1", ".ffn.fc1"),
            (".layer.1.DenseReluDense.wo", ".ffn.fc2"),
        ):
            name = name.replace(part, original)
        theirs[name] = tensor
    torch.save(theirs, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    loaded = TextEncoder(TEXT, device="meta")
    load_text(loaded, tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.randn(3, 32)
    ffn = loaded.encoder.block[0].layer[1].DenseReluDense
    gated = (x @ theirs["blocks.0.ffn.fc1.weight"].T) * torch.nn.functional.gelu(
        x @ theirs["blocks.0.ffn.gate.0.weight"].T, approximate="tanh"
    )
    torch.testing.assert_close(ffn(x), gated @ theirs["blocks.0.ffn.fc2.weight"].T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("kind", ["off", "int8_block", "int8_row", "fp8_row"])
def test_quantized_file_meets_every_kind_of_linear(kind, device):
    model = WanTransformer(quant_config(kind), device=device)
    load_transformer(model, GOLDEN / "t2v_quant.pth")
    file = golden("t2v_quant.pth")
    for name in (name for name in file if name.endswith(".int8_weight")):
        base = name.removesuffix(".int8_weight")
        layer = model.get_submodule(base)
        weight = dequantize_int8_block(file[name], file[f"{base}.scale"])
        if kind == "off":
            assert torch.equal(layer.weight, weight)
        elif kind == "int8_block":
            assert torch.equal(layer.int8_weight, file[name])
            assert torch.equal(layer.scale, file[f"{base}.scale"])
        else:
            recast = QuantizedLinear(*reversed(weight.shape), kind=kind)
            recast.load_weight(weight)
            assert torch.equal(layer.get_buffer(f"{kind[:-4]}_weight"), recast.get_buffer(f"{kind[:-4]}_weight"))
            assert torch.equal(layer.scale, recast.scale)
        assert torch.equal(layer.bias, file[f"{base}.bias"].float())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize(("kind", "level"), [("int8_row", 0.013), ("fp8_row", 0.037)])
def test_the_error_of_a_recast_is_measured(kind, level, caplog):
    """Against the file's weights; at most that of Gaussian weights: see tests/nn/test_linear_module.py, one factor."""
    model = WanTransformer(quant_config(kind), device="meta")
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        error = load_transformer(model, GOLDEN / "t2v_quant.pth")
    off = whole = 0.0
    file = golden("t2v_quant.pth")
    for name in (name for name in file if name.endswith(".int8_weight")):
        base = name.removesuffix(".int8_weight")
        weight = dequantize_int8_block(file[name], file[f"{base}.scale"])
        off += float((model.get_submodule(base).float_weight() - weight).double().square().sum())
        whole += float(weight.double().square().sum())
    assert error == pytest.approx((off / whole) ** 0.5, rel=1e-4)
    assert 0 < error < level
    assert "20 weights rounded to 8 bits, relative error" in caplog.text
    assert load_transformer(on_meta(quant_config("int8_block")), GOLDEN / "t2v_quant.pth") is None


def test_float_file_is_quantized_for_quantized_linears():
    model = on_meta(WanConfig(dim=128, ffn_dim=320, text_len=24, quant_linear="int8_block", **TINY))
    load_transformer(model, GOLDEN / "t2v_dense.pth")
    values, scale = quantize_int8_block(golden("t2v_dense.pth")["blocks.1.ffn.2.weight"])
    assert torch.equal(model.blocks[1].ffn[2].int8_weight, values)
    assert torch.equal(model.blocks[1].ffn[2].scale, scale)


def test_dense_file_into_sla_needs_permission():
    model = WanTransformer(SLA)
    torch.nn.init.ones_(model.blocks[0].self_attn.attention.proj_l.weight)
    with pytest.raises(CheckpointError, match=r"missing 4: .*proj_l.* and 1 more; they belong to SLA.*'original'"):
        load_transformer(model, GOLDEN / "t2v_dense.pth")
    for target in (model, on_meta(SLA)):
        load_transformer(target, GOLDEN / "t2v_dense.pth", allow_missing=("proj_l",))
        assert (target.blocks[0].self_attn.attention.proj_l.weight == 0).all()
        assert (target.blocks[1].self_attn.attention.proj_l.bias == 0).all()


def test_sla_file_into_a_dense_model_is_told():
    with pytest.raises(CheckpointError, match=r"unknown 4: .*load this checkpoint with attention_type 'sla'"):
        load_transformer(on_meta(DENSE), GOLDEN / "t2v_sla.pth")


def test_every_fault_is_named_and_nothing_is_written(tmp_path):
    state = golden("t2v_dense.pth")
    del state["blocks.1.modulation"], state["head.head.bias"]
    state |= {f"extra.{i}": torch.ones(1) for i in range(5)}
    state["blocks.0.norm3.weight"] = torch.ones(127)
    torch.save(state, tmp_path / "bad.pth")
    model = WanTransformer(DENSE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_transformer(model, tmp_path / "bad.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'bad.pth'} does not fit the transformer: missing 2: blocks.1.modulation, head.head.bias; "
        "unknown 5: extra.0, extra.1, extra.2 and 2 more; "
        "of another shape 1: blocks.0.norm3.weight is [127] where the model has [128]"
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("source", "name", "dtype"),
    [
        ("t2v_dense.pth", "blocks.0.ffn.0.weight", torch.int8),
        ("t2v_quant.pth", "blocks.0.ffn.0.int8_weight", torch.uint8),
        ("t2v_quant.pth", "blocks.0.ffn.0.scale", torch.bfloat16),
    ],
)
def test_a_tensor_of_another_kind_is_named(source, name, dtype, tmp_path):
    state = golden(source)
    state[name] = state[name].to(dtype)
    torch.save(state, tmp_path / "bad.pth")
    model = on_meta(DENSE if source == "t2v_dense.pth" else quant_config("int8_block"))
    with pytest.raises(CheckpointError, match=rf"{name} is {dtype}, not torch\."):
        load_transformer(model, tmp_path / "bad.pth")


def peak_bytes(load, mapped):
    """Most bytes of CPU memory that load() took beyond what was there; the mapped file's pages are not counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        load()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if abs(event.nbytes()) != mapped:
            alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("container", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["off", "int8_block"])
def test_peak_memory_is_the_model_and_one_tensor(container, kind, tmp_path):
    from safetensors.torch import save_file

    sizes = {"dim": 256, "ffn_dim": 1024, "num_heads": 2, "num_layers": 6, "freq_dim": 64, "text_dim": 64}
    source = WanTransformer(WanConfig(**sizes)).state_dict()
    path = tmp_path / f"model.{container}"
    (torch.save if container == "pth" else save_file)(source, path)
    model = on_meta(WanConfig(**sizes, quant_linear=kind), torch.bfloat16)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    # The largest tensor in float32, and for quantization its working copies (padded, magnitudes, scaled, rounded).
    working = 1024 * 256 * 4 * (1 if kind == "off" else 5)
    peak = peak_bytes(lambda: load_transformer(model, path), path.stat().st_size)
    assert size <= peak < size + working + 100_000  # what PyTorch keeps of the file's index
    assert sum(tensor.nbytes for tensor in source.values()) > 4 * working  # so that a second copy would be seen
