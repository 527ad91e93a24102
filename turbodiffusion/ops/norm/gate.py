"""The gated sum of a diffusion transformer's residual stream (adaLN, arXiv 2212.09748, section 3.2)."""

from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, select_impl


def add_gated(x_BLM: Tensor, y_BLM: Tensor, gate_BM: Tensor, *, impl: str = "reference") -> Tensor:
    """Compute x + y * gate, one gate per video, in float32: [B, L, M] in x's dtype.

    x and y share a dtype; the gate may have another (Wan keeps it float32). Raises ValueError when B or M differ.
    """
    check_layout("add_gated", x_BLM=x_BLM, y_BLM=y_BLM, gate_BM=gate_BM)
    check_dtype("add_gated", FLOATS, x_BLM=x_BLM, y_BLM=y_BLM)
    check_dtype("add_gated", FLOATS, gate_BM=gate_BM)
    return select_impl("add_gated", impl, {"reference": _reference, "triton": _triton})(x_BLM, y_BLM, gate_BM)


def _reference(x_BLM: Tensor, y_BLM: Tensor, gate_BM: Tensor) -> Tensor:
    dtype = at_least_float32(x_BLM.dtype)
    return (x_BLM.to(dtype) + y_BLM.to(dtype) * gate_BM.to(dtype)[:, None]).to(x_BLM.dtype)


def _triton(x_BLM: Tensor, y_BLM: Tensor, gate_BM: Tensor) -> Tensor:
    check_triton("add_gated", x_BLM=x_BLM, y_BLM=y_BLM, gate_BM=gate_BM)
    from turbodiffusion.ops.norm.kernels.gate import add_gated as kernel

    return kernel(x_BLM, y_BLM, gate_BM)
