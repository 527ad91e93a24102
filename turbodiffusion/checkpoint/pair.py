"""The transformers of a model: one, or the two of Wan 2.2 A14B, which are never taken apart."""

from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.checkpoint.experts import find_partner, half_pair, may_be_pair, noise_level, says_pair
from turbodiffusion.checkpoint.formats import part_of
from turbodiffusion.checkpoint.infer import TOLD_BY_SHAPES, read_config
from turbodiffusion.checkpoint.places import find, locate
from turbodiffusion.checkpoint.sampling import says_two_experts
from turbodiffusion.config import WanConfig, shown
from turbodiffusion.errors import CheckpointError
from turbodiffusion.texts import Text, text


@dataclass(frozen=True)
class Transformers:
    """The files of a model's experts, `low` only where there are two, and what was assumed of them: a notice each."""

    high: Path
    low: Path | None
    config: WanConfig
    assumed: tuple[tuple[str, Text], ...] = ()


def find_transformers(path: Path) -> Transformers:
    """Find the transformers in a folder, or that a file and the one beside it are.

    Raises MissingFilesError for half a pair, CheckpointError for two that are not of one model.
    """
    file = locate(path, "transformer")
    other = find(path, "transformer_low") if path.is_dir() else find_partner(file)
    if other is not None and not path.is_dir() and part_of(other) != "transformer":
        other = None
    config: WanConfig = read_config(file, "transformer")
    if other is None:
        ours = path.is_dir() and (path / "model.json").is_file()
        if not ours and (says_pair(file, config) or says_two_experts(path)):
            raise half_pair(file)
        alone = () if ours or not may_be_pair(file) else (("experts", text("experts.assumed_one", path=file)),)
        return Transformers(file, None, config, alone)
    high, low = (other, file) if noise_level(file) == "low" else (file, other)
    others: WanConfig = read_config(other, "transformer_low")
    for name in (*TOLD_BY_SHAPES["transformer"], "attention_type"):
        if getattr(config, name) != getattr(others, name):
            found = [shown(getattr(each, name)) for each in (config, others)]
            raise CheckpointError("experts.differ", path=file, other=other, field=name, first=found[0], second=found[1])
    told = () if path.is_dir() else (("experts", text("experts.assumed_two", high=high.name, low=low.name)),)
    return Transformers(high, low, config, told)
