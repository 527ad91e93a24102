"""SageAttention and SageSLA's sparse part in Triton: `kernels/sparse.py`'s kernel over `kernels/quantize.py`'s inputs.

The probabilities are rounded to fp8 relative to the maximum so far, not to the final one: the same relative precision.
fp8 needs Ada, Hopper or later; on other GPUs the compiler refuses the kernel.
"""

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbodiffusion.ops.attention.kernels.linear import key_state
from turbodiffusion.ops.attention.kernels.quantize import Packed, pack
from turbodiffusion.ops.attention.kernels.sparse import Launch, LinearTerm, check_sizes, fastest_launch, launch_forward
from turbodiffusion.ops.kernels import gpu


def attend_packed(
    packed: Packed,
    map_BHNK: Tensor | None,
    shape: torch.Size,
    keys: int,
    dtype: torch.dtype,
    *,
    linear: LinearTerm | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """Attend in 8 bits to the kept blocks (all without a map), plus the linear term if given: `shape` BLHD."""
    block_q, block_k, D = packed.q.shape[3], packed.k.shape[3], shape[3]
    out = torch.empty(shape, dtype=dtype, device=packed.q.device)
    if launch is None and gpu.capability(out.device)[0] == 9 and dtype.itemsize == 2:
        # Here, because the interpreter has no Gluon.
        from turbodiffusion.ops.attention.kernels.sparse_hopper_gluon import SIZES, attend

        if (shape[0], block_q, block_k, D) == SIZES:
            attend(packed.q, packed.k, packed.v, packed.scales, map_BHNK, out, keys, linear)
            return out
    launch = launch or fastest_launch(packed.q, block_k)
    blocks = ((packed.q, min(launch.rows, block_q)), (packed.k, block_k), (packed.v, D))
    q, k, v = (TensorDescriptor.from_tensor(x.flatten(0, 3), [rows, x.shape[-1]]) for x, rows in blocks)
    launch_forward(q, k, v, map_BHNK, out, None, keys, block_q, block_k, packed.scales, linear, launch)
    return out


def sage_attention(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, block_q: int, block_k: int, qk: str, launch: Launch | None = None
) -> Tensor:
    """Run `sage.sage_attention`."""
    return sage_sparse_attention(q_BLHD, k_BSHD, v_BSHD, None, block_q, block_k, qk, launch)


def sage_sparse_attention(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    map_BHNK: Tensor | None,
    block_q: int,
    block_k: int,
    qk: str,
    launch: Launch | None = None,
) -> Tensor:
    """Run `sagesla.sage_sparse_attention`; dense without a map."""
    check_sizes("sage_attention", q_BLHD.shape[-1], block_q, block_k)
    packed, _ = pack(q_BLHD, k_BSHD, v_BSHD, key_state(k_BSHD, v_BSHD, block_k), block_q, block_k, qk)
    return attend_packed(packed, map_BHNK, q_BLHD.shape, k_BSHD.shape[1], q_BLHD.dtype, launch=launch)
