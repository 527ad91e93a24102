"""Every kernel against its reference and against the clock, on one GPU.

python benchmarks/ops.py --ops linear,norm --out FILE.json       (--only NAME: those whose name has it in; --tune)

First the checks: outputs start as NaN, shapes are ragged and real, and a kernel's error against float32 must not be
over 1.1 times its reference's (evaluation.md). A speed counts only where the same run has found the output right. Then
the times: a CUDA graph of calls that rotate through inputs larger together than the L2 cache, the median of its
replays. `--tune` times every product under each way to cut it instead.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import (
    int8_block_linear,
    int8_row_linear,
    quantize_int8_block,
    quantize_int8_row,
)
from turbodiffusion.ops.linear.rows import quantize_rows, row_linear
from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import video_turns
from turbodiffusion.ops.rounding import FP8
from turbodiffusion.results import Row, write_results

GRID = (21, 30, 52)  # 81 frames at 832x480: 32760 tokens, a multiple of no tile
EPS = 1e-6
DEVICE = torch.device("cuda")
RAGGED = (1, 127, 129, 780)
FORMATS = {torch.int8: "int8", FP8: "fp8"}
LINEARS = {
    "int8_row": (quantize_int8_row, int8_row_linear),
    "fp8_row": (quantize_fp8_row, fp8_row_linear),
    "int8_block": (quantize_int8_block, int8_block_linear),
}
# (in, out) of the 1.3B and the 14B model, and the TOP/s that row scales shall reach, quantization included.
SHAPES = {
    (1536, 1536): 650,
    (1536, 8960): 800,
    (8960, 1536): 800,
    (5120, 5120): 900,
    (5120, 13824): 900,
    (13824, 5120): 900,
}
WIDTHS = {1536: (8960, 12), 5120: (13824, 40)}  # of the model: of its ffn, and heads
# By the H200's data sheet, dense.
PEAK = {"TOP/s": 1979.0, "TB/s": 4.8}
ROTATE_BYTES = 256 << 20  # an H200's L2 cache has 60 MB


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    make(tokens, seed) gives its inputs; run(impl, *inputs) its output, or several; exact(*inputs) the float32 result
    that outputs are compared with, None where that is the reference itself. A quantized output is (values, scale).
    """

    name: str
    make: Callable[[int, int], tuple[Any, ...]]
    run: Callable[..., Any]
    work: float  # operations, or bytes read and written, at the real shape
    unit: str
    exact: Callable[..., Any] | None = None
    target: float | None = None
    tokens: int = GRID[0] * GRID[1] * GRID[2]
    impl: str = "triton"  # or "torch": PyTorch's own, to compare with; it is timed and not checked


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE).mul_(scale).to(dtype)


def linear_cases() -> Iterator[Case]:
    for (features, out), target in SHAPES.items():
        yield from product_cases(features, out, target)
    for width, (hidden, _) in WIDTHS.items():
        yield from quantize_cases(width, hidden)


