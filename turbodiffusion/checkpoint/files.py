"""Weight files as tensors by name, read one at a time: `.pth`, `.safetensors`, a sharded index, a folder of them.

Pickles are read with `weights_only=True` and mapped into memory, so that a tensor costs memory when it is used. Nothing
here knows what a tensor is for; `formats.py` does.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from turbodiffusion.errors import CheckpointError, MissingFilesError, OutputError
from turbodiffusion.files import write_file
from turbodiffusion.texts import Text, text

# Where each part lies in a folder: ours, a diffusers folder, a repository of the original Wan; and in a folder that
# holds that part alone. The first that exists is taken.
_SHARDED = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
_TEXT = ("model.safetensors.index.json", "model.safetensors")
PLACES = {
    "transformer": (
        "transformer.safetensors",
        *(f"{folder}/{name}" for folder in ("transformer", "high_noise_model") for name in _SHARDED),
        *_SHARDED,
    ),
    "transformer_low": (
        "transformer_low.safetensors",
        *(f"{folder}/{name}" for folder in ("transformer_2", "low_noise_model") for name in _SHARDED),
    ),
    "vae": ("vae.safetensors", f"vae/{_SHARDED[1]}", "Wan2.1_VAE.pth", _SHARDED[1]),
    "text": (
        "text_encoder.safetensors",
        *(f"text_encoder/{name}" for name in _TEXT),
        "models_t5_umt5-xxl-enc-bf16.pth",
        *_TEXT,
    ),
    "tokenizer": ("spiece.model", "tokenizer/spiece.model", "google/umt5-xxl/spiece.model"),
}


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name; `read` brings one of them, on the CPU, and may return a view of the mapped file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]  # in the file's order
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # a safetensors header's


def find(path: str | Path, part: str) -> Path | None:
    """Find the file of `part` (a key of PLACES) under the folder `path`; None where there is none."""
    path = Path(path)
    for place in PLACES[part]:
        if (path / place).is_file():
            return path / place
    lone = [p for p in path.glob("*") if p.suffix in (".pth", ".safetensors")]
    return lone[0] if len(lone) == 1 and part in ("transformer", "vae", "text") else None


def locate(path: str | Path, part: str) -> Path:
    """Return `path` itself where it is a file, else the file of `part` under it. Raises MissingFilesError for none."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingFilesError("checkpoint.absent", path=path)
    found = find(path, part)
    if found is None:
        raise MissingFilesError("checkpoint.part_absent", path=path, part=part, places=PLACES[part])
    return found


def open_tensors(path: str | Path) -> TensorFile:
    """Open one weight file or sharded index; only names and shapes are read.

    Raises CheckpointError for a file that is truncated, foreign, or holds anything but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise MissingFilesError("checkpoint.unreadable", path=path, reason=error.strerror) from None
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("checkpoint.lfs_pointer", path=path)
    if path.suffix == ".json":
        return _open_index(path)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_pickle(path)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; it appears under `path` whole or not at all. Raises OutputError when it cannot."""
    state = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        write_file(path, lambda beside: save_file(state, beside, dict(metadata)))
    except SafetensorError as error:
        raise OutputError("files.cannot_write", path=path, reason=_first_line(error)) from None


def _open_safetensors(path: Path) -> TensorFile:
    try:
        handle: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError("checkpoint.not_safetensors", path=path, reason=_first_line(error)) from None
    shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    return TensorFile(path, shapes, handle.get_tensor, handle.metadata() or {})


def _open_index(path: Path) -> TensorFile:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        by_shard: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            by_shard.setdefault(shard, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("checkpoint.not_index", path=path) from None
    absent = [shard for shard in by_shard if not (path.parent / shard).is_file()]
    if absent:
        raise MissingFilesError(
            "checkpoint.shards_absent", folder=path.parent, files=some(absent), count=len(by_shard), index=path.name
        )
    shards = {shard: open_tensors(path.parent / shard) for shard in by_shard}
    for shard, names in by_shard.items():
        wrong = set(names) ^ set(shards[shard].shapes)
        if wrong:
            raise CheckpointError(
                "checkpoint.shard_disagrees", path=path.parent / shard, index=path.name, names=some(sorted(wrong))
            )
    shapes = {name: shards[shard].shapes[name] for name, shard in weight_map.items()}
    return TensorFile(path, shapes, lambda name: shards[weight_map[name]].read(name))


def _open_pickle(path: Path) -> TensorFile:
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        foreign = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign:
            raise CheckpointError("checkpoint.pickled_code", path=path, name=foreign[1]) from None
        raise CheckpointError("checkpoint.not_weights", path=path) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError("checkpoint.no_tensors", path=path)
    foreign_names = [
        str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if foreign_names:
        raise CheckpointError("checkpoint.not_tensors", path=path, names=some(foreign_names))
    return TensorFile(path, {name: tuple(t.shape) for name, t in content.items()}, content.__getitem__)


def some(names: Sequence[Text | str]) -> Text | Sequence[Text | str]:
    """Return the first three names, with how many there are when there are more."""
    return text("checkpoint.some", names=names[:3], more=len(names) - 3) if len(names) > 3 else names


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
