"""Two fine-tunings of one network in one: few steps (rCM) and sparse attention (SLA), trained apart.

TurboDiffusion (arXiv 2512.16093) adds what the second changed to the first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from turbodiffusion.checkpoint.files import some
from turbodiffusion.errors import CheckpointError
from turbodiffusion.texts import text


def merge_finetunes(
    distilled: Mapping[str, Tensor], tuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute distilled + (tuned - pretrained), summed in float32, in the dtypes of `distilled`.

    What only `tuned` has (SLA's projection) is taken from it. Raises CheckpointError for a tensor that would be left
    out, or whose shapes differ.
    """
    for network, others in ((text("checkpoint.distilled"), distilled), (text("checkpoint.fine_tuned"), tuned)):
        missing = sorted(pretrained.keys() - others.keys())
        if missing:
            raise CheckpointError("checkpoint.merge_missing", network=network, names=some(missing))
    unknown = sorted(distilled.keys() - pretrained.keys())
    if unknown:
        raise CheckpointError("checkpoint.merge_unknown", names=some(unknown))
    merged = dict(tuned)
    for name, base in pretrained.items():
        shapes = {tuple(x.shape) for x in (base, distilled[name], tuned[name])}
        if len(shapes) > 1:
            raise CheckpointError("checkpoint.merge_shapes", name=name, shapes=list(map(str, sorted(shapes))))
        change = tuned[name].to(torch.float32) - base.to(torch.float32)
        merged[name] = (distilled[name].to(torch.float32) + change).to(distilled[name].dtype)
    return merged
