"""What the launches of kernels ask about the GPU and about their tensors, and in which order programs take tiles."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from turbodiffusion.ops.implementations import FP8_GPU


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the GPU's compute capability; the interpreter, on a CPU, takes what any GPU takes."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else FP8_GPU


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors the GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that one program can have."""
    if device.type != "cuda":
        return 101376
    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]


def aligned(x: Tensor) -> Tensor:
    """Return x where its rows are dense and start at multiples of 16 bytes, as TMA reads them, else a copy."""
    dense = x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    return x if dense else x.clone(memory_format=torch.contiguous_format)


@triton.jit
def grouped_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return row and column of a tile, in groups: down GROUP rows, then one column to the right."""
    in_group = GROUP * tiles_n
    first = tile // in_group * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    return first + tile % in_group % rows, tile % in_group // rows
