"""What `memory/vae.py` counts against the tensors that live in a walk, and the numbers of its docstring."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbodiffusion.config import VAEConfig
from turbodiffusion.memory.vae import chunk_sizes, decode_bytes
from turbodiffusion.models.vae import fused as fused
from turbodiffusion.models.vae.fused import Choices, FusedCoder
from turbodiffusion.models.vae.model import WanVAE

GIB = 2**30
WIDTH, HEIGHT = 64, 48


class Living(TorchDispatchMode):
    """Bytes of the tensors that were made under it and live, and the most there were: `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.looking = True
        self._living = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in (known | self._living.keys()):
                place, size = storage._cdata, storage.nbytes()
                self._living[place] = weakref.ref(storage, lambda _, place=place, size=size: self._died(place, size))
                self.now += size
        self.look()
        return out

    def look(self):
        if self.looking:
            self.peak = max(self.peak, self.now)

    def _died(self, place, size):
        del self._living[place]
        self.now -= size


@pytest.fixture
def living(monkeypatch):
    """A kernel's reference makes tensors on the way that the kernel does not: what comes out of it counts."""
    living = Living()

    def whole(op):
        def run(*args, **options):
            living.looking = False
            out = op(*args, **options)
            living.looking = True
            living.look()
            return out

        return run

    for op in (fused.norm_silu, fused.conv3d_few_channels):
        monkeypatch.setattr(fused, op.__name__, whole(op))
    return living


def chunks_of(size, shape):
    """A first frame and two chunks: the second is decoded while what was remembered of the first is there."""
    return (torch.randn(*shape[:2], frames, *shape[2:]) for frames in (1, size, size))


@torch.inference_mode()
@pytest.mark.parametrize("latents", [1, 2, 4])
@pytest.mark.parametrize("dim", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_the_fast_decoder_holds_what_is_counted(living, dim, latents):
    """A tenth more is counted at dim 16: the last convolution's 81 products, which its reference does not make."""
    config = VAEConfig(dim=dim)
    vae = WanVAE(config)
    with living:
        coder = FusedCoder(vae.decoder, Choices("reference"))
        for z in chunks_of(latents, (1, 16, HEIGHT // 8, WIDTH // 8)):
            coder(z)
    counted = decode_bytes(config, WIDTH, HEIGHT, latents, 4, "triton")
    assert 1.0 <= counted / living.peak < (1.15 if dim == 16 else 1.01)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_decoder_holds_no_more_than_is_counted(living, dtype):
    config = VAEConfig(dim=16)
    vae = WanVAE(config, dtype=dtype)
    with living:
        for _ in vae.decode_chunks(torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8)):
            pass
    counted = decode_bytes(config, WIDTH, HEIGHT, 1, dtype.itemsize, "reference")
    assert 1.0 <= counted / living.peak < 1.3


@torch.inference_mode()
@pytest.mark.parametrize("latents", [1, 4])
def test_encoding_takes_less(living, latents):
    config = VAEConfig(dim=16)
    vae = WanVAE(config)
    with living:
        coder = FusedCoder(vae.encoder, Choices("reference"))
        for frames in (1, 4 * latents, 4 * latents):
            coder(torch.randn(1, 3, frames, HEIGHT, WIDTH))
    assert living.peak < decode_bytes(config, WIDTH, HEIGHT, latents, 4, "triton")


def test_numbers_of_the_published_vae():
    """(24 n + 26.6) frames of 76.7 MB and the weights, as the module says."""
    weights = 0.31 * GIB
    for latents, gib in ((1, 3.9), (2, 5.7)):
        counted = decode_bytes(VAEConfig(), 832, 480, latents, 2, "triton")
        assert counted == pytest.approx((24 * latents + 26.6) * 832 * 480 * 96 * 2 + weights, rel=0.02)
        assert round(counted / GIB, 1) == gib


@pytest.mark.parametrize(
    ("impl", "side", "sizes"),
    [("triton", 640, (2, 1)), ("triton", 2560, (1,)), ("reference", 640, (1,))],
)
def test_no_tensor_of_a_chunk_is_too_large_for_cudnn(impl, side, sizes):
    assert chunk_sizes(VAEConfig(), side, side, impl) == sizes
