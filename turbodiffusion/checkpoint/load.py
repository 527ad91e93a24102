"""Strict loading of any family's checkpoint into a model, one tensor at a time.

Nothing is written before every name and shape has been checked, and at no time is more than one tensor of the
checkpoint in memory beside the model; on a GPU also the next ones (`prefetch.py`). A model built on the meta device
gets its tensors on `device`, in the dtype that it was built with; any other keeps its own.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from turbodiffusion.checkpoint.files import some
from turbodiffusion.checkpoint.formats import Checkpoint
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.errors import CheckpointError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.nn.linear import QuantizedLinear
from turbodiffusion.ops.linear.int8 import dequantize_int8_block
from turbodiffusion.texts import text

log = logging.getLogger(__name__)

Device = torch.device | str


def load_transformer(
    model: WanTransformer,
    path: str | Path,
    *,
    part: str = "transformer",
    device: Device = "cpu",
    allow_missing: Sequence[str] = (),
) -> float | None:
    """Fill `model` from a file or folder; `part="transformer_low"` takes a folder's low-noise expert.

    Quantized linears take 8-bit weights in their own format as they are and round all others, also those that the file
    has in another 8-bit format; float linears dequantize. `allow_missing=("proj_l",)` lets a network with SLA start
    from a dense checkpoint: proj_l becomes zero, which leaves the linear part of SLA out until it is trained.
    Returns the relative L2 error of what was rounded, over all such weights together, against the file's values; None
    where nothing was.
    Raises CheckpointError naming the tensors that are missing, unknown or of another shape.
    """
    return _fill(model, open_checkpoint(path, part), device, allow_missing)


def load_vae(vae: WanVAE, path: str | Path, *, device: Device = "cpu") -> None:
    """Fill `vae` from a file or folder, original or diffusers. Raises CheckpointError as `load_transformer`."""
    _fill(vae, open_checkpoint(path, "vae"), device)


def load_text(encoder: TextEncoder, path: str | Path, *, device: Device = "cpu") -> None:
    """Fill `encoder` from a file or folder, original or transformers. Raises CheckpointError as `load_transformer`."""
    _fill(encoder, open_checkpoint(path, "text"), device)


@dataclass(frozen=True)
class _Slot:
    """A weight that the model wants: a tensor of `module`, or the 8-bit weight of a QuantizedLinear (`leaf` None)."""

    module: nn.Module
    leaf: str | None
    shape: tuple[int, ...]


def _slots(model: nn.Module) -> dict[str, _Slot]:
    slots = {}
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        state = {**module._parameters, **module._buffers}
        for leaf, tensor in state.items():
            if tensor is None or leaf in module._non_persistent_buffers_set:
                continue
            if isinstance(module, QuantizedLinear) and leaf != "bias":
                continue
            slots[start + leaf] = _Slot(module, leaf, tuple(tensor.shape))
        if isinstance(module, QuantizedLinear):
            slots[f"{start}weight"] = _Slot(module, None, (module.out_features, module.in_features))
    return slots


def check(model: nn.Module, checkpoint: Checkpoint, allow_missing: Sequence[str] = ()) -> list[str]:
    """Raise CheckpointError unless the checkpoint has what the model wants; return what is missing and may be."""
    return _check(checkpoint, _slots(model), allow_missing)


def _fill(model: nn.Module, checkpoint: Checkpoint, device: Device, allow_missing: Sequence[str] = ()) -> float | None:
    """Fill the model and return the relative error of the weights that were rounded to 8 bits, if there were any."""
    slots, device = _slots(model), torch.device(device)
    allowed = _check(checkpoint, slots, allow_missing)
    rounded: list[Tensor] = []  # of each weight: the squares of its error and of itself, summed
    reading = checkpoint.prefetch(device) if device.type == "cuda" else nullcontext(checkpoint)
    with torch.no_grad(), reading as stored:
        for name in stored.shapes:
            slot = slots[name]
            if slot.leaf is not None:
                _put(slot.module, slot.leaf, stored.read(name), device)
            else:
                assert isinstance(slot.module, QuantizedLinear)
                rounded += _put_quantized(slot.module, stored, name, device)
        for name in allowed:
            slot = slots[name]
            assert slot.leaf is not None
            _put(slot.module, slot.leaf, torch.zeros(slot.shape), device)
    if not rounded:
        return None
    off, whole = torch.stack(rounded).double().sum(0).tolist()
    error = (off / whole) ** 0.5 if whole else 0.0
    log.info("%s: %d weights rounded to 8 bits, relative error %.2f%%", checkpoint.path, len(rounded), 100 * error)
    return error


def _check(checkpoint: Checkpoint, slots: Mapping[str, _Slot], allow_missing: Sequence[str]) -> list[str]:
    absent = [name for name in slots if name not in checkpoint.shapes]
    allowed = [name for name in absent if set(name.split(".")) & set(allow_missing)]
    missing = [name for name in absent if name not in allowed]
    unknown = [name for name in checkpoint.shapes if name not in slots]
    misshapen = [
        text("checkpoint.misshapen", name=name, shape=str(list(shape)), expected=str(list(slots[name].shape)))
        for name, shape in checkpoint.shapes.items()
        if name in slots and slots[name].shape != shape
    ]
    faults = []
    if missing:
        faults.append(text("checkpoint.missing", count=len(missing), names=some(missing)))
        if all(".proj_l." in name for name in missing):
            faults.append(text("checkpoint.dense"))
    if unknown:
        faults.append(text("checkpoint.unknown", count=len(unknown), names=some(unknown)))
        if all(".proj_l." in name for name in unknown):
            faults.append(text("checkpoint.sla"))
    if misshapen:
        faults.append(text("checkpoint.other_shape", count=len(misshapen), names=some(misshapen)))
    if faults:
        all_faults = reduce(lambda before, fault: text("checkpoint.and", before=before, fault=fault), faults)
        raise CheckpointError("checkpoint.does_not_fit", path=checkpoint.path, part=checkpoint.part, faults=all_faults)
    return allowed


def _put(module: nn.Module, leaf: str, value: Tensor, device: Device) -> None:
    old = getattr(module, leaf)
    if not old.is_meta:
        old.copy_(value)
        return
    # A copy in memory even where nothing changes: the value may be a view of a file, which someone may replace while
    # the model lives.
    new = value.to(device=device, dtype=old.dtype, copy=not value.is_cuda)
    setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _put_quantized(module: QuantizedLinear, checkpoint: Checkpoint, name: str, device: Device) -> list[Tensor]:
    """Fill an 8-bit linear; return the sums of squares [2] of error and weight where the weight had to be rounded."""
    if checkpoint.quantized(name) and module.kind == "int8_block":
        values, scale = checkpoint.blocks(name)
        _put(module, "int8_weight", values, device)
        _put(module, "scale", scale, device)
        return []
    for leaf, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            # Not empty_like: of a meta tensor it goes through PyTorch's Python references, which import SymPy.
            setattr(module, leaf, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    device = module.scale.device  # before anything is computed: a GPU recasts a weight in the time that reading takes
    if checkpoint.quantized(name):
        values, scale = checkpoint.blocks(name)
        weight = dequantize_int8_block(values.to(device), scale.to(device))
    else:
        weight = checkpoint.read(name).to(device).float()
    module.load_weight(weight)
    return [torch.stack(((module.float_weight() - weight).square().sum(), weight.square().sum()))]
