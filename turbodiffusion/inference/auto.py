"""What "auto" and "on" mean on the device at hand: device, dtype, attention, linears and kernels, decided at load."""

import logging
from dataclasses import dataclass, replace

import torch

from turbodiffusion.config import (
    IMPLEMENTATIONS,
    REFERENCE,
    SPARSE_ATTENTION,
    TRITON,
    Kernels,
    WanConfig,
)
from turbodiffusion.errors import MachineError
from turbodiffusion.inference import doctor
from turbodiffusion.memory.plan import GIB, DeviceInfo, Job
from turbodiffusion.memory.weights import transformer_bytes
from turbodiffusion.ops.contract import check_triton
from turbodiffusion.ops.implementations import attention_unsupported_reason, linear_unsupported_reason
from turbodiffusion.presets import ModelPreset
from turbodiffusion.request import Request, made_size

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTIZE_BELOW = 40 * GIB  # of a GPU's memory; 8-bit linears are the default there
LARGE_TRANSFORMER = 10**9  # bytes; a smaller one gains nothing from 8 bits


@dataclass(frozen=True)
class ComputeConfig:
    """How a transformer computes; fixed when it is built."""

    attention_type: str
    sla_topk: float
    quant_linear: str

    @property
    def sparse(self) -> bool:
        """Whether most blocks are left to SLA's linear term."""
        return self.attention_type in SPARSE_ATTENTION


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU where PyTorch can use one. MachineError if it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MachineError("machine.device_unknown", name=repr(name)) from None
    if device.type not in ("cpu", "cuda"):
        raise MachineError("machine.device_unsupported", name=repr(name))
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        code = "machine.device_absent" if count else "machine.no_gpu"
        raise MachineError(code, name=repr(name), count=count, s="s" if count > 1 else "")
    return device


def choose_dtype(name: str, device: torch.device) -> str:
    """Return "bfloat16" or "float32"; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if name not in DTYPES:
        raise MachineError("machine.dtype_unknown", name=repr(name), known=list(DTYPES))
    return name


def choose_kernels(name: str, device: torch.device, dtype: str) -> Kernels:
    """Return the implementation of each group of ops.

    "auto" is `doctor.choose` in bfloat16: a float32 network is for comparisons, and no kernel was measured in it.
    Raises MachineError for "triton" where it cannot run.
    """
    if name == "auto":
        return doctor.choose(device) if dtype == "bfloat16" else REFERENCE
    if name not in IMPLEMENTATIONS:
        raise MachineError("machine.kernels_unknown", name=repr(name), known=list(IMPLEMENTATIONS))
    if name == "reference":
        return REFERENCE
    check_triton("kernels", latent=torch.empty(0, device=device))
    return TRITON


def supported_kernels(kernels: Kernels, config: WanConfig, device: torch.device) -> Kernels:
    """Return the kernels, with the reference for each group that does not take this network; that is logged."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    blocks = config.sla_block_q, config.sla_block_k
    reasons = {
        "attention": attention_unsupported_reason(config.attention_type, config.head_dim, *blocks, capability),
        "linear": linear_unsupported_reason((config.dim, config.ffn_dim)) if config.quant_linear != "off" else None,
    }
    for group, reason in reasons.items():
        if reason is not None and getattr(kernels, group) != "reference":
            log.warning("%s by the reference: %s", group, reason)
            kernels = replace(kernels, **{group: "reference"})
    return kernels


def eight_bit_linears(kernels: Kernels) -> str:
    """Return the kind of linears that quant_linear "on" means: the most exact one within 10% of the fastest.

    That is int8 with a scale per token by the Triton kernels (an H200 multiplies it at 1034 to 1314 TOP/s); the
    reference computes the published format.
    """
    return "int8_row" if kernels.linear == "triton" else "int8_block"


def choose_linears(asked: str, config: WanConfig, device: DeviceInfo, kernels: Kernels) -> str:
    """Return the kind of linears; "auto" is 8 bits for a large model on a GPU of less than 40 GiB."""
    if asked not in ("auto", "on"):
        return asked
    large = transformer_bytes(config, "bfloat16") > LARGE_TRANSFORMER
    short = device.device == "cuda" and device.total < QUANTIZE_BELOW and large
    return eight_bit_linears(kernels) if asked == "on" or short else "off"


def fill_compute(request: Request, loaded: ComputeConfig, kernels: Kernels) -> Request:
    """Return the request with the loaded attention and linears where it names none."""
    quant_linear = {"auto": loaded.quant_linear, "on": eight_bit_linears(kernels)}.get(request.quant_linear)
    return replace(
        request,
        attention_type=loaded.attention_type if request.attention_type == "auto" else request.attention_type,
        sla_topk=loaded.sla_topk if request.sla_topk is None else request.sla_topk,
        quant_linear=quant_linear or request.quant_linear,
    )


def memory_job(
    model: str,
    preset: ModelPreset,
    request: Request,
    size: tuple[int, int],
    *,
    dtype: str,
    device: str,
    kernels: Kernels,
) -> Job:
    """Return a resolved request as the memory plan counts it. size: width and height that were asked for."""
    width, height = made_size(*size)
    assert request.num_frames is not None and request.num_steps is not None
    return Job(
        model=model,
        transformer=replace(
            preset.transformer,
            attention_type=request.attention_type,
            sla_topk=request.sla_topk or preset.transformer.sla_topk,
            quant_linear=request.quant_linear,
            kernels=kernels,
        ),
        vae=preset.vae,
        text=preset.text,
        experts=preset.experts,
        width=width,
        height=height,
        num_frames=request.num_frames,
        num_steps=request.num_steps,
        guided=request.guided,
        dtype=dtype,
        device=device,
    )
