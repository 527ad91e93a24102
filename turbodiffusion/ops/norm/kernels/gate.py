"""x + y * gate in Triton. A product's own epilogue can do it for nothing (`ops/linear/kernels/gemm.py`)."""

import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 16, 512  # of a program


@triton.jit
def _add_gated(
    x, y, gate, out, L, M, x_batch, x_row, x_step, y_batch, y_row, y_step, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    batch = tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < L) & (columns < M)[None, :]
    factor = tl.load(gate + batch * M + columns, mask=columns < M, other=0.0).to(tl.float32)
    columns = columns[None, :]
    base = tl.load(x + batch * x_batch + rows * x_row + columns * x_step, mask=inside, other=0.0).to(tl.float32)
    more = tl.load(y + batch * y_batch + rows * y_row + columns * y_step, mask=inside, other=0.0).to(tl.float32)
    result = base + more * factor[None, :]
    tl.store(out + (batch * L + rows) * M + columns, result.to(out.dtype.element_ty), mask=inside)


def add_gated(x_BLM: Tensor, y_BLM: Tensor, gate_BM: Tensor) -> Tensor:
    """Compute x + y * gate: [B, L, M] in x's dtype."""
    B, L, M = x_BLM.shape
    out = x_BLM.new_empty(x_BLM.shape)
    grid = triton.cdiv(M, COLUMNS), triton.cdiv(L, ROWS), B
    if out.numel():
        _add_gated[grid](
            x_BLM,
            y_BLM,
            gate_BM.contiguous(),
            out,
            L,
            M,
            *x_BLM.stride(),
            *y_BLM.stride(),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=4,
        )
    return out
