"""How a model computes on the machine at hand: device, dtype, kinds of attention and linears, kernels.

What a user leaves at "auto" is decided here, once, when a pipeline is loaded.
"""

import logging
from dataclasses import dataclass, replace

import torch

from turbodiffusion.config import IMPLEMENTATIONS, REFERENCE, TRITON, Kernels, WanConfig
from turbodiffusion.errors import MachineError
from turbodiffusion.inference import doctor
from turbodiffusion.memory import plan as memory
from turbodiffusion.ops.contract import check_triton
from turbodiffusion.ops.implementations import attention_unsupported_reason, linear_unsupported_reason

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTIZE_BELOW = 40 * memory.GIB  # of a GPU's memory; 8-bit linears are the default there
LARGE = 10**9  # bytes of a transformer; a smaller one gains nothing from 8 bits


@dataclass(frozen=True)
class Kinds:
    """What the transformer computes; fixed when it is built."""

    attention_type: str
    sla_topk: float
    quant_linear: str


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU where PyTorch can use one. MachineError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MachineError(f"device {name!r}: there are auto, cpu, cuda, cuda:1 and so on") from None
    if device.type not in ("cpu", "cuda"):
        raise MachineError(f"device {name!r} is not supported: take auto, cpu or cuda")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        here = f"has {count} GPU{'s' if count > 1 else ''}" if count else "has no GPU that PyTorch can use"
        raise MachineError(f"device {name!r}: this machine {here}; take auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise MachineError(f"dtype {name!r}: there are auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_kernels(name: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    """ "auto" is `doctor.choose` in bfloat16: a float32 network is for comparisons, and no kernel was measured in it.

    MachineError for "triton" where it cannot run.
    """
    if name == "auto":
        return doctor.choose(device) if dtype == torch.bfloat16 else REFERENCE
    if name not in IMPLEMENTATIONS:
        raise MachineError(f"kernels {name!r}: there are auto, {', '.join(IMPLEMENTATIONS)}")
    if name == "reference":
        return REFERENCE
    check_triton("kernels", latent=torch.empty(0, device=device))
    return TRITON


def fitting(kernels: Kernels, config: WanConfig, device: torch.device) -> Kernels:
    """The kernels, with the reference for each group that does not take this network; that is logged."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    blocks = config.sla_block_q, config.sla_block_k
    obstacles = {
        "attention": attention_unsupported_reason(config.attention_type, config.head_dim, *blocks, capability),
        "linear": linear_unsupported_reason((config.dim, config.ffn_dim)) if config.quant_linear != "off" else None,
    }
    for group, obstacle in obstacles.items():
        if obstacle is not None and getattr(kernels, group) != "reference":
            log.warning("%s by the reference: %s", group, obstacle)
            kernels = replace(kernels, **{group: "reference"})
    return kernels


def eight_bits(kernels: Kernels) -> str:
    """The kind of linears that quant_linear "on" means: the most exact one within 10% of the fastest.

    That is int8 in rows by the Triton kernels (an H200 multiplies it at 1034 to 1314 TOP/s); the reference computes
    the published format.
    """
    return "int8_row" if kernels.linear == "triton" else "int8_block"


def choose_linears(asked: str, config: WanConfig, here: memory.Machine, kernels: Kernels) -> str:
    """ "auto" is 8 bits for a large model on a GPU of less than 40 GiB."""
    if asked not in ("auto", "on"):
        return asked
    large = memory.transformer_bytes(config, torch.bfloat16) > LARGE
    short = here.device == "cuda" and here.total < QUANTIZE_BELOW and large
    return eight_bits(kernels) if asked == "on" or short else "off"
