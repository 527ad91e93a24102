import torch
from inputs import strided
from torch.nn.functional import normalize, silu

from turbodiffusion.ops.vae.norm_silu import interleave_phases, norm_silu
from turbodiffusion.ops.vae.winograd import WinogradProducts, transform_input, transform_output

SHAPE = (2, 4, 6, 10, 12)


def tensors():
    """x and the residual [B, T, H, W, C], gamma and bias [C], and two cached frames, in float64."""
    shapes = (SHAPE, SHAPE, SHAPE[-1:], SHAPE[-1:], (2, 2, *SHAPE[2:]))
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def test_equals_the_formula_behind_the_cached_frames():
    x, residual, gamma, bias, cache = tensors()
    out = norm_silu(
        strided(x), gamma, bias_C=bias, residual_BTHWC=residual, cache_BNHWC=cache, cache_frames=2, keep_sum=True
    )
    s = x + bias + residual
    y = silu(normalize(s, dim=-1) * SHAPE[-1] ** 0.5 * gamma)
    torch.testing.assert_close(out.sum_BTHWC, s)
    torch.testing.assert_close(out.y, torch.cat((cache, y), dim=1))
    torch.testing.assert_close(out.cache_BNHWC, y[:, -2:])


def test_a_clip_in_chunks_is_the_clip_at_once():
    x, _, gamma, bias, _ = tensors()
    whole, cache, parts = norm_silu(x, gamma, bias_C=bias, cache_frames=2), None, []
    for chunk in x.split((1, 3), dim=1):
        out = norm_silu(chunk, gamma, bias_C=bias, cache_BNHWC=cache, cache_frames=2)
        cache = out.cache_BNHWC
        parts.append(out.y[:, 2:])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.y[:, 2:])
    assert not whole.y[:, :2].any()  # zeros where there is no cache


def test_phases_are_one_picture():
    x, *_ = tensors()
    phases = [x[:, :, a::2, b::2] for a in range(2) for b in range(2)]
    assert torch.equal(interleave_phases(phases), x)
    assert torch.equal(norm_silu(phases).y, x)


def test_products_in_and_transformed_frames_out():
    _, _, gamma, _, cache = tensors()
    m = [torch.randn(2, 2, *SHAPE[2:], dtype=torch.float64) for _ in range(4)]
    out = norm_silu(WinogradProducts(tuple(m)), gamma, cache_BNHWC=cache, cache_frames=2, transform=True)
    plain = norm_silu(transform_output(m), gamma, cache_BNHWC=cache, cache_frames=2)
    torch.testing.assert_close(out.y, transform_input(plain.y))
    assert torch.equal(out.cache_BNHWC, plain.cache_BNHWC)
