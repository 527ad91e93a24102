"""Every attention kernel against its reference and against the clock, on one GPU.

python benchmarks/attention.py [--out FILE.json] [--sizes 480p,720p] [--only NAME] [--tune]

First the checks: outputs start as NaN, shapes are ragged and real, both sides attend by the kernel's map; an error
against float32 must be within evaluation.md's bound and at most 1.1 times that of the same arithmetic in PyTorch. The
map is compared with the reference's by overlap. Then the times, of what was right in the same run: medians of a CUDA
graph's replays (q, k and v are larger than any L2 cache); a module also as eager calls. --tune tries each launch.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench, do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).parents[1]))

from turbodiffusion.doctor import gpu_is_lost
from turbodiffusion.ops.attention import sla, sla_triton
from turbodiffusion.ops.attention.block_map_triton import choose_blocks
from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.linear_triton import key_state, linear_forward
from turbodiffusion.ops.attention.quantize_triton import pack, query_pass
from turbodiffusion.ops.attention.sage_triton import attend_packed
from turbodiffusion.ops.attention.sparse_triton import (
    HOPPER_EIGHT_BITS,
    HOPPER_SIXTEEN_BITS,
    Launch,
    sparse_forward,
)
from turbodiffusion.ops.cases import BOUNDS, HEAD_DIM, RAGGED, Case, attention_cases, errors, poisoned
from turbodiffusion.results import Row, write_results

SIZES = {"480p": (32760, 12), "720p": (75600, 40)}  # tokens and heads: 1.3B at 832x480, 14B at 1280x720
TOPK = 0.1
# Head dim, block of q, block of k: each is compiled anew.
BLOCKS = ((64, 128, 64), (64, 64, 128), (128, 128, 64), (128, 64, 64))
MODULE_TARGET_MS = 1.3
# What --tune tries of the sparse kernel, the default first. 64 rows read each kept block twice as often from the L2
# cache as 128 do; 168 registers let three programs of 4 warps share a multiprocessor, 128 two of 8 warps.
TUNING = {
    "int8": (
        HOPPER_EIGHT_BITS,
        replace(HOPPER_EIGHT_BITS, pair=False),
        replace(HOPPER_EIGHT_BITS, num_stages=3),
        Launch(num_stages=2, pair=True),
    ),
    "bf16": (
        HOPPER_SIXTEEN_BITS,
        replace(HOPPER_SIXTEEN_BITS, maxnreg=128),
        Launch(rows=64, num_stages=2, maxnreg=168, pair=True),
        Launch(),
    ),
}
# Rows of the 480p size under the names that h200.json has them by.
HEADLINES = {
    "sla.module.ms": "sagesla.module.480p.ms",
    "error.sagesla": "error.sagesla@480p",
    "error.blockmap.overlap": "error.blockmap.overlap@480p",
}


@dataclass(frozen=True)
class Inputs:
    """bfloat16 q, k and v as views into one projection, and proj_l."""

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    bias: Tensor


@dataclass
class Report:
    only: str
    rows: list[Row]
    wrong: list[str]

    def add(self, name: str, value: float, unit: str, better: str, target: float | None, method: str) -> None:
        row = Row(name, value, unit, better, target, method)
        self.rows.append(row)
        goal = "" if target is None else f"{'<=' if better == 'lower' else '>='} {target:.4g}"
        print(f"{'MISS' if row.misses else '    '} {name:<52} {value:>10.4g} {unit:<12} {goal}", flush=True)

    def time(self, name: str, run: Callable[[], object], tflop: float = 0.0, target: float | None = None) -> None:
        """Milliseconds, and the rate where operations are given; nothing for what a check found wrong."""
        if self.only not in name:
            return
        if any(wrong.split("@")[0] in name for wrong in self.wrong):
            print(f"---- {name:<52} not timed: it is wrong", flush=True)
            return
        ms = do_bench_cudagraph(run, rep=100, return_mode="median")
        self.add(f"{name}.ms", ms, "ms", "lower", target, "median of CUDA graph replays")
        if tflop:
            self.add(f"{name}.rate", tflop / ms * 1e3, "TFLOP/s", "higher", None, "operations of the kept blocks")


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """As `cases.error`, of gradients and of launches."""
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


def inputs(tokens: int, heads: int, head_dim: int, seed: int = 0) -> Inputs:
    """Gaussian, as the bounds are meant; keys have a mean of their own per head and channel."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    qkv = random(1, tokens, 3, heads, head_dim)
    qkv[:, :, 1] += 2 * random(1, 1, heads, head_dim)
    q, k, v = qkv.bfloat16().unbind(2)
    return Inputs(q, k, v, random(head_dim, head_dim) * head_dim**-0.5, random(head_dim) * 0.1)


