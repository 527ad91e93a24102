"""Two fine-tunings of one network in one: few steps (rCM) and sparse attention (SLA), trained apart.

TurboDiffusion (arXiv 2512.16093) adds what the second changed to the first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from turbodiffusion.errors import CheckpointError


def merge_finetunes(
    distilled: Mapping[str, Tensor], tuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute distilled + (tuned - pretrained), summed in float32, in the dtypes of `distilled`.

    What only `tuned` has (SLA's projection) is taken from it. Raises CheckpointError for a tensor that would be left
    out, or whose shapes differ.
    """
    for name, others in (("the distilled network", distilled), ("the fine-tuned network", tuned)):
        missing = sorted(pretrained.keys() - others.keys())
        if missing:
            raise CheckpointError(f"{name} has no {_few(missing)}, which the network that both began from has")
    unknown = sorted(distilled.keys() - pretrained.keys())
    if unknown:
        raise CheckpointError(f"only the distilled network has {_few(unknown)}: it did not begin from the same network")
    merged = dict(tuned)
    for name, base in pretrained.items():
        shapes = {tuple(x.shape) for x in (base, distilled[name], tuned[name])}
        if len(shapes) > 1:
            raise CheckpointError(f"{name} has shapes {', '.join(map(str, sorted(shapes)))}: these are other networks")
        change = tuned[name].to(torch.float32) - base.to(torch.float32)
        merged[name] = (distilled[name].to(torch.float32) + change).to(distilled[name].dtype)
    return merged


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
