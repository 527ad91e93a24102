"""Every op that has a kernel, as cases: inputs, the call, the exact result. What doctor checks and benchmarks time.

A case makes fresh random inputs for any number of tokens, so one table serves ragged lengths and real ones. `errors`
compares a kernel with float32 and says what is allowed.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sage_sparse_attention, sagesla_attention
from turbodiffusion.ops.attention.sla import (
    block_map,
    linear_attention,
    projected_linear_attention,
    sla_attention,
    sparse_attention,
)
from turbodiffusion.ops.linear.int8 import int8_block_linear, quantize_int8_block
from turbodiffusion.ops.linear.rows import quantize_rows, row_linear
from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import layer_norm as row_layer_norm
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import video_turns
from turbodiffusion.ops.rounding import FP8
from turbodiffusion.ops.vae.stream import advance_stream
from turbodiffusion.ops.vae.taps import convolve_to_few

GRID = (21, 30, 52)  # 81 frames at 832x480: 32760 tokens, a multiple of no tile
RAGGED = (1, 63, 65, 127, 129, 780)  # around tiles and blocks, and a multiple of nothing
EPS = 1e-6
HEAD_DIM = 128
FORMATS = {torch.int8: "int8", FP8: "fp8"}
# Of the 1.3B and the 14B model: its width, its ffn's and its heads.
MODELS = {1536: (8960, 12), 5120: (13824, 40)}
# A kernel may be this much further from float32 than the same arithmetic in PyTorch: sums in another order.
OF_THE_EMULATION = 1.1
# Where the emulation is nearly exact, as for a token that attends to itself alone: a twentieth of bfloat16's step.
NEARLY_EXACT = 1e-4
# Against float32 on Gaussian data and the same map of blocks; int8 and fp8 are the formats of q and k.
BOUNDS = {"bf16": 0.01, "int8": 0.045, "fp8": 0.06}
MISSED_BLOCKS = 0.01  # of those that the reference keeps: float32 sums in another order decide near ties differently
# Of two products of the same 8-bit inputs, each rounded to bfloat16 once (0.25% in all). Hopper's tensor cores cut fp8
# products to 13 bits below the sum so far, which is 0.3% of Gaussian sums of 13824; int8 ones are exact.
PRODUCTS = {torch.int8: 2**-8, FP8: 2**-7}
# Of a convolution to few channels, whose 27 products are rounded to bfloat16 before they are added up.
TAPS = 2**-7
FP8_GPU = (8, 9)
VAE_CHANNELS = 96  # of its full resolution

_MEMORY = "one pass over memory"


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    make(tokens, seed) gives its inputs; run(impl, *inputs) its output, or several; exact(*inputs) the float32 result
    that outputs are compared with, None where that is the reference itself. A quantized output is (values, scale).
    """

    name: str
    group: str  # a field of Kernels
    shape: str
    make: Callable[[int, int], tuple[Any, ...]]
    run: Callable[..., Any]
    work: float  # operations, or bytes read and written, at `tokens`; 0: it is timed as part of another case
    unit: str  # of work in 1e12 a second: TB/s, TFLOP/s (bfloat16) or TOP/s (8 bits)
    how: str = _MEMORY
    exact: Callable[..., Any] | None = None
    bound: float | None = None  # of the error, in any case
    needs: tuple[int, int] = (8, 0)  # the oldest GPU, by its compute capability
    tokens: int = GRID[0] * GRID[1] * GRID[2]
    impl: str = "triton"  # or "torch": PyTorch's own, to compare with; it is timed and not checked
    target: float | None = None  # of the rate
    distance: Callable[[Any, Any], float] | None = None  # None: `error`

    @property
    def title(self) -> str:
        return f"{self.name}.{self.shape}"


def random(
    device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, scale: float = 1.0
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)


