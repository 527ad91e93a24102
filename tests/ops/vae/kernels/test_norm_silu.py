"""The pass between two of the VAE's convolutions in Triton against its reference: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.vae.norm_silu import interleave_phases, norm_silu
from turbodiffusion.ops.vae.winograd import WinogradProducts

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One position; a picture of several programs with a ragged last one; channels that are no power of two.
SHAPES = [(1, 1, 1, 1, 12), (2, 3, 5, 7, 96), (1, 1, 12, 9, 192)]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def everything(B, T, H, W, C, dtype=torch.float32, cache_frames=2):
    """All that a call can have; a position of zeros, as the norm meets outside of what was drawn."""
    x = random(B, T, H, W, C, dtype=dtype)
    x[0, 0, 0, 0] = 0
    weights = {"gamma_C": random(C, seed=1), "bias_C": random(C, seed=2)}
    frames = {"residual_BTHWC": random(B, T, H, W, C, dtype=dtype, seed=3)}
    return x, weights | frames | {"cache_BNHWC": random(B, cache_frames, H, W, C, dtype=dtype, seed=4)}


def double(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_close(actual, single, exact):
    """At most twice the float32 reference's own error, and no less than two float32 roundings."""
    for name, value in vars(exact).items():
        if value is None or not value.numel():
            assert getattr(actual, name) is None or not getattr(actual, name).numel()
            continue
        assert getattr(actual, name).shape == value.shape
        error = relative_l2(getattr(single, name), value)
        assert relative_l2(getattr(actual, name), value) <= max(2 * error, 2**-22), name


@pytest.mark.parametrize("cache_frames", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_at_once(shape, cache_frames):
    x, rest = everything(*shape, cache_frames=cache_frames)
    call = {"cache_frames": cache_frames, "keep_sum": True}
    actual = norm_silu(x, **rest, **call, impl="triton")
    assert_close(actual, norm_silu(x, **rest, **call), norm_silu(x.double(), **double(rest), **call))
    assert actual.cache_BNHWC.equal(actual.y[:, shape[1] :])
    apart = norm_silu(strided(x), **{k: strided(v) for k, v in rest.items()}, **call, impl="triton")
    assert apart.y.equal(actual.y) and apart.sum_BTHWC.equal(actual.sum_BTHWC)


@pytest.mark.parametrize(
    "left_out", [{"gamma_C"}, {"bias_C"}, {"residual_BTHWC"}, {"cache_BNHWC"}, {"bias_C", "residual_BTHWC"}, {"silu"}]
)
def test_each_part_can_be_left_out(left_out):
    x, rest = everything(2, 3, 5, 7, 12)
    rest = {name: tensor for name, tensor in rest.items() if name not in left_out}
    call = {"cache_frames": 2, "activate": "silu" not in left_out}
    actual = norm_silu(x, **rest, **call, impl="triton")
    assert actual.sum_BTHWC is None
    assert_close(actual, norm_silu(x, **rest, **call), norm_silu(x.double(), **double(rest), **call))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5)])
