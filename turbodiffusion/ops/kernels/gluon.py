"""What the kernels in Gluon share: how their tiles travel."""

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


def tiled(x: Tensor, height: int, width: int) -> TensorDescriptor:
    """Make a descriptor of tiles of a matrix, laid out as wgmma reads them; rows start at multiples of 16 bytes."""
    size = x.element_size()
    layout = gl.NVMMASharedLayout(min(128, width * size), 8 * size)  # swizzled over 128 bytes, or whole narrower rows
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [height, width], layout)
