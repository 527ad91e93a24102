"""How far a kernel's outputs are from the exact ones, and how far they may be."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.ops.cases.case import Case

# A kernel may be this much further from float32 than the same arithmetic in PyTorch: sums in another order.
OF_THE_EMULATION = 1.1
# Where the emulation is nearly exact, as for a token that attends to itself alone: a twentieth of bfloat16's step.
NEARLY_EXACT = 1e-4


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill buffers that are allocated and not filled with NaN (integers: with their largest value)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, that its products are not deterministic
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def values(output: Any) -> list[Tensor]:
    """Return the numbers that an output stands for: 8-bit values times their scale."""
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
    """Return the largest relative L2 distance over the outputs; NaN where one is not finite."""
    pairs = list(zip(values(actual), values(expected), strict=True))
    if not all(a.isfinite().all() for a, _ in pairs):
        return float("nan")  # not left to max(), which passes over a NaN
    return max(((a - e).norm(dtype=torch.float64) / e.norm(dtype=torch.float64)).item() for a, e in pairs)


def missed_blocks(actual: Tensor, expected: Tensor) -> float:
    """Return the share of the expected blocks that are not among the actual ones."""
    if actual.shape != expected.shape or actual.min() < 0 or actual.max() > 2**20:
        return 1.0  # no map at all
    size = int(max(actual.max(), expected.max())) + 1
    flags = [torch.zeros(*m.shape[:3], size, dtype=torch.bool, device=m.device) for m in (actual, expected)]
    for flag, m in zip(flags, (actual, expected), strict=True):
        flag.scatter_(-1, m.long(), True)
    return 1 - (flags[0] & flags[1]).sum().item() / expected.numel()


@torch.no_grad()
def errors(case: Case, tokens: int, seed: int) -> tuple[float, float]:
    """Measure the error of a case's kernel on fresh inputs, and what it may be; a NaN is an error too."""
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
