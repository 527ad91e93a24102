"""The VAE against an independent implementation's outputs, against diffusers, and against itself in its two modes."""

import copy
import re
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbodiffusion.config import VAEConfig
from turbodiffusion.errors import UserError
from turbodiffusion.models.vae.model import CausalConv3d, WanVAE

GOLDEN = Path(__file__).parents[2] / "golden"
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


@pytest.mark.gpu
def test_golden_on_a_gpu(golden):
    vae, io = golden
    vae = copy.deepcopy(vae).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False), torch.no_grad():
        for encoded in (vae.encode(io["video"].cuda()), vae.encode_moments(io["video"].cuda())[0]):
            assert relative_l2(encoded.cpu(), io["latent"]) < 1e-5
        for decoded in (vae.decode(io["z"].cuda()), vae.decode_whole(io["z"].cuda())):
            assert relative_l2(decoded.cpu(), io["decoded"]) < 2e-5


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


@pytest.mark.parametrize(("kernel", "time_stride"), [((3, 3, 3), 1), ((3, 1, 1), 1), ((3, 1, 1), 2)])
def test_causal_convolution_is_a_shifted_3d_convolution(kernel, time_stride):
    """What other devices run, against the sum over taps of a CPU, at every length of chunk."""
    torch.manual_seed(0)
    conv = CausalConv3d(5, 7, kernel, time_stride)
    before = 3 - time_stride
    for frames in (2, 4, 6):
        x = torch.randn(2, 5, frames, 6, 8)
        past = torch.randn(2, 5, before, 6, 8)
        for start, history in ((None, torch.zeros_like(past)), (past, past)):
            seen = torch.cat((history, x), dim=2)
            y, kept = conv(x, start)
            # Float32 sums taken in another order.
            torch.testing.assert_close(y, nn.Conv3d.forward(conv, seen), rtol=1e-5, atol=1e-5)
            assert torch.equal(kept, seen[:, :, -before:])


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


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside this mode held at any moment; views count as what they view."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[int, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key in given and key not in self.live:
                continue  # a view of what the caller brought
            count, _ = self.live.get(key, (0, 0))
            self.live[key] = (count + 1, storage.nbytes())
            weakref.finalize(tensor, self._release, key)
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out

    def _release(self, key: int) -> None:
        count, size = self.live.pop(key)
        if count > 1:
            self.live[key] = (count - 1, size)


@pytest.mark.slow
def test_memory_is_that_of_one_chunk(small):
    def peak_of_decode(frames: int) -> int:
        with PeakBytes() as mode:
            for _ in small.decode_chunks(torch.zeros(1, 16, frames, 4, 4)):
                pass
        return mode.peak

    def peak_of_encode(frames: int) -> int:
        video = torch.zeros(1, 3, frames, 32, 32)
        with PeakBytes() as mode:
            small.encode(video)
        return mode.peak

    def peak_of_whole(frames: int) -> int:
        with torch.no_grad(), PeakBytes() as mode:
            small.decode_whole(torch.zeros(1, 16, frames, 4, 4))
        return mode.peak

    latent_frame = 16 * 4 * 4 * 4
    # The latent itself is made inside the measure.
    assert peak_of_decode(6) - peak_of_decode(3) <= 3 * latent_frame
    # Of each chunk the encoder keeps the moments, twice a latent frame, until the end.
    assert peak_of_encode(21) - peak_of_encode(9) <= 3 * 2 * latent_frame
    # The measure does see a whole clip.
    assert peak_of_whole(6) > 2 * peak_of_decode(6)


def test_activations_stay_channels_last(small):
    """Otherwise folding the frames into the batch copies, and convolutions fall back to slower layouts."""
    strayed = set()

    def check(name):
        def hook(module, args, output):
            out = output[0] if isinstance(output, tuple) else output
            layout = torch.channels_last if out.ndim == 4 else torch.channels_last_3d
            if not out.is_contiguous(memory_format=layout):
                strayed.add(name)

        return hook

    for name, module in small.named_modules():
        if re.search(r"(conv|shortcut|resample\.1|residual\.\d|middle\.\d|head\.\d)$", name):
            module.register_forward_hook(check(name))
    small.decode(small.encode(torch.rand(1, 3, 9, 16, 24)))
    small.decode_whole(small.encode_moments(torch.rand(2, 3, 9, 16, 24))[0])
    assert not strayed


@pytest.mark.slow
def test_whole_clip_compiles_without_breaks():
    torch.manual_seed(0)
    # Every kind of layer, few of each: tracing takes seconds.
    vae = WanVAE(VAEConfig(dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,)))

    def loss(video):
        mean, logvar = vae.encode_moments(video)
        return vae.decode_whole(mean).square().mean() + logvar.square().mean()

    video = torch.rand(1, 3, 5, 8, 8)
    loss(video).backward()
    expected = {name: parameter.grad.clone() for name, parameter in vae.named_parameters()}
    vae.zero_grad()
    # aot_eager traces forward and backward as inductor does, without its C++ or Triton compiler.
    torch.compile(loss, backend="aot_eager", fullgraph=True)(video).backward()
    for name, parameter in vae.named_parameters():
        # Float32 sums taken in another order.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16_by_autocast_and_by_weights(small):
    video = torch.rand(1, 3, 5, 32, 48) * 2 - 1
    low = WanVAE(small.config, dtype=torch.bfloat16)
    low.load_state_dict(small.state_dict())
    peer = AutoencoderKLWan(base_dim=4)
    peer.load_state_dict({diffusers_key(key): value for key, value in small.state_dict().items()})
    peer.to(torch.bfloat16)
    with torch.no_grad():
        mean = small.encode_moments(video)[0]
        decoded = small.decode_whole(mean)
        peer_mean = peer.encode(video.bfloat16()).latent_dist.mean
        peer_decoded = peer._decode(mean.bfloat16(), return_dict=False)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            by_autocast = small.encode_moments(video)[0], small.decode_whole(mean)
        by_weights = low.encode_moments(video)[0], low.decode_whole(mean)
    peer_errors = relative_l2(peer_mean, mean), relative_l2(peer_decoded, decoded.clamp(-1, 1))
    for our_mean, our_decoded in (by_autocast, by_weights):
        assert our_mean.dtype == our_decoded.dtype == torch.bfloat16
        # Twice the error of the peer in the same precision: rounding of the same sums in another order.
        assert relative_l2(our_mean, mean) < 2 * peer_errors[0]
        assert relative_l2(our_decoded, decoded) < 2 * peer_errors[1]
    assert low.encode(video).dtype == torch.float32