def check_all(report: Report, cases: Iterable[Case], tokens: int, at: str) -> None:
    """Every forward at one shape."""
    for case in cases:
        off, allowed = errors(case, tokens, 0)
        right, name = off <= allowed, case.name.replace("_attention", "")  # not right for NaN too
        if case.name == "block_map":
            report.wrong += [] if right else [f"choose@{at}"]
            method = "blocks that the reference keeps too"
            report.add(f"error.blockmap.overlap@{at}", 1 - off, "share", "higher", 1 - allowed, method)
            continue
        report.wrong += [] if right else [f"{name}@{at}"]
        report.add(f"error.{name}@{at}", off, "relative L2", "lower", allowed, "against float32 on an identical map")


def check_gradients(report: Report, tokens: int, head_dim: int) -> None:
    x = inputs(tokens, 2, head_dim)
    kept = sla.block_map(x.q, x.k, topk=0.3)
    leaves = (x.q, x.k, x.v, x.weight, x.bias)

    def gradients(impl: str, low: bool) -> tuple[Tensor, ...]:
        q, k, v, weight, bias = ((y if low else y.float()).detach().requires_grad_() for y in leaves)
        out = sla.sparse_attention(q, k, v, kept, impl=impl)
        out = out + sla.projected_linear_attention(q, k, v, weight, bias, impl=impl)
        seed = torch.Generator("cuda").manual_seed(1)
        return torch.autograd.grad(
            out, (q, k, v, weight, bias), torch.randn(out.shape, generator=seed, device="cuda").to(out)
        )

    with poisoned():
        actual = gradients("triton", True)
    for name, got, value in zip("qkvwb", actual, gradients("reference", False), strict=True):
        title, off, allowed = f"gradient.{name}@{tokens}x{head_dim}", relative_l2(got, value), 2**0.5 * BOUNDS["bf16"]
        report.wrong += [] if off <= allowed else [title]  # two terms, each within its own bound
        report.add(f"error.{title}", off, "relative L2", "lower", allowed, "against float32 on an identical map")


def time_all(report: Report, x: Inputs, size: str) -> None:
    """The whole modules and each part of them, at blocks of 128 and 64."""
    tokens, heads = SIZES[size]
    dense_tflop = 4 * tokens**2 * HEAD_DIM * heads / 1e12
    keys = key_state(x.k, x.v, 64, x.weight)
    packed, pooled_q = pack(x.q, x.k, x.v, keys, 128, 64, "int8")
    packed_fp8, _ = pack(x.q, x.k, x.v, keys, 128, 64, "fp8")
    kept = choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, TOPK)
    tflop = dense_tflop * kept.shape[-1] / -(-tokens // 64)
    shape, dtype = x.q.shape, x.q.dtype
    term = sla_triton.linear_term(x.q, keys, packed.shift_BHL, x.bias)
    proj = (x.weight, x.bias, TOPK, 128, 64)

    def sagesla_module() -> Tensor:
        return sla_triton.sagesla_attention(x.q, x.k, x.v, *proj, "int8")

    def sla_module() -> Tensor:
        return sla_triton.sla_attention(x.q, x.k, x.v, *proj)

    target = MODULE_TARGET_MS if size == "480p" else None
    report.time(f"sagesla.module.{size}", sagesla_module, tflop, target)
    report.time(f"sla.module.{size}", sla_module, tflop)
    for name, module in (("sagesla", sagesla_module), ("sla", sla_module)):
        ms = do_bench(module, return_mode="median")
        report.add(f"{name}.module.{size}.eager.ms", ms, "ms", "lower", None, "median of calls without a graph")
    report.time(f"sage_sparse.int8.{size}", lambda: attend_packed(packed, kept, shape, tokens, dtype), tflop)
    report.time(f"sage_sparse.fp8.{size}", lambda: attend_packed(packed_fp8, kept, shape, tokens, dtype), tflop)
    report.time(
        f"sage_sparse.int8.with_linear.{size}",
        lambda: attend_packed(packed, kept, shape, tokens, dtype, linear=term),
        tflop,
    )
    report.time(f"sparse.{size}", lambda: sparse_forward(x.q, x.k, x.v, kept, 128, 64), tflop)
    report.time(f"key_pass.{size}", lambda: key_state(x.k, x.v, 64, x.weight))
    report.time(f"pack.{size}", lambda: pack(x.q, x.k, x.v, keys, 128, 64, "int8"))
    report.time(f"query_pass.{size}", lambda: query_pass(x.q, 128, keys))
    report.time(f"choose.{size}", lambda: choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, TOPK))
    scores = pooled_q @ (keys.pooled_BHND - keys.mean_BHD[:, :, None]).mT
    report.time(f"torch.topk.{size}", lambda: scores.topk(kept.shape[-1], dim=-1).indices.sort(dim=-1))
    report.time(f"linear_output.{size}", lambda: linear_forward(x.q, keys))
    report.time(f"sage.dense.int8.{size}", lambda: attend_packed(packed, None, shape, tokens, dtype), dense_tflop)

    def cudnn() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return dense_attention(x.q, x.k, x.v)

    report.time(f"cudnn.dense.{size}", cudnn, dense_tflop)
    if size == "480p":
        time_gradients(report, x, kept, tflop, size)


