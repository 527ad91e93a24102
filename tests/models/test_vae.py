"""The VAE against an independent implementation's outputs, against diffusers, and against itself in its two modes."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from turbodiffusion.errors import UserError
from turbodiffusion.models.vae import VAEConfig, WanVAE

GOLDEN = Path(__file__).parent.parent / "golden"
IDENTITY = {"latents_mean": (0.0,) * 16, "latents_std": (1.0,) * 16}


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(scope="module")
def golden() -> tuple[WanVAE, dict[str, torch.Tensor]]:
    vae = WanVAE(VAEConfig(dim=8, **IDENTITY))
    vae.load_state_dict(torch.load(GOLDEN / "vae.pth", weights_only=True))
    return vae, load_file(GOLDEN / "vae_io.safetensors")


@pytest.fixture
def small() -> WanVAE:
    """Random weights, latents scaled by the real constants."""
    torch.manual_seed(0)
    return WanVAE(VAEConfig(dim=4))


# Float32 on other hardware with other convolution kernels: measured 9e-7 and 2.4e-6; the decoder is deeper.
def test_encode_is_the_independent_implementation(golden):
    vae, io = golden
    assert relative_l2(vae.encode(io["video"]), io["latent"]) < 1e-5
    assert relative_l2(vae.encode_moments(io["video"])[0], io["latent"]) < 1e-5


def test_decode_is_the_independent_implementation(golden):
    vae, io = golden
    assert relative_l2(vae.decode(io["z"]), io["decoded"]) < 2e-5
    with torch.no_grad():
        assert relative_l2(vae.decode_whole(io["z"]), io["decoded"]) < 2e-5


def diffusers_key(key: str) -> str:
    """The name in diffusers' AutoencoderKLWan of a parameter of Wan2.1_VAE.pth with two residual blocks a stage."""
    key = re.sub(r"^conv1", "quant_conv", key)
    key = re.sub(r"^conv2", "post_quant_conv", key)
    key = key.replace("coder.conv1", "coder.conv_in").replace("head.0", "norm_out").replace("head.2", "conv_out")
    key = key.replace("middle.0", "mid_block.resnets.0").replace("middle.2", "mid_block.resnets.1")
    key = key.replace("middle.1", "mid_block.attentions.0").replace("downsamples", "down_blocks")
    # Up stages are three residual blocks and an upsampler, four layers each.
    if match := re.search(r"upsamples\.(\d+)", key):
        stage, place = divmod(int(match[1]), 4)
        layer = "upsamplers.0" if place == 3 else f"resnets.{place}"
        key = key.replace(match[0], f"up_blocks.{stage}.{layer}")
    for ours, theirs in {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}.items():
        key = key.replace(f"residual.{ours}.", f"{theirs}.")
    return key.replace("shortcut", "conv_shortcut")


def test_peer_diffusers():
    torch.manual_seed(1)
    peer = AutoencoderKLWan(base_dim=12)
    theirs = peer.state_dict()
    ours = WanVAE(VAEConfig(dim=12))
    ours.load_state_dict({key: theirs.pop(diffusers_key(key)) for key in ours.state_dict()})
    assert not theirs
    video = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    z = torch.randn(2, 16, 3, 4, 6)
    with torch.no_grad():
        moments = peer.encode(video).latent_dist
        decoded = peer._decode(z, return_dict=False)[0].clamp(-1, 1)
        mean, logvar = ours.encode_moments(video)
        # Two float32 computations of the same sums in another order.
        assert relative_l2(mean, moments.mean) < 1e-5
        assert relative_l2(logvar, moments.logvar) < 1e-5
        assert relative_l2(ours.decode_whole(z).clamp(-1, 1), decoded) < 1e-5


def test_latent_scale_is_the_published_one():
    config = VAEConfig()
    peer = AutoencoderKLWan(base_dim=4).config
    assert config.latents_mean == tuple(peer.latents_mean)
    assert config.latents_std == tuple(peer.latents_std)


def test_real_size():
    vae = WanVAE(device="meta")
    # 127 million: the size published with Wan2.1.
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
    assert set(vae.state_dict()) == set(torch.load(GOLDEN / "vae.pth", weights_only=True))


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_chunks_are_the_whole_clip(small, frames):
    video = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    mean = torch.tensor(small.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(small.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        z = small.encode_moments(video)[0]
        latent = small.encode(video)
        assert latent.shape == (2, 16, (frames - 1) // 4 + 1, 2, 3)
        # Float32 sums taken in another order.
        torch.testing.assert_close(latent, (z - mean) / std, rtol=1e-5, atol=1e-5)
        latent = torch.randn_like(latent)
        whole = small.decode_whole(latent * std + mean)
    assert whole.shape == video.shape
    torch.testing.assert_close(small.decode(latent), whole, rtol=1e-5, atol=1e-5)


def test_decode_yields_one_frame_then_four(small):
    chunks = small.decode_chunks(torch.randn(2, 16, 4, 2, 3))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]


def test_frames_that_do_not_fit_are_named(small):
    with pytest.raises(UserError, match=r"12 frames .* nearest is 13"):
        small.encode(torch.zeros(1, 3, 12, 16, 16))
    with pytest.raises(UserError, match=r"854x480 .* as in 856x480"):
        small.encode(torch.zeros(1, 3, 1, 480, 854))
    with pytest.raises(UserError, match=r"not \[3, 5, 16, 16\]"):
        small.encode_moments(torch.zeros(3, 5, 16, 16))


def test_gradients_reach_every_parameter(small):
    mean, logvar = small.encode_moments(torch.rand(1, 3, 5, 16, 16))
    decoded = small.decode_whole(mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    (decoded.square().mean() + logvar.square().mean()).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
