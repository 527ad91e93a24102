"""The fused VAE against its layers: every choice, every size of chunk, weights shared."""

import os

import pytest
import torch
import torch.nn.functional as F

from turbodiffusion.config import VAEConfig
from turbodiffusion.errors import MachineError
from turbodiffusion.models.vae.fused import Choices, FusedCoder, fold_upsample
from turbodiffusion.models.vae.model import WanVAE

# Every kind of layer with and without a change of width, few of each: the interpreter is slow.
SMALL = VAEConfig(dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(False, True))
CHOICES = [
    Choices("reference"),
    Choices("reference", fold_upsample=False),
    Choices("reference", few_channels_head=False),
    Choices("reference", winograd=False),
    Choices("reference", winograd=False, pair_columns=4),
    Choices("reference", write_out_attention=True),
]


def relative_l2(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture
def small() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(SMALL)


def in_chunks(coder, x, sizes):
    return torch.cat([coder(chunk) for chunk in x.split(sizes, dim=2)], dim=2)


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("sizes", [[1], [1, 1, 1, 1, 1], [1, 4], [1, 3, 1]])
def test_decoder_is_its_layers(small, choices, sizes):
    z = torch.randn(2, 16, sum(sizes), 3, 5)
    with torch.no_grad():
        whole = small.decoder(z)[0]
    # Float32 sums taken in another order, and taps added up before the convolution instead of after it.
    assert relative_l2(in_chunks(FusedCoder(small.decoder, choices), z, sizes), whole) < 1e-5


@pytest.mark.parametrize("sizes", [[1], [1, 2, 2, 2], [1, 6], [1, 4, 2]])
def test_encoder_is_its_layers(small, sizes):
    video = torch.rand(2, 3, sum(sizes), 8, 12)
    with torch.no_grad():
        whole = small.encoder(video)[0]
    assert relative_l2(in_chunks(FusedCoder(small.encoder, CHOICES[0]), video, sizes), whole) < 1e-5


def test_folded_upsampling_is_upsampling():
    x, weight = torch.randn(2, 6, 3, 5), torch.randn(4, 6, 3, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), weight, padding=1)
    for n, folded in enumerate(fold_upsample(weight)):
        a, b = divmod(n, 2)
        phase = F.conv2d(x, folded, padding=1)[:, :, a : a + 3, b : b + 5]
        torch.testing.assert_close(phase, expected[:, :, a::2, b::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("latents_per_chunk", [1, 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_impl_and_chunk_are_chosen_at_construction(small, impl, latents_per_chunk):
    """The whole VAE, the kernels interpreted: frames come as they did, and are what they were."""
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    device = "cuda" if impl == "triton" and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
    vae = WanVAE(SMALL, device=device, impl=impl, latents_per_chunk=latents_per_chunk)
    vae.load_state_dict(small.state_dict())
    latent, video = torch.randn(1, 16, 4, 2, 3), torch.rand(1, 3, 7, 8, 12) * 2 - 1
    with torch.backends.cudnn.flags(allow_tf32=False):
        chunks = [chunk.cpu() for chunk in vae.decode_chunks(latent.to(device))]
        encoded = vae.encode(video.to(device)).cpu()
    assert [chunk.shape[2] for chunk in chunks] == [1, 2, 2, 2]
    assert relative_l2(torch.cat(chunks, dim=2), small.decode(latent)) < 1e-5
    assert relative_l2(encoded, small.encode(video)) < 1e-5


def test_unknown_choices_raise():
    with pytest.raises(ValueError, match="unknown impl 'fast', expected 'reference' or 'triton'"):
        WanVAE(SMALL, device="meta", impl="fast")
    with pytest.raises(ValueError, match="latents_per_chunk is at least 1, got 0"):
        WanVAE(SMALL, device="meta", latents_per_chunk=0)


def test_triton_without_a_gpu_raises(small, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    vae = WanVAE(SMALL, impl="triton")
    with pytest.raises(MachineError, match=r"impl 'triton' needs (weight on a GPU|the package triton)"):
        vae.decode(torch.randn(1, 16, 1, 2, 3))