def test_phases_become_one_picture(height, width):
    _, rest = everything(2, 3, 2 * height, 2 * width, 24)
    # Cut out of larger tensors, as convolutions with a padding on both sides leave them.
    phases = [random(2, 3, height + 1, width + 1, 24, seed=n)[:, :, n // 2 :, n % 2 :] for n in range(4)]
    phases = [phase[:, :, :height, :width] for phase in phases]
    joined = interleave_phases(phases)
    for n, phase in enumerate(phases):
        assert joined[:, :, n // 2 :: 2, n % 2 :: 2].equal(phase)
    call = {"cache_frames": 2, "keep_sum": True}
    actual = norm_silu(phases, **rest, **call, impl="triton")
    assert_close(actual, norm_silu(phases, **rest, **call), norm_silu(joined.double(), **double(rest), **call))


@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1, 12), (2, 6, 5, 7, 96)])
def test_before_and_after_a_winograd_convolution(shape, products, transform):
    B, T, H, W, C = shape
    x, rest = everything(*shape)
    if products:
        x = WinogradProducts(tuple(random(B, T // 2, H, W, C, seed=5 + n) for n in range(4)))
    wide = WinogradProducts(tuple(m.double() for m in x.m)) if products else x.double()
    call = {"cache_frames": 2, "keep_sum": True, "transform": transform}
    for names in (rest, {"gamma_C"}, {"cache_BNHWC", "residual_BTHWC"}):
        some = {name: rest[name] for name in names}
        actual = norm_silu(x, **some, **call, impl="triton")
        assert_close(actual, norm_silu(x, **some, **call), norm_silu(wide, **double(some), **call))
    apart = WinogradProducts(tuple(strided(m) for m in x.m)) if products else strided(x)
    assert norm_silu(apart, **some, **call, impl="triton").y.equal(actual.y)


@pytest.mark.parametrize("cache_frames", [0, 1])
def test_products_without_a_convolution_after_them(cache_frames):
    _, rest = everything(2, 4, 3, 5, 12, cache_frames=cache_frames)
    x = WinogradProducts(tuple(random(2, 2, 3, 5, 12, seed=5 + n) for n in range(4)))
    wide = WinogradProducts(tuple(m.double() for m in x.m))
    actual = norm_silu(x, **rest, cache_frames=cache_frames, impl="triton")
    assert_close(
        actual,
        norm_silu(x, **rest, cache_frames=cache_frames),
        norm_silu(wide, **double(rest), cache_frames=cache_frames),
    )


def test_phases_before_a_winograd_convolution():
    _, rest = everything(2, 4, 6, 10, 24)
    phases = [random(2, 4, 3, 5, 24, seed=n) for n in range(4)]
    call = {"cache_frames": 2, "keep_sum": True, "transform": True}
    actual = norm_silu(phases, **rest, **call, impl="triton")
    wide = interleave_phases(phases).double()
    assert_close(actual, norm_silu(phases, **rest, **call), norm_silu(wide, **double(rest), **call))


def test_low_precision_is_rounded_once():
    x, rest = everything(2, 3, 5, 7, 96, torch.bfloat16)
    actual = norm_silu(x, **rest, cache_frames=2, keep_sum=True, impl="triton")
    exact = norm_silu(x.double(), **double(rest), cache_frames=2, keep_sum=True)
    reference = norm_silu(x, **rest, cache_frames=2, keep_sum=True)
    for name, value in vars(exact).items():
        assert getattr(actual, name).dtype == torch.bfloat16
        # Both round float32 results that hardly differ: the errors agree to a hundredth.
        assert relative_l2(getattr(actual, name), value) < 1.01 * relative_l2(getattr(reference, name), value)


def test_what_is_not_finite_stays_where_it_is():
    x, rest = everything(1, 2, 3, 4, 12)
    x[0, 1, 2, 3, 7] = torch.nan
    y = norm_silu(x, **rest, cache_frames=2, impl="triton").y
    assert y[0, 3, 2, 3].isnan().all()
    y[0, 3, 2, 3] = 0
    assert y.isfinite().all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    x, rest = everything(2, 3, 4, 5, 12)
    for name, wrong, message in (
        ("gamma_C", torch.ones(11, device=DEVICE), r"gamma_C must be \[12\], got \[11\]"),
        ("cache_BNHWC", x[:, :1], r"cache_BNHWC must be \[2, 2, 4, 5, 12\], got \[2, 1, 4, 5, 12\]"),
        ("residual_BTHWC", x.double(), "residual_BTHWC must be torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            norm_silu(x, **{**rest, name: wrong}, cache_frames=2, impl=impl)
    with pytest.raises(ValueError, match="one tensor, four phases or WinogradProducts, got 2 tensors"):
        norm_silu([x, x], impl=impl)
    with pytest.raises(ValueError, match="transform needs two frames before an even number, got 2 before 3"):
        norm_silu(x, cache_frames=2, transform=True, impl=impl)


def test_kernels_raise_for_a_gradient_and_float64():
    x, rest = everything(1, 1, 2, 2, 12)
    with pytest.raises(ValueError, match="impl 'triton': has no gradient, but x"):
        norm_silu(x.requires_grad_(), **rest, cache_frames=2, impl="triton")
    with pytest.raises(ValueError, match="impl 'triton' computes in float32, x is float64"):
        norm_silu(x.detach().double(), **double(rest), cache_frames=2, impl="triton")
