"""What every op checks before it computes: the layout of its tensors, their dtypes, and that its `impl` exists.

A layout is the suffix of a tensor's name, one capital letter per dimension: q_BLHD is [batch, tokens, heads, head dim].
The same letter stands for the same size in every tensor of a call.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor

from turbodiffusion.errors import MachineError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Function = TypeVar("Function", bound=Callable)


def select_impl(op: str, impl: str, implementations: Mapping[str, Function]) -> Function:
    """Return the function behind `impl`. Raises ValueError naming the known ones when there is none."""
    if impl not in implementations:
        raise ValueError(f"{op}: unknown impl {impl!r}, expected one of {', '.join(map(repr, implementations))}")
    return implementations[impl]


def check_layout(op: str, **tensors: Tensor) -> dict[str, int]:
    """Compare each tensor with the layout in its name's suffix and return the size of each letter.

    check_layout("attention", q_BLHD=q, k_BSHD=k) asks for four dimensions each and for equal B, H and D.
    Raises ValueError with the expected and the given shape.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        layout = name.rsplit("_", 1)[1]
        expected = ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in layout)
        fits = tensor.ndim == len(layout)
        for dim, size in zip(layout, tensor.shape, strict=False):
            fits = fits and sizes.setdefault(dim, size) == size
        if not fits:
            raise ValueError(f"{op}: {name} must be [{expected}], got {list(tensor.shape)}")
    return sizes


def check_dtype(op: str, expected: Sequence[torch.dtype] = FLOATS, **tensors: Tensor) -> None:
    """Raise ValueError unless the tensors share one of the `expected` dtypes."""
    (first, dtype), *others = ((name, tensor.dtype) for name, tensor in tensors.items())
    if dtype not in expected:
        raise ValueError(f"{op}: {first} must be one of {', '.join(map(str, expected))}, got {dtype}")
    for name, other in others:
        if other != dtype:
            raise ValueError(f"{op}: {name} must be {dtype} as {first} is, got {other}")


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a reference computes in: float32, or float64 for float64 tensors (tests of gradients)."""
    return torch.promote_types(dtype, torch.float32)


def check_no_grad(op: str, **tensors: Tensor) -> None:
    """Raise ValueError if a gradient is asked of an op that rounds to 8 bits and therefore has none."""
    for name, tensor in tensors.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{op}: has no gradient, but {name} requires one; call it under torch.no_grad()")


def check_triton(op: str, **tensors: Tensor) -> None:
    """Raise unless a Triton kernel can run on the tensors: to be called before such a kernel is imported.

    Kernels run on NVIDIA GPUs and, with TRITON_INTERPRET=1 set before the start, slowly on a CPU. They have no gradient
    and compute in float32. Raises MachineError where Triton or a GPU is missing, ValueError for a gradient or float64.
    """
    if find_spec("triton") is None:
        raise MachineError("ops.no_triton", op=op)
    for name, tensor in tensors.items():
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise MachineError("ops.not_on_gpu", op=op, name=name, device=tensor.device)
        if tensor.dtype == torch.float64:
            raise ValueError(f"{op}: impl 'triton' computes in float32, {name} is float64; use 'reference'")
    check_no_grad(f"{op}: impl 'triton'", **tensors)
