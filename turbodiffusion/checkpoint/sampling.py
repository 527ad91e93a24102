"""How a checkpoint is to be sampled: what its own files say, else what Wan was published with.

A folder of ours says it in model.json, diffusers in model_index.json (`boundary_ratio`) and the scheduler's
configuration (`flow_shift`). Whether a network was distilled no foreign file says: that is guessed, and told.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.checkpoint.json_files import read_json
from turbodiffusion.config import WanConfig, shown
from turbodiffusion.errors import CheckpointError, UserError
from turbodiffusion.presets import SAMPLER_FIELDS, size_for, wan_sampling
from turbodiffusion.request import FieldSpec, field_specs
from turbodiffusion.texts import Text, text

# What a folder's `sampling` may set, by ModelPreset's names.
SAMPLING_FIELDS = (
    *("sampler", "num_steps", "resolution", "aspect_ratio", "num_frames", "fps"),
    *("sigma_max", "shift", "guidance", "guidance_low", "boundary"),
)
MAX_FPS = 120
MAX_NAME = 80  # characters of a model's name in the names of videos
_FILE_NAME = re.compile(rf"[^\W_][\w.+\- ]{{0,{MAX_NAME - 1}}}")
# Words in the names of students that are run in a few steps.
_DISTILLED = re.compile(
    r"(?<![a-z])(turbo(wan|diffusion)?|rcm|distill(ed)?|lightx2v|lightning|causvid|dmd2?|fastwan|[1-8][ _\-]?steps?)"
    r"(?![a-z])",
    re.IGNORECASE,
)
_GENERAL = re.compile(r"(diffusion_pytorch_model|model[.\-]|transformer(_2)?$|(high|low)_noise_model$)")
_FAST_WAN = re.compile(r"fastwan", re.IGNORECASE)


@dataclass(frozen=True)
class Sampling:
    """Values by ModelPreset's names, and what was assumed: a notice by the field of a request that would say it."""

    values: Mapping[str, Any]
    assumed: tuple[tuple[str, Text], ...] = ()


def infer_sampling(
    path: Path, transformer: WanConfig, task: str, experts: int, *, sampler: str | None = None
) -> Sampling:
    """Return how a foreign checkpoint is sampled. sampler: "rcm" or "flow" where the user says it."""
    check_sampler(sampler)
    name = _telling_name(path)
    word = _DISTILLED.search(name)
    assumed: list[tuple[str, Text]] = []
    if sampler is None:
        sampler = "rcm" if transformer.round_time_to_bf16 or word else "flow"
        code = "sampling.assumed_rcm" if sampler == "rcm" else "sampling.assumed_flow"
        if sampler == "rcm":
            because = text("sampling.by_name", word=word[0]) if word else text("sampling.by_tensors")
            assumed.append(("sampler", text(code, path=path, because=because)))
        else:
            steps = wan_sampling(transformer, task, experts, sampler)["num_steps"]
            assumed.append(("sampler", text(code, path=path, steps=steps)))
    if _FAST_WAN.search(name):
        assumed.append(("fastwan", text("sampling.fastwan", path=path)))
    values = wan_sampling(transformer, task, experts, sampler)
    return Sampling(values | _of_diffusers(path, values), tuple(assumed))


def _telling_name(path: Path) -> str:
    """The name that a person gave: the file's, else that of the model's folder."""
    path = path.absolute()  # not resolved: a hub's cache has links to hashes
    while _GENERAL.match(path.name) and path.parent != path:
        path = path.parent
    return path.name


def check_sampler(sampler: str | None) -> None:
    """Raise CheckpointError for the name of a sampler that there is not."""
    if sampler is not None and sampler not in SAMPLER_FIELDS:
        raise CheckpointError("sampling.sampler", value=shown(sampler))


def says_two_experts(path: Path) -> bool:
    """Say whether the model_index.json of a diffusers folder, or of the one around a part of it, has two experts."""
    index, _ = _diffusers_file(path, "model_index.json")
    second = index.get("transformer_2")
    return index.get("boundary_ratio") is not None or (isinstance(second, list) and any(second))


