"""Every attention kernel against its reference and against the clock, on one GPU.

python benchmarks/attention.py [--out FILE.json] [--sizes 480p,720p] [--only NAME] [--tune]

First the checks: outputs start as NaN, shapes are ragged and real, both sides attend by the kernel's map; an error
against float32 must be within evaluation.md's bound and at most 1.1 times that of the same arithmetic in PyTorch. The
map is compared with the reference's by overlap. Then the times, of what was right in the same run: medians of a CUDA
graph's replays (q, k and v are larger than any L2 cache); a module also as eager calls. --tune checks and times each
launch of each part.
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

from benchmarks.targets import target as target_of
from turbodiffusion.evaluation.result_file import Row, write_results
from turbodiffusion.inference.doctor import gpu_is_lost
from turbodiffusion.ops.attention import sla
from turbodiffusion.ops.attention.dense import attention_tangent, dense_attention
from turbodiffusion.ops.attention.kernels import sla as sla_triton
from turbodiffusion.ops.attention.kernels.block_map import choose_blocks
from turbodiffusion.ops.attention.kernels.linear import KeyState, key_state, linear_forward
from turbodiffusion.ops.attention.kernels.quantize import KEY_ORDER, Packed, pack, query_pass
from turbodiffusion.ops.attention.kernels.sage import attend_packed
from turbodiffusion.ops.attention.kernels.sparse import Launch, fastest_launch, sparse_forward
from turbodiffusion.ops.attention.sage import quantize
from turbodiffusion.ops.cases import BOUNDS, HEAD_DIM, RAGGED, Case, attention_cases, errors, poisoned

SIZES = {"480p": (32760, 12), "720p": (75600, 40)}  # tokens and heads: 1.3B at 832x480, 14B at 1280x720
TOPK = 0.1
# Head dim, block of q, block of k: each is compiled anew.
BLOCKS = ((64, 128, 64), (64, 64, 128), (128, 128, 64), (128, 64, 64))
# What --tune changes of each part's launch: on another GPU than the H100 something else may be the fastest.
_SPARSE: tuple[dict[str, Any], ...] = ({}, {"pair": False}, {"pair": True}, {"num_stages": 2}, {"num_stages": 3})
TUNING: dict[str, tuple[dict[str, Any], ...]] = {
    "key_pass": ({}, {"num_stages": 2}, {"num_stages": 4}, {"programs": 264}),
    "pack": ({}, {"num_stages": 2}, {"num_stages": 4}),
    "sparse.int8": _SPARSE,
    "sparse.bf16": _SPARSE,
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

    def time(
        self, name: str, run: Callable[[], object], tflop: float = 0.0, target: float | None = None, rep: int = 100
    ) -> None:
        """Milliseconds, and the rate where operations are given; nothing for what a check found wrong."""
        if self.only not in name:
            return
        if any(wrong.split("@")[0] in name for wrong in self.wrong):
            print(f"---- {name:<52} not timed: it is wrong", flush=True)
            return
        ms = do_bench_cudagraph(run, rep=rep, return_mode="median")
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

    target = target_of("sla.module.ms") if size == "480p" else None
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
        time_tangent(report, x, dense_tflop, size)


def time_tangent(report: Report, x: Inputs, dense_tflop: float, size: str) -> None:
    """Dense attention with its derivative along a direction: six products where attention has two."""
    whole = (x.q, x.k, x.v, x.v, x.q, x.k)
    ragged = [y[:, :780] for y in whole]
    made, exact = attention_tangent(*ragged, impl="triton"), attention_tangent(*(y.float() for y in ragged))
    off = max(relative_l2(a, b) for a, b in zip(made, exact, strict=True))
    report.add("error.tangent", off, "relative L2", "lower", BOUNDS["bf16"], "against float32, 780 tokens")
    report.wrong += [] if off <= BOUNDS["bf16"] else ["tangent"]
    report.time(f"tangent.{size}", lambda: attention_tangent(*whole, impl="triton"), 3 * dense_tflop)


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


def check_keys(x: Inputs, keys: KeyState) -> list[tuple[str, float, float]]:
    """What is off, by how much, and what it may be: against float64, head by head."""
    v, phi, weight = x.v.double(), x.k.double().softmax(-1), x.weight.double()
    state = torch.einsum("bshd,bshe->bhde", phi, v) @ weight.T
    pooled = torch.stack([rows.double().mean(1) for rows in x.k.split(64, dim=1)], dim=2)
    return [
        # phi and the state are rounded to bfloat16 once each, 2^-9 at most; float32 sums of 32760 numbers.
        ("state", relative_l2(keys.state_BHDE, state), 2**-9 * 2**0.5),
        ("key_sum", relative_l2(keys.key_sum_BHD, phi.sum(1)), 2**-9),
        ("mean", relative_l2(keys.mean_BHD, x.k.double().mean(1)), 1e-5),
        ("pooled", relative_l2(keys.pooled_BHND, pooled), 1e-5),
        ("largest", relative_l2(keys.largest_BHD, x.v.abs().amax(1)), 0.0),
    ]


def check_packed(x: Inputs, keys: KeyState, packed: Packed, pooled_q: Tensor) -> list[tuple[str, float, float]]:
    """As `check_keys`: the values as far as they differ from the reference's, the scales and the rest."""
    expected = quantize(x.q, x.k, x.v, 128, 64, "int8")
    tokens = x.q.shape[1]
    order = (torch.arange(64) // 16 * 16 + torch.tensor(KEY_ORDER).repeat(4)).to(x.v.device)
    v = torch.empty_like(packed.v, dtype=torch.float32)
    v[..., order] = packed.v.float()
    found = [
        ("q scale", relative_l2(packed.scales.q_BHN, expected.q_scale_BHN), 1e-5),
        ("k scale", relative_l2(packed.scales.k_BHN, expected.k_scale_BHN), 1e-5),
        ("v scale", relative_l2(packed.scales.v_BHD, expected.v_scale_BHD), 1e-5),
        ("mean of q", relative_l2(pooled_q[:, :, 0], x.q[:, :128].double().mean(1)), 1e-5),
        ("last mean of q", relative_l2(pooled_q[:, :, -1], x.q[:, (tokens - 1) // 128 * 128 :].double().mean(1)), 1e-5),
    ]
    for name, values, value in (
        ("q", packed.q, expected.q_BLHD),
        ("k", packed.k, expected.k_BSHD),
        ("v", v.mT, expected.v_BSHD),
    ):
        rows = values.float().flatten(2, 3).transpose(1, 2)
        # A value on the edge between two levels may fall either way.
        found.append((name, (rows[:, :tokens] != value.float()).double().mean().item(), 0.01))
        found.append((f"{name} past the end", rows[:, tokens:].abs().sum().item(), 0.0))
    sums = (x.q.double().exp() * (keys.key_sum_BHD.double()[:, None] + 1e-5)).sum(-1)
    found.append(("shift", relative_l2(packed.shift_BHL, -sums.log2().transpose(1, 2)), 1e-6))
    return found


def tune(report: Report, x: Inputs, size: str) -> None:
    """Each part under each of its launches that is right."""
    tokens, heads = SIZES[size]
    # Sums that Hopper cuts towards zero come out right for values of both signs: a mean shows what they lose.
    mean = torch.randn(heads, HEAD_DIM, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    x = replace(x, v=x.v + mean.bfloat16())
    keys = key_state(x.k, x.v, 64, x.weight)
    packed, pooled_q = pack(x.q, x.k, x.v, keys, 128, 64, "int8")
    kept = choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, TOPK)
    term = sla_triton.linear_term(x.q, keys, packed.shift_BHL, x.bias)

    def key(**change: int) -> KeyState:
        return key_state(x.k, x.v, 64, x.weight, **change)

    def int8(**change: Any) -> Tensor:
        launch = replace(fastest_launch(packed.q, 64), **change)
        return attend_packed(packed, kept, x.q.shape, tokens, x.q.dtype, linear=term, launch=launch)

    def bf16(**change: Any) -> Tensor:
        launch = replace(fastest_launch(x.q, 64), **change)
        return sparse_forward(x.q, x.k, x.v, kept, 128, 64, linear=term, launch=launch)[0]

    # By one launch in bfloat16: what that one is off itself, `cases.py` checks.
    exact = sparse_forward(x.q, x.k, x.v, kept, 128, 64, linear=term, launch=Launch())[0]
    runs: dict[str, tuple[Callable[..., Any], Callable[[Any], list[tuple[str, float, float]]]]] = {
        "key_pass": (key, lambda out: check_keys(x, out)),
        "pack": (
            partial(pack, x.q, x.k, x.v, keys, 128, 64, "int8"),
            lambda out: check_packed(x, keys, *out),
        ),
        "sparse.int8": (int8, lambda out: [("output", relative_l2(out, exact), BOUNDS["int8"])]),
        "sparse.bf16": (bf16, lambda out: [("output", relative_l2(out, exact), BOUNDS["bf16"])]),
    }
    for name, (run, check) in runs.items():
        if report.only not in name:
            continue
        for change in TUNING[name]:
            title = " ".join([f"tune.{name}.{size}", *(f"{field}={value}" for field, value in change.items())])
            once = partial(run, **change)
            try:
                with poisoned():
                    found = check(once())
                wrong = [f"{part} {off:.1e} > {most:.1e}" for part, off, most in found if not off <= most]
                if wrong:
                    report.wrong.append(f"{title}: {', '.join(wrong)}")
                    print(f"---- {report.wrong[-1]}", flush=True)
                    continue
                report.time(title, once, rep=20)
                if name == "pack":  # what the pass over the keys read last may still be in the cache
                    report.time(f"{title} after key_pass", lambda once=once: (key(), once()), rep=20)
            except Exception as failure:  # more shared memory than there is, for one: the others are still of use
                print(f"{title}: {type(failure).__name__}: {str(failure).splitlines()[0][:100]}", flush=True)
                stop_if_lost(failure)


def kernels(report: Report, x: Inputs, size: str) -> None:
    """The time of each kernel of the SageSLA module by PyTorch's profiler, which adds some to each."""

    def module() -> None:
        sla_triton.sagesla_attention(x.q, x.k, x.v, x.weight, x.bias, TOPK, 128, 64, "int8")

    module()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            module()
        torch.cuda.synchronize()
    for event in profile.key_averages():
        us = event.device_time_total / event.count
        report.add(f"tune.kernel.{size} {event.key[:30]}", us / 1e3, "ms", "lower", None, "mean of the profiler's")


def stop_if_lost(failure: Exception) -> None:
    if gpu_is_lost(str(failure)):
        sys.exit("the GPU is lost to this process; nothing after this kernel was tried")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention.json"))
    parser.add_argument("--sizes", default="480p,720p")
    parser.add_argument("--only", default="", help="time only what has this in its name")
    parser.add_argument("--tune", action="store_true", help="try each launch of each part, and nothing else")
    chosen = parser.parse_args(arguments)
    sizes = chosen.sizes.split(",")
    report = Report(chosen.only, [], [])
    if chosen.tune:
        for size in sizes:
            x = inputs(*SIZES[size], HEAD_DIM)
            tune(report, x, size)
            kernels(report, x, size)
        write_results(chosen.out, report.rows, " ".join(sys.argv))
        return 1 if report.wrong else 0
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
    report.rows += [
        replace(rows[row], name=name, method=f"SageSLA at 480p ({row}): {rows[row].method}")
        for name, row in HEADLINES.items()
        if row in rows
    ]
    write_results(chosen.out, report.rows, " ".join(sys.argv), keep=bool(chosen.only))
    print(f"{len(report.wrong)} wrong: {', '.join(report.wrong) or 'none'}; {chosen.out}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