def norm_cases(device: torch.device, width: int, heads: int) -> Iterator[Case]:
    """Weights have seeds of 1001 on: inputs of a small seed must not be the same numbers."""
    size = float(Case.tokens * width)
    shift, scale = random(device, 2, 1, width, dtype=torch.float32, seed=1001).unbind()
    weight, bias = random(device, 2, width, dtype=torch.float32, seed=1002).unbind()

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        return (random(device, 1, tokens, width, seed=seed) + 1,)

    def modulated(x: Tensor) -> Tensor:
        return modulated_layer_norm(x.float(), shift, scale, EPS)

    def affine(x: Tensor) -> Tensor:
        return layer_norm(x.float(), (width,), weight, bias, EPS)

    def case(name: str, run: Callable, accesses: int, exact: Callable, make: Callable = make, **others: Any) -> Case:
        """accesses: bytes for each number of one activation."""
        return Case(name, "norm", str(width), make, run, accesses * size, "TB/s", exact=exact, **others)

    yield case(
        "modulated_layer_norm", lambda impl, x: modulated_layer_norm(x, shift, scale, EPS, impl=impl), 4, modulated
    )
    yield case("layer_norm", lambda impl, x: row_layer_norm(x, weight, bias, EPS, impl=impl), 4, affine)
    yield case(
        "rms_norm",
        lambda impl, x: rms_norm(x, weight, EPS, impl=impl),
        4,
        lambda x: rms_norm(x.float(), weight, EPS),
    )
    for dtype, name in FORMATS.items():
        needs = FP8_GPU if dtype == FP8 else (8, 0)
        yield case(
            f"quantized_modulated_layer_norm.{name}",
            lambda impl, x, dtype=dtype: quantized_modulated_layer_norm(x, shift, scale, EPS, dtype, impl=impl),
            3,
            modulated,
            needs=needs,
        )
        yield case(
            f"quantized_layer_norm.{name}",
            lambda impl, x, dtype=dtype: quantized_layer_norm(x, weight, bias, EPS, dtype, impl=impl),
            3,
            affine,
            needs=needs,
        )
    yield case(
        "add_gated",
        lambda impl, x, y: add_gated(x, y, shift, impl=impl),
        6,
        lambda x, y: add_gated(x.float(), y.float(), shift),
        lambda tokens, seed: make(tokens, seed) + make(tokens, seed + 1),
    )
    for blocks, name in ((None, "norm_rope_qk"), ((128, 64), "norm_rope_qk.pooled")):

        def rotate(impl: str, qkv: Tensor, turns: Tensor, blocks: Any = blocks) -> list[Tensor]:
            out = norm_rope_qk(qkv, weight, bias, turns, heads, EPS, blocks=blocks, impl=impl)
            return [x for x in vars(out).values() if x is not None]

        yield case(
            name,
            rotate,
            8,
            lambda qkv, turns, rotate=rotate: rotate("reference", qkv.float(), turns),
            lambda tokens, seed: (
                random(device, 1, tokens, 3 * width, seed=seed),
                _turns(tokens, width // heads, device),
            ),
        )


def _turns(tokens: int, head_dim: int, device: torch.device) -> Tensor:
    grid = GRID if tokens == Case.tokens else (tokens, 1, 1)
    return video_turns(*grid, head_dim, device)


def quantize_cases(device: torch.device, width: int, hidden: int) -> Iterator[Case]:
    """Rounding by rows, alone and after the GELU of an ffn; the published rounding by blocks is in `block_cases`."""

    def of(features: int) -> Callable[[int, int], tuple[Tensor, ...]]:
        return lambda tokens, seed: (random(device, tokens, features, seed=seed),)

    for dtype, name in FORMATS.items():
        needs = FP8_GPU if dtype == FP8 else (8, 0)
        yield Case(
            f"quantize.{name}",
            "linear",
            str(width),
            of(width),
            lambda impl, x, dtype=dtype: quantize_rows(x, dtype, impl=impl),
            3.0 * Case.tokens * width,
            "TB/s",
            exact=lambda x: x.float(),
            needs=needs,
        )
        yield Case(
            f"quantize.{name}.gelu",
            "linear",
            str(hidden),
            of(hidden),
            lambda impl, x, dtype=dtype: quantize_rows(x, dtype, gelu=True, impl=impl),
            3.0 * Case.tokens * hidden,
            "TB/s",
            exact=lambda x: gelu(x.float(), approximate="tanh"),
            needs=needs,
        )


def product_cases(device: torch.device, features: int, out: int) -> Iterator[Case]:
    """Products of 8-bit rows with what follows fused: GELU where they widen, gate and residual where they do not."""
    shape, work = f"{features}x{out}", 2.0 * Case.tokens * features * out
    weight, bias = random(device, out, features, seed=1001, scale=features**-0.5), random(device, out, seed=1002)
    gate = random(device, 1, out, dtype=torch.float32, seed=1003)
    for dtype, name in FORMATS.items():
        w8 = quantize_rows(weight, dtype)

        def make(tokens: int, seed: int, dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
            x = random(device, tokens, features, seed=seed)
            return *quantize_rows(x, dtype), random(device, 1, tokens, out, seed=seed + 1)

        def product(impl: str, x: Tensor, scale: Tensor, residual: Tensor, w8: Any = w8, **fused: Any) -> Tensor:
            if "gate_BO" in fused:
                fused["residual"] = residual[0]
            return row_linear(x, scale, w8[0], w8[1], bias, dtype=torch.bfloat16, impl=impl, **fused)

        kinds: dict[str, dict[str, Any]] = {"": {}}
        kinds |= {".gelu": {"gelu": True}} if out > features else {".gate": {"gate_BO": gate}}
        for kind, fused in kinds.items():
            yield Case(
                f"product.{name}{kind}",
                "linear",
                shape,
                make,
                lambda *a, product=product, fused=fused: product(*a, **fused),
                work,
                "TOP/s",
                f"{name} tensor cores",
                bound=PRODUCTS[dtype],
                needs=FP8_GPU if dtype == FP8 else (8, 0),
            )


def block_cases(device: torch.device, features: int, out: int) -> Iterator[Case]:
    """The published format: int8 in blocks of 128 x 128, rounding and product in one op."""
    weight, bias = random(device, out, features, seed=1001, scale=features**-0.5), random(device, out, seed=1002)
    w8, float32 = quantize_int8_block(weight), weight.float()
    yield Case(
        "linear.int8_block",
        "linear",
        f"{features}x{out}",
        lambda tokens, seed: (random(device, tokens, features, seed=seed),),
        lambda impl, x: int8_block_linear(x, *w8, bias, impl=impl),
        2.0 * Case.tokens * features * out,
        "TOP/s",
        "int8 tensor cores",
        exact=lambda x: torch.addmm(bias.float(), x.float(), float32.T),
        bound=0.015,
    )


@dataclass(frozen=True)
class _Attention:
    """The inputs of attention at one shape, and its exact results; both sides attend by the kernel's own map."""

    device: torch.device
    heads: int
    head_dim: int
    block_q: int
    block_k: int
    topk: float
    tokens: int
    weight: Tensor
    bias: Tensor

    @property
    def blocks(self) -> dict[str, Any]:
        return {"block_q": self.block_q, "block_k": self.block_k}

    def qkv(self, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian views into one projection; keys have a mean of their own per head and channel, as Wan's do."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(1, tokens, 3, self.heads, self.head_dim, generator=generator, device=self.device)
        x[:, :, 1] += 2 * torch.randn(1, 1, self.heads, self.head_dim, generator=generator, device=self.device)
        q, k, v = x.bfloat16().unbind(2)
        return q, k, v

    def mapped(self, tokens: int, seed: int) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(tokens, seed)
        return q, k, v, block_map(q, k, topk=self.topk, impl="triton", **self.blocks)

    def all_blocks(self, tokens: int) -> Tensor:
        rows, columns = -(-tokens // self.block_q), -(-tokens // self.block_k)
        every = torch.arange(columns, dtype=torch.int32, device=self.device)
        return every.expand(1, self.heads, rows, columns)

    def exact_sparse(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        return sparse_attention(q.float(), k.float(), v.float(), kept, **self.blocks)

    def exact_whole(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        linear = projected_linear_attention(q.float(), k.float(), v.float(), self.weight, self.bias)
        return self.exact_sparse(q, k, v, kept) + linear

    def whole(self, impl: str, fused: Callable, sparse: Callable, *x: Tensor) -> Tensor:
        """A module by its kernels, or its emulation on the map that the kernels chose."""
        q, k, v, kept = x
        if impl != "reference":
            return fused(q, k, v, self.weight, self.bias, topk=self.topk, impl=impl, **self.blocks)
        linear = projected_linear_attention(q, k, v, self.weight, self.bias)
        return sparse(q, k, v, kept, **self.blocks) + linear

    def case(self, name: str, make: Callable, run: Callable, work: float, how: str = _MEMORY, **others: Any) -> Case:
        shape = f"{self.heads}x{self.head_dim}.{self.block_q}.{self.block_k}"
        unit = "TB/s" if how == _MEMORY else "TFLOP/s" if "bf16" in how else "TOP/s"
        return Case(name, "attention", shape, make, run, work, unit, how, tokens=self.tokens, **others)


def attention_cases(
    device: torch.device,
    heads: int,
    *,
    head_dim: int = HEAD_DIM,
    block_q: int = 128,
    block_k: int = 64,
    topk: float = 0.1,
    tokens: int = Case.tokens,
    dense: bool = True,
) -> Iterator[Case]:
    """The choice of blocks, the parts and the whole modules; `dense`: SageAttention over all keys too."""
    weight = random(device, head_dim, head_dim, dtype=torch.float32, seed=1001, scale=head_dim**-0.5)
    bias = random(device, head_dim, dtype=torch.float32, seed=1002, scale=0.1)
    x = _Attention(device, heads, head_dim, block_q, block_k, topk, tokens, weight, bias)
    yield from _part_cases(x)
    key_blocks = -(-tokens // block_k)
    work = 4.0 * tokens**2 * heads * head_dim
    sparse_work = work * max(1, int(topk * key_blocks)) / key_blocks
    yield x.case(
        "sla_attention",
        x.mapped,
        lambda impl, *qkvm: x.whole(impl, sla_attention, sparse_attention, *qkvm),
        sparse_work,
        "bf16 tensor cores",
        exact=x.exact_whole,
        bound=BOUNDS["bf16"],
    )
    yield x.case(
        "sagesla_attention",
        x.mapped,
        lambda impl, *qkvm: x.whole(impl, sagesla_attention, sage_sparse_attention, *qkvm),
        sparse_work,
        "int8 and fp8 tensor cores",
        exact=x.exact_whole,
        bound=BOUNDS["int8"],
        needs=FP8_GPU,
    )
    if dense:
        yield x.case(
            "sage_attention",
            x.qkv,
            lambda impl, q, k, v: sage_attention(q, k, v, impl=impl, **x.blocks),
            work,
            "int8 and fp8 tensor cores",
            # Dense attention as sparse with every block: a block of queries at a time, so that its scores fit.
            exact=lambda q, k, v: x.exact_sparse(q, k, v, x.all_blocks(q.shape[1])),
            bound=BOUNDS["int8"],
            needs=FP8_GPU,
        )


def _part_cases(x: _Attention) -> Iterator[Case]:
    """The sparse parts are checked alone and timed in their modules: alone they wait for the GPU to check the map."""
    qkv_bytes = 8.0 * x.tokens * x.heads * x.head_dim
    yield x.case(
        "block_map",
        lambda tokens, seed: x.qkv(tokens, seed)[:2],
        lambda impl, q, k: block_map(q, k, topk=x.topk, impl=impl, **x.blocks),
        qkv_bytes / 2,
        bound=MISSED_BLOCKS,
        distance=missed_blocks,
    )
    yield x.case(
        "linear_attention",
        x.qkv,
        lambda impl, q, k, v: linear_attention(q, k, v, impl=impl),
        qkv_bytes,
        exact=lambda q, k, v: linear_attention(q.float(), k.float(), v.float()),
        bound=BOUNDS["bf16"],
    )
    yield x.case(
        "sparse_attention",
        x.mapped,
        lambda impl, *qkvm: sparse_attention(*qkvm, impl=impl, **x.blocks),
        0.0,
        "bf16 tensor cores",
        exact=x.exact_sparse,
        bound=BOUNDS["bf16"],
    )
    for qk in ("int8", "fp8"):
        yield x.case(
            f"sage_sparse_attention.{qk}",
            x.mapped,
            lambda impl, *qkvm, qk=qk: sage_sparse_attention(*qkvm, qk=qk, impl=impl, **x.blocks),
            0.0,
            "int8 and fp8 tensor cores" if qk == "int8" else "fp8 tensor cores",
            exact=x.exact_sparse,
            bound=BOUNDS[qk],
            needs=FP8_GPU,
        )


def vae_cases(device: torch.device, channels: int) -> Iterator[Case]:
    """What stands between convolutions of that many channels, and the last convolution, on two frames 3 pixels wide."""
    gamma = random(device, channels, dtype=torch.float32, seed=1001)
    bias = random(device, channels, seed=1002)
    weight = random(device, 3, channels, 3, 3, 3, seed=1003, scale=(27 * channels) ** -0.5)

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        rows = -(-tokens // 6)
        return tuple(random(device, 1, 2, rows, 3, channels, seed=seed + part) for part in range(3))

    def advance(impl: str, x: Tensor, residual: Tensor, past: Tensor, transform: bool = False) -> list[Tensor]:
        out = advance_stream(
            x, gamma, bias_C=bias, residual_BTHWC=residual, past_BNHWC=past, before=2, keep_sum=True,
            transform=transform, impl=impl,
        )  # fmt: skip
        assert out.sum_BTHWC is not None
        return [out.y, out.past_BNHWC, out.sum_BTHWC]

    def exact(x: Tensor, residual: Tensor, past: Tensor, transform: bool = False) -> list[Tensor]:
        return advance("reference", x.float(), residual.float(), past.float(), transform)

    def case(name: str, run: Callable, accesses: int, **others: Any) -> Case:
        """accesses: bytes for each number of the frames."""
        work = float(accesses * Case.tokens * channels)
        return Case(name, "vae", f"{channels} channels", make, run, work, "TB/s", **others)

    yield case("advance_stream", advance, 12, exact=exact)
    yield case("advance_stream.winograd", partial(advance, transform=True), 14, exact=partial(exact, transform=True))
    yield case(
        "convolve_to_few",
        lambda impl, x, residual, past: convolve_to_few(torch.cat((past, x), 1), weight, bias[:3], impl=impl),
        8,
        bound=TAPS,
    )


def cases(device: torch.device, width: int, *, heads: int | None = None) -> Iterator[Case]:
    """Every case of a model of that width (a key of MODELS); `heads` of attention alone, else the model's."""
    hidden, model_heads = MODELS[width]
    yield from norm_cases(device, width, model_heads)
    yield from quantize_cases(device, width, hidden)
    for features, out in ((width, width), (width, hidden), (hidden, width)):
        yield from product_cases(device, features, out)
    yield from block_cases(device, width, width)
    yield from attention_cases(device, heads or model_heads)
    yield from vae_cases(device, VAE_CHANNELS)


@contextmanager
def poisoned() -> Iterator[None]:
    """Buffers that are allocated and not filled are full of NaN (integers: of their largest value)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, that its products are not deterministic
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def values(output: Any) -> list[Tensor]:
    """The numbers that an output stands for: 8-bit values times their scale."""
    if isinstance(output, Tensor):
        return [output.float()]
    if output[0].dtype.itemsize > 1:
        return [x.float() for x in output]
    x, scale = output
    if scale.ndim == x.ndim:  # 128 x 128 blocks
        scale = scale.repeat_interleave(128, 0)[: x.shape[0]].repeat_interleave(128, 1)[:, : x.shape[1]]
        return [x.float() * scale]
    return [x.float() * scale[..., None]]


def error(actual: Any, expected: Any) -> float:
    """The largest relative L2 distance over the outputs; NaN where one is not finite."""
    pairs = list(zip(values(actual), values(expected), strict=True))
    if not all(a.isfinite().all() for a, _ in pairs):
        return float("nan")  # not left to max(), which passes over a NaN
    return max(((a - e).norm(dtype=torch.float64) / e.norm(dtype=torch.float64)).item() for a, e in pairs)


def missed_blocks(actual: Tensor, expected: Tensor) -> float:
    """The share of the expected blocks that are not among the actual ones."""
    if actual.shape != expected.shape or actual.min() < 0 or actual.max() > 2**20:
        return 1.0  # no map at all
    size = int(max(actual.max(), expected.max())) + 1
    flags = [torch.zeros(*m.shape[:3], size, dtype=torch.bool, device=m.device) for m in (actual, expected)]
    for flag, m in zip(flags, (actual, expected), strict=True):
        flag.scatter_(-1, m.long(), True)
    return 1 - (flags[0] & flags[1]).sum().item() / expected.numel()


@torch.no_grad()
def errors(case: Case, tokens: int, seed: int) -> tuple[float, float]:
    """The error of a case's kernel on fresh inputs, and what it may be; a NaN is an error too."""
    inputs = case.make(tokens, seed)
    with poisoned():
        actual = case.run(case.impl, *inputs)
    reference = case.run("reference", *inputs)
    measure = case.distance or error
    if case.exact is None:
        assert case.bound is not None, f"{case.title}: neither exact nor bound"
        return measure(actual, reference), case.bound
    expected = case.exact(*inputs)
    allowed = OF_THE_EMULATION * measure(reference, expected) + NEARLY_EXACT
    return measure(actual, expected), min(allowed, case.bound or allowed)
