"""What the kernels in Gluon share: how their tiles travel."""

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

DTYPES = {
    torch.int8: gl.int8,
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
}


def tiled(x: Tensor, height: int, width: int) -> TensorDescriptor:
    """A descriptor of tiles of a matrix, laid out as wgmma reads them; rows start at multiples of 16 bytes."""
    layout = gl.NVMMASharedLayout.get_default_for([height, width], DTYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [height, width], layout)