def product_cases(features: int, out: int, target: float) -> Iterator[Case]:
    tokens = Case.tokens
    shape, work = f"{features}x{out}", 2.0 * tokens * features * out
    weight, bias = random(out, features, seed=1001, scale=features**-0.5), random(out, seed=1002)
    gate, float32 = random(1, out, dtype=torch.float32, seed=1003), weight.float()

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        return (random(tokens, features, seed=seed),)

    def exact(x: Tensor) -> Tensor:
        return torch.addmm(bias.float(), x.float(), float32.T)

    yield Case(
        f"linear.bf16.{shape}",
        make,
        lambda _, x: torch.nn.functional.linear(x, weight, bias),
        work,
        "TOP/s",
        impl="torch",
    )
    for kind, (quantize, linear) in LINEARS.items():
        w8 = quantize(weight)
        yield Case(
            f"linear.{kind}.{shape}",
            make,
            lambda impl, x, w8=w8, linear=linear: linear(x, *w8, bias, impl=impl),
            work,
            "TOP/s",
            exact,
            target if kind.endswith("row") else None,
        )
    for dtype, name in FORMATS.items():
        w8 = quantize_rows(weight, dtype)

        def make8(tokens: int, seed: int, dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
            x = random(tokens, features, seed=seed)
            return *quantize_rows(x, dtype), random(1, tokens, out, seed=seed + 1)

        def product(impl: str, x: Tensor, scale: Tensor, residual: Tensor, w8: Any = w8, **fused: Any) -> Tensor:
            if "gate_BO" in fused:
                fused["residual"] = residual[0]
            return row_linear(x, scale, *w8, bias, dtype=torch.bfloat16, impl=impl, **fused)

        yield Case(f"product.{name}.{shape}", make8, product, work, "TOP/s")
        if out > features:
            yield Case(
                f"product.{name}.gelu.{shape}", make8, lambda *a, product=product: product(*a, gelu=True), work, "TOP/s"
            )
        if out <= features:
            yield Case(
                f"product.{name}.gate.{shape}",
                make8,
                lambda *a, product=product: product(*a, gate_BO=gate),
                work,
                "TOP/s",
            )
        if dtype == FP8:
            yield Case(
                f"product.scaled_mm.{shape}",
                make8,
                lambda _, *a, w8=w8: scaled_mm(*a, *w8),
                work,
                "TOP/s",
                impl="torch",
            )


def scaled_mm(x: Tensor, scale: Tensor, _: Tensor, weight: Tensor, w_scale: Tensor) -> Tensor:
    """PyTorch's own fp8 product with row scales, to compare with."""
    return torch._scaled_mm(
        x, weight.T, scale_a=scale[:, None], scale_b=w_scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
    )


def quantize_cases(width: int, hidden: int) -> Iterator[Case]:
    from turbodiffusion.ops.linear.quantize_triton import quantize_blocks

    def of(features: int) -> Callable[[int, int], tuple[Tensor, ...]]:
        return lambda tokens, seed: (random(tokens, features, seed=seed),)

    for dtype, name in FORMATS.items():
        yield Case(
            f"quantize.{name}.{width}",
            of(width),
            lambda impl, x, dtype=dtype: quantize_rows(x, dtype, impl=impl),
            3.0 * Case.tokens * width,
            "TB/s",
            lambda x: x.float(),
        )
        yield Case(
            f"quantize.{name}.gelu.{hidden}",
            of(hidden),
            lambda impl, x, dtype=dtype: quantize_rows(x, dtype, gelu=True, impl=impl),
            3.0 * Case.tokens * hidden,
            "TB/s",
            lambda x: torch.nn.functional.gelu(x.float(), approximate="tanh"),
        )
    yield Case(
        f"quantize.int8_block.{width}",
        of(width),
        lambda impl, x: quantize_blocks(x) if impl == "triton" else quantize_int8_block(x),
        3.0 * Case.tokens * width,
        "TB/s",
        lambda x: x.float(),
    )


def norm_cases() -> Iterator[Case]:
    for width, (_, heads) in WIDTHS.items():
        yield from model_norm_cases(width, heads)


def model_norm_cases(width: int, heads: int) -> Iterator[Case]:
    size = float(Case.tokens * width)
    shift, scale = random(2, 1, width, dtype=torch.float32, seed=1001).unbind()
    weight, bias = random(2, width, dtype=torch.float32, seed=1002).unbind()

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        return (random(1, tokens, width, seed=seed) + 1,)

    def modulated(x: Tensor) -> Tensor:
        return modulated_layer_norm(x.float(), shift, scale, EPS)

    def affine(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x.float(), (width,), weight, bias, EPS)

    yield Case(
        f"modulated_layer_norm.{width}",
        make,
        lambda impl, x: modulated_layer_norm(x, shift, scale, EPS, impl=impl),
        4 * size,
        "TB/s",
        modulated,
    )
    yield Case(
        f"rms_norm.{width}",
        make,
        lambda impl, x: rms_norm(x, weight, EPS, impl=impl),
        4 * size,
        "TB/s",
        lambda x: rms_norm(x.float(), weight, EPS),
    )
    for dtype, name in FORMATS.items():
        yield Case(
            f"quantized_modulated_layer_norm.{name}.{width}",
            make,
            lambda impl, x, dtype=dtype: quantized_modulated_layer_norm(x, shift, scale, EPS, dtype, impl=impl),
            3 * size,
            "TB/s",
            modulated,
        )
        yield Case(
            f"quantized_layer_norm.{name}.{width}",
            make,
            lambda impl, x, dtype=dtype: quantized_layer_norm(x, weight, bias, EPS, dtype, impl=impl),
            3 * size,
            "TB/s",
            affine,
        )
    yield Case(
        f"add_gated.{width}",
        lambda tokens, seed: make(tokens, seed) + make(tokens, seed + 1),
        lambda impl, x, y: add_gated(x, y, shift, impl=impl),
        6 * size,
        "TB/s",
        lambda x, y: add_gated(x.float(), y.float(), shift),
    )
    for blocks, name in ((None, "norm_rope_qk"), ((128, 64), "norm_rope_qk.pooled")):

        def rotate(impl: str, qkv: Tensor, turns: Tensor, blocks: Any = blocks) -> list[Tensor]:
            out = norm_rope_qk(qkv, weight, bias, turns, heads, EPS, blocks=blocks, impl=impl)
            return [x for x in vars(out).values() if x is not None]

        yield Case(
            f"{name}.{width}",
            lambda tokens, seed: (random(1, tokens, 3 * width, seed=seed), turns_of(tokens, width // heads)),
            rotate,
            8 * size,
            "TB/s",
            lambda qkv, turns, rotate=rotate: rotate("reference", qkv.float(), turns),
        )


def turns_of(tokens: int, head_dim: int) -> Tensor:
    grid = GRID if tokens == Case.tokens else (tokens, 1, 1)
    return video_turns(*grid, head_dim, DEVICE)


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {"linear": linear_cases, "norm": norm_cases}


@contextmanager
def poisoned() -> Iterator[None]:
    """Outputs start as NaN (integers: 85), so that what a kernel leaves unwritten shows."""
    empty = Tensor.new_empty

    def new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = empty(self, *args, **kwargs)
        return out.fill_(torch.nan if out.is_floating_point() else 85)

    Tensor.new_empty = new_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.new_empty = empty  # type: ignore[method-assign]


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
    pairs = zip(values(actual), values(expected), strict=True)
    return max(
        ((a.double() - e.double()).norm() / e.double().norm()).item() if a.isfinite().all() else float("nan")
        for a, e in pairs
    )


def check(case: Case, tokens: int) -> tuple[float, float]:
    """The errors of the kernel and of its reference against float32 (without `exact`: kernel and reference's apart).

    Raises AssertionError where the kernel is further off than evaluation.md allows.
    """
    inputs = case.make(tokens, tokens)
    with poisoned():
        actual = case.run(case.impl, *inputs)
    reference = case.run("reference", *inputs)
    if case.exact is None:
        # The same 8-bit inputs: bfloat16 halves its last bit once in each, Hopper adds fp8 products with 14 bits.
        off, allowed = error(actual, reference), 2**-8
    else:
        expected = case.exact(*inputs)
        off, allowed = error(actual, expected), 1.1 * error(reference, expected)
    assert off <= allowed, f"{case.name} at {tokens} tokens: error {off:.2e}, allowed are {allowed:.2e}"
    return off, allowed


def milliseconds(case: Case) -> float:
    """Median time of a call inside a CUDA graph whose calls rotate through inputs larger together than the L2."""
    inputs = [case.make(case.tokens, 0)]
    size = sum(x.nbytes for x in inputs[0] if isinstance(x, Tensor))
    inputs += [case.make(case.tokens, seed) for seed in range(10, 10 + min(3, ROTATE_BYTES // size))]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()  # the inputs are made on another stream
    with torch.cuda.stream(stream):
        case.run(case.impl, *inputs[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for x in inputs:
                case.run(case.impl, *x)
        times = []
        for _ in range(25):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / len(inputs))
    return statistics.median(times[5:])


def measure(case: Case) -> list[Row]:
    """Check one case at every length, time it, print its line. A failure is a row without a value."""
    off = None
    try:
        if case.impl == "triton":
            for tokens in RAGGED:
                check(case, tokens)
            off, _ = check(case, case.tokens)
        torch.cuda.empty_cache()
        ms = milliseconds(case)
    except Exception as failure:
        print(f"{case.name:<48} FAILED {type(failure).__name__}: {str(failure).splitlines()[0][:200]}", flush=True)
        stop_if_lost(failure)
        return [Row(f"{case.name}.{case.unit}", None, case.unit, "higher", case.target, f"failed: {failure}"[:500])]
    rate = case.work / ms / 1e9
    share = rate / PEAK[case.unit]
    print(
        f"{case.name:<48} {case.tokens:>6} {ms:8.3f} ms {rate:8.2f} {case.unit} {share:6.1%}"
        + ("" if off is None else f"  error {off:.2e}"),
        flush=True,
    )
    method = f"{case.tokens} tokens, CUDA graph over rotating inputs, median of 20; {share:.1%} of {PEAK[case.unit]:g}"
    rows = [
        Row(f"{case.name}.ms", ms, "ms", "lower", None, method),
        Row(f"{case.name}.{case.unit}", rate, case.unit, "higher", case.target, method),
    ]
    if off is not None:
        against = "the reference" if case.exact is None else "float32"
        rows.append(Row(f"{case.name}.error", off, "", "lower", None, f"relative L2 against {against}"))
    return rows


def tune(only: str) -> None:
    """Every product under each Config: two formats with row scales, int8 with block scales."""
    from turbodiffusion.ops.linear.gemm_triton import TUNING, gemm

    for features, out in SHAPES:
        weight = random(out, features, seed=1001, scale=features**-0.5)
        for name, quantize in (
            ("int8", quantize_int8_row),
            ("fp8", quantize_fp8_row),
            ("int8_block", quantize_int8_block),
        ):
            if only not in f"product.{name}.{features}x{out}":
                continue
            w8 = quantize(weight)
            for config in TUNING:
                if config.promote and name != "fp8":  # sums of int8 are exact
                    continue
                case = Case(
                    f"product.{name}.{features}x{out}",
                    lambda tokens, seed, quantize=quantize, features=features: quantize(
                        random(tokens, features, seed=seed)
                    ),
                    lambda _, x, scale, w8=w8, config=config: gemm(x, scale, *w8, dtype=torch.bfloat16, config=config),
                    2.0 * Case.tokens * features * out,
                    "TOP/s",
                )
                try:
                    ms = milliseconds(case)
                except Exception as failure:
                    print(f"{case.name:<32} {type(failure).__name__}: {str(failure).splitlines()[0][:80]}  {config}")
                    stop_if_lost(failure)
                    continue
                print(f"{case.name:<32} {ms:8.3f} ms {case.work / ms / 1e9:8.1f} TOP/s  {config}", flush=True)


def stop_if_lost(failure: Exception) -> None:
    """An illegal access ends the process's use of the GPU: everything after it would fail, too."""
    if any(word in str(failure) for word in ("illegal", "misaligned", "unspecified launch failure")):
        sys.exit("the GPU is lost to this process; nothing after this kernel was tried")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default=",".join(GROUPS), help="groups, by comma")
    parser.add_argument("--only", default="", help="only names with this in them")
    parser.add_argument(
        "--tune", action="store_true", help="time the products under each way to cut them, check nothing"
    )
    parser.add_argument("--out", type=Path, help="a result file; rows that are in it and not measured now stay")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("an NVIDIA GPU is needed; on a CPU, tests/ops checks the kernels in Triton's interpreter")
    if chosen.tune:
        tune(chosen.only)
        return 0
    rows: list[Row] = []
    with torch.no_grad():
        for group in chosen.ops.split(","):
            for case in GROUPS[group]():
                if chosen.only in case.name:
                    rows += measure(case)
    if chosen.out:
        write_results(chosen.out, rows, "python " + " ".join([*sys.argv]), keep=True)
    return 1 if any(row.value is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
