"""Every kernel against its reference and against the clock, on one GPU.

python benchmarks/ops.py --ops linear,norm,vae --out FILE.json       (--only NAME: those whose name has it in; --tune)

First the checks: outputs start as NaN, shapes are ragged and real, and a kernel's error against float32 must not be
over 1.1 times its reference's (evaluation.md). A speed counts only where the same run has found the output right. Then
the times: a CUDA graph of calls that rotate through inputs larger together than the L2 cache, the median of its
replays. `--tune` times every product under each way to cut it instead.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from turbodiffusion.evaluation.result_file import Row, write_results
from turbodiffusion.inference import doctor
from turbodiffusion.ops.cases import (
    MODELS,
    RAGGED,
    VAE_CHANNELS,
    Case,
    block_cases,
    errors,
    norm_cases,
    product_cases,
    quantize_cases,
    random,
    vae_cases,
)
from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import int8_row_linear, quantize_int8_block, quantize_int8_row

DEVICE = torch.device("cuda")
LINEARS = {
    "int8_row": (quantize_int8_row, int8_row_linear),
    "fp8_row": (quantize_fp8_row, fp8_row_linear),
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
# Of a GPU that doctor's table does not know, the share is of an H200.
PEAK = doctor.limits(torch.cuda.get_device_name() if torch.cuda.is_available() else None) or doctor.LIMITS["H200"]


def linear_cases() -> Iterator[Case]:
    for (features, out), target in SHAPES.items():
        yield from whole_cases(features, out, target)
        yield from product_cases(DEVICE, features, out)
        yield from block_cases(DEVICE, features, out)
    for width, (hidden, _) in MODELS.items():
        yield from quantize_cases(DEVICE, width, hidden)
        yield quantize_block_case(width)


def norms() -> Iterator[Case]:
    for width, (_, heads) in MODELS.items():
        yield from norm_cases(DEVICE, width, heads)


def whole_cases(features: int, out: int, target: float) -> Iterator[Case]:
    """A linear as a model sees it, rounding of its input included, and PyTorch's own to compare with."""
    shape, work = f"{features}x{out}", 2.0 * Case.tokens * features * out
    weight, bias = random(DEVICE, out, features, seed=1001, scale=features**-0.5), random(DEVICE, out, seed=1002)
    float32 = weight.float()

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        return (random(DEVICE, tokens, features, seed=seed),)

    def case(name: str, make: Callable, run: Callable, **others: Any) -> Case:
        return Case(name, "linear", shape, make, run, work, "TOP/s", **others)

    def dense(_: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    yield case("linear.bf16", make, dense, impl="torch")
    for kind, (quantize, linear) in LINEARS.items():
        w8 = quantize(weight)
        yield case(
            f"linear.{kind}",
            make,
            lambda impl, x, w8=w8, linear=linear: linear(x, *w8, bias, impl=impl),
            exact=lambda x: torch.addmm(bias.float(), x.float(), float32.T),
            target=target,
        )
    w8 = quantize_fp8_row(weight)
    yield case(
        "product.scaled_mm",
        lambda tokens, seed: quantize_fp8_row(random(DEVICE, tokens, features, seed=seed)),
        lambda _, *x: scaled_mm(*x, *w8),
        impl="torch",
    )


def scaled_mm(x: Tensor, scale: Tensor, weight: Tensor, w_scale: Tensor) -> Tensor:
    """PyTorch's own fp8 product with row scales."""
    return torch._scaled_mm(
        x, weight.T, scale_a=scale[:, None], scale_b=w_scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
    )


def quantize_block_case(width: int) -> Case:
    """The published rounding by blocks, which `int8_block_linear` does inside."""
    from turbodiffusion.ops.linear.kernels.quantize import quantize_blocks

    return Case(
        "quantize.int8_block",
        "linear",
        str(width),
        lambda tokens, seed: (random(DEVICE, tokens, width, seed=seed),),
        lambda impl, x: quantize_blocks(x) if impl == "triton" else quantize_int8_block(x),
        3.0 * Case.tokens * width,
        "TB/s",
        exact=lambda x: x.float(),
    )


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "linear": linear_cases,
    "norm": norms,
    "vae": lambda: vae_cases(DEVICE, VAE_CHANNELS),
}


def measure(case: Case) -> list[Row]:
    """Check one case at every length, time it, print its line. A failure is a row without a value."""
    off = None
    try:
        if case.impl == "triton":
            for tokens in (*RAGGED, case.tokens):
                off, allowed = errors(case, tokens, tokens)
                assert off <= allowed, f"error {off:.2e} at {tokens} tokens, allowed are {allowed:.2e}"
        torch.cuda.empty_cache()
        ms = doctor.milliseconds(case)
    except Exception as failure:
        print(f"{case.title:<48} FAILED {type(failure).__name__}: {str(failure).splitlines()[0][:200]}", flush=True)
        stop_if_lost(failure)
        return [Row(f"{case.title}.{case.unit}", None, case.unit, "higher", case.target, f"failed: {failure}"[:500])]
    rate = case.work / ms / 1e9
    share = rate / PEAK[case.unit]
    print(
        f"{case.title:<48} {case.tokens:>6} {ms:8.3f} ms {rate:8.2f} {case.unit} {share:6.1%}"
        + ("" if off is None else f"  error {off:.2e}"),
        flush=True,
    )
    method = f"{case.tokens} tokens, CUDA graph over rotating inputs, median of 20; {share:.1%} of {PEAK[case.unit]:g}"
    rows = [
        Row(f"{case.title}.ms", ms, "ms", "lower", None, method),
        Row(f"{case.title}.{case.unit}", rate, case.unit, "higher", case.target, method),
    ]
    if off is not None:
        against = "the reference" if case.exact is None else "float32"
        rows.append(Row(f"{case.title}.error", off, "", "lower", None, f"relative L2 against {against}"))
    return rows


def tune(only: str) -> None:
    """Every product under each Config: two formats with row scales, int8 with block scales."""
    from turbodiffusion.ops.linear.kernels.gemm import TUNING, gemm

    for features, out in SHAPES:
        weight = random(DEVICE, out, features, seed=1001, scale=features**-0.5)
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
                    f"product.{name}",
                    "linear",
                    f"{features}x{out}",
                    lambda tokens, seed, quantize=quantize, features=features: quantize(
                        random(DEVICE, tokens, features, seed=seed)
                    ),
                    lambda _, x, scale, w8=w8, config=config: gemm(x, scale, *w8, dtype=torch.bfloat16, config=config),
                    2.0 * Case.tokens * features * out,
                    "TOP/s",
                )
                try:
                    ms = doctor.milliseconds(case)
                except Exception as failure:
                    print(f"{case.title:<32} {type(failure).__name__}: {str(failure).splitlines()[0][:80]}  {config}")
                    stop_if_lost(failure)
                    continue
                print(f"{case.title:<32} {ms:8.3f} ms {case.work / ms / 1e9:8.1f} TOP/s  {config}", flush=True)


def stop_if_lost(failure: Exception) -> None:
    if doctor.gpu_is_lost(str(failure)):
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
                if chosen.only in case.title:
                    rows += measure(case)
    if chosen.out:
        write_results(chosen.out, rows, "python " + " ".join([*sys.argv]), keep=True)
    return 1 if any(row.value is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
