"""Counts by arithmetic against the networks themselves, on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from turbodiffusion.config import LINEAR_KINDS, TextConfig, VAEConfig, WanConfig
from turbodiffusion.memory.weights import text_bytes, text_layer_parameters, transformer_bytes, vae_bytes
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import MODELS

SMALL = WanConfig(dim=192, ffn_dim=320, num_heads=3, num_layers=3, text_dim=48, text_len=16, freq_dim=32)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def size_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("linears", LINEAR_KINDS)
@pytest.mark.parametrize("attention", ["original", "sagesla"])
@pytest.mark.parametrize("image", [{}, {"in_dim": 36}, {"in_dim": 36, "image_dim": 80}])
def test_transformer(dtype, linears, attention, image):
    config = replace(SMALL, quant_linear=linears, attention_type=attention, **image)
    assert transformer_bytes(config, dtype) == size_of(WanTransformer(config, device="meta", dtype=DTYPES[dtype]))


@pytest.mark.parametrize("name", MODELS)
def test_named_models_at_their_real_sizes(name):
    preset = MODELS[name]
    network = WanTransformer(preset.transformer, device="meta", dtype=torch.bfloat16)
    assert transformer_bytes(preset.transformer, "bfloat16") == size_of(network)
    assert text_bytes(preset.text, "bfloat16") == size_of(TextEncoder(preset.text, device="meta", dtype=torch.bfloat16))
    assert vae_bytes(preset.vae) == size_of(WanVAE(preset.vae, device="meta"))


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(dim=8),
        VAEConfig(dim=12, num_res_blocks=1, temporal_downsample=(True, False, True)),
        VAEConfig(dim=8, dim_mult=(1, 2, 2), temporal_downsample=(False, True)),
    ],
)
def test_vae(config):
    assert vae_bytes(config) == size_of(WanVAE(config, device="meta"))


def test_text_layer():
    config = TextConfig(d_model=64, num_layers=2, num_heads=4, d_kv=8, d_ff=96, vocab_size=512, text_len=32)
    encoder = TextEncoder(config, device="meta")
    assert text_bytes(config, "float32") == size_of(encoder)
    assert 4 * text_layer_parameters(config) == size_of(encoder.encoder.block[0])