def check_sampling(values: Any, said_by: Path) -> dict[str, Any]:
    """Return the `sampling` of a model.json. Raises CheckpointError for what no request could ask for."""
    if not isinstance(values, dict):
        raise CheckpointError("checkpoint.damaged_section", path=said_by, section="sampling", value=shown(values))
    specs = {spec.name: spec for spec in field_specs()}
    for name, value in values.items():
        if name not in SAMPLING_FIELDS:
            raise CheckpointError("sampling.unknown", path=said_by, name=shown(name), known=SAMPLING_FIELDS)
        fits = type(value) is int and 1 <= value <= MAX_FPS if name == "fps" else _fits(specs[name], value)
        if not fits:
            raise CheckpointError("sampling.value", path=said_by, name=name, value=shown(value))
    if values.get("sampler") is not None:
        needed = ("num_steps", *SAMPLER_FIELDS[values["sampler"]])
        if missing := [name for name in needed if name not in values]:
            raise CheckpointError("sampling.lacks", path=said_by, sampler=values["sampler"], names=missing)
    return values


def check_about(values: Any, said_by: Path) -> dict[str, Any]:
    """Return the `about` of a model.json, of which title, file_name and subjects are used here."""
    if not isinstance(values, dict):
        raise CheckpointError("checkpoint.damaged_section", path=said_by, section="about", value=shown(values))
    title, name, subjects = (values.get(key) for key in ("title", "file_name", "subjects"))
    good = {
        "title": title is None or (isinstance(title, str) and 0 < len(title) <= 200 and title.isprintable()),
        "file_name": name is None or (isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None),
        "subjects": subjects is None or (isinstance(subjects, list) and all(isinstance(s, str) for s in subjects)),
    }
    for key, is_good in good.items():
        if not is_good:
            raise CheckpointError("sampling.about", path=said_by, name=key, value=shown(values[key]))
    return values


def file_name(path: Path) -> str:
    """Return what a model's file or folder is called in the names of its videos."""
    name = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^\w.+\- ]", "_", name)[:MAX_NAME].strip(" .") or "model"


def _fits(spec: FieldSpec, value: Any) -> bool:
    """Whether a value is one that the field of a request takes from some model."""
    if spec.name == "resolution":
        return _is_size(value)
    if spec.choices:
        return isinstance(value, str) and value in spec.choices
    if type(value) is bool or not isinstance(value, int if spec.type is int else int | float):
        return False
    assert spec.low is not None and spec.high is not None
    return math.isfinite(value) and spec.low <= value <= spec.high


def _is_size(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 20:
        return False
    try:
        size_for(value, "16:9")
    except UserError:
        return False
    return True


def _of_diffusers(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the files of a diffusers folder say, in the place of Wan's own numbers."""
    said: dict[str, Any] = {}
    index, index_path = _diffusers_file(path, "model_index.json")
    scheduler, scheduler_path = _diffusers_file(path, "scheduler/scheduler_config.json")
    for values_of, at, key, name in (
        (index, index_path, "boundary_ratio", "boundary"),
        (scheduler, scheduler_path, "flow_shift", "shift"),
    ):
        value = values_of.get(key)
        if value is None or values.get(name) is None:
            continue
        spec = next(spec for spec in field_specs() if spec.name == name)
        if not _fits(spec, value):
            raise CheckpointError(
                "sampling.diffusers", path=at, key=key, value=shown(value), low=spec.low, high=spec.high
            )
        said[name] = float(value)
    return said


def _diffusers_file(path: Path, name: str) -> tuple[Mapping[str, Any], Path]:
    """A JSON file of the diffusers folder that a path is, or that it lies in; empty where there is none."""
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    for folder in folders:
        if path.is_file() and not (folder / "model_index.json").is_file():
            continue
        if (folder / name).is_file():
            try:
                values = read_json(folder / name)
            except (OSError, ValueError) as error:
                raise CheckpointError("checkpoint.damaged", path=folder / name, reason=str(error)) from None
            if not isinstance(values, dict):
                raise CheckpointError("checkpoint.damaged_object", path=folder / name)
            return values, folder / name
    return {}, path
