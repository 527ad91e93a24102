"""Every op that has a kernel, as cases: inputs, the call, the exact result. What doctor checks and benchmarks time.

A case makes fresh random inputs for any number of tokens, so one table serves ragged lengths and real ones. `errors`
compares a kernel with float32 and says what is allowed.
"""

from collections.abc import Iterator

import torch

from turbodiffusion.ops.cases.attention import BOUNDS, HEAD_DIM, attention_cases
from turbodiffusion.ops.cases.case import RAGGED, Case, random
from turbodiffusion.ops.cases.compare import OF_THE_EMULATION, error, errors, missed_blocks, poisoned
from turbodiffusion.ops.cases.linear import block_cases, product_cases, quantize_cases
from turbodiffusion.ops.cases.norm import norm_cases
from turbodiffusion.ops.cases.vae import vae_cases

__all__ = [
    "BOUNDS",
    "HEAD_DIM",
    "MODELS",
    "OF_THE_EMULATION",
    "RAGGED",
    "VAE_CHANNELS",
    "Case",
    "attention_cases",
    "block_cases",
    "cases",
    "error",
    "errors",
    "missed_blocks",
    "norm_cases",
    "poisoned",
    "product_cases",
    "quantize_cases",
    "random",
    "vae_cases",
]

# Of the 1.3B and the 14B model: its width, its ffn's and its heads.
MODELS = {1536: (8960, 12), 5120: (13824, 40)}
VAE_CHANNELS = 96  # of its full resolution


def cases(device: torch.device, width: int, *, heads: int | None = None) -> Iterator[Case]:
    """Make every case of a model of that width (a key of MODELS); `heads` of attention alone, else the model's."""
    hidden, model_heads = MODELS[width]
    yield from norm_cases(device, width, model_heads)
    yield from quantize_cases(device, width, hidden)
    for features, out in ((width, width), (width, hidden), (hidden, width)):
        yield from product_cases(device, features, out)
    yield from block_cases(device, width, width)
    yield from attention_cases(device, heads or model_heads)
    yield from vae_cases(device, VAE_CHANNELS)