def time_gradients(report: Report, x: Inputs, kept: Tensor, tflop: float, size: str) -> None:
    q, k, v = (y.detach().clone().requires_grad_() for y in (x.q, x.k, x.v))
    sparse = sla_triton.sparse_attention(q, k, v, kept, 128, 64)
    linear = sla_triton.linear_attention(q, k, v)
    grad = torch.randn_like(sparse)
    for name, out, work in (("sparse", sparse, 3.5 * tflop), ("linear", linear, 0.0)):  # 7 products where 2 were
        ms = do_bench(
            lambda out=out: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), return_mode="median"
        )
        report.add(f"{name}.backward.{size}.ms", ms, "ms", "lower", None, "median of calls without a graph")
        if work:
            report.add(f"{name}.backward.{size}.rate", work / ms * 1e3, "TFLOP/s", "higher", None, "kept blocks")


def tune(x: Inputs, size: str) -> None:
    """The sparse kernel under each launch, fastest first; each output is compared with the default's."""
    tokens, heads = SIZES[size]
    # Sums that Hopper cuts towards zero come out right for values of both signs: a mean shows what they lose.
    mean = torch.randn(heads, HEAD_DIM, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    x = replace(x, v=x.v + mean.bfloat16())
    keys = key_state(x.k, x.v, 64, x.weight)
    packed, pooled_q = pack(x.q, x.k, x.v, keys, 128, 64, "int8")
    kept = choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, TOPK)
    term = sla_triton.linear_term(x.q, keys, packed.shift_BHL, x.bias)
    runs: dict[str, Callable[[Launch], Tensor]] = {
        "int8": lambda launch: attend_packed(packed, kept, x.q.shape, tokens, x.q.dtype, linear=term, launch=launch),
        "bf16": lambda launch: sparse_forward(x.q, x.k, x.v, kept, 128, 64, linear=term, launch=launch)[0],
    }
    for name, run in runs.items():
        expected, found = run(TUNING[name][0]), []
        for launch in TUNING[name]:
            try:
                error = relative_l2(run(launch), expected)
                ms = do_bench_cudagraph(partial(run, launch), rep=20, return_mode="median")
                found.append((ms, error, launch))
            except Exception as failure:  # more shared memory than there is, for one: the others are still of use
                print(f"{name} {launch}: {type(failure).__name__}: {str(failure).splitlines()[0][:100]}", flush=True)
                stop_if_lost(failure)
        for ms, error, launch in sorted(found, key=lambda entry: entry[0]):
            print(f"{name} {size} {ms:8.4f} ms, {error:.1e} from the default: {launch}", flush=True)


def stop_if_lost(failure: Exception) -> None:
    if gpu_is_lost(str(failure)):
        sys.exit("the GPU is lost to this process; nothing after this kernel was tried")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention.json"))
    parser.add_argument("--sizes", default="480p,720p")
    parser.add_argument("--only", default="", help="time only what has this in its name")
    parser.add_argument("--tune", action="store_true", help="try each launch of the sparse kernel, and nothing else")
    chosen = parser.parse_args(arguments)
    sizes = chosen.sizes.split(",")
    if chosen.tune:
        for size in sizes:
            tune(inputs(*SIZES[size], HEAD_DIM), size)
        return 0
    report = Report(chosen.only, [], [])
    device = torch.device("cuda")
    for head_dim, block_q, block_k in BLOCKS:
        shape: Any = {"head_dim": head_dim, "block_q": block_q, "block_k": block_k}
        for tokens in RAGGED:
            cases = attention_cases(device, 2, topk=0.3, tokens=tokens, **shape)
            check_all(report, cases, tokens, f"{tokens}x{head_dim}.{block_q}.{block_k}")
    for tokens, head_dim in product((129, 780), (64, 128)):
        check_gradients(report, tokens, head_dim)
    for size in sizes:
        tokens, heads = SIZES[size]
        check_all(report, attention_cases(device, heads, topk=TOPK, tokens=tokens, dense=False), tokens, size)
        x = inputs(tokens, heads, HEAD_DIM)
        time_all(report, x, size)
        del x
        torch.cuda.empty_cache()
    rows = {row.name: row for row in report.rows}
    report.rows += [replace(rows[row], name=name) for name, row in HEADLINES.items() if row in rows]
    write_results(chosen.out, report.rows, " ".join(sys.argv), keep=bool(chosen.only))
    print(f"{len(report.wrong)} wrong: {', '.join(report.wrong) or 'none'}; {chosen.out}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
