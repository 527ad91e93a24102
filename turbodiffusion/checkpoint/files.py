"""Weight files as tensors by name, read one at a time: `.pth`, `.safetensors`, a sharded index or shards without one.

Pickles are read with `weights_only=True` and mapped into memory, so that a tensor costs memory when it is used. Nothing
here knows what a tensor is for; `formats.py` does.
"""

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

from turbodiffusion.checkpoint.foreign import refuse_bytes
from turbodiffusion.checkpoint.json_files import read_json
from turbodiffusion.errors import CheckpointError, MissingFilesError, OutputError
from turbodiffusion.files import write_file
from turbodiffusion.texts import Text, text

# What trainers put around a network's tensors, best first: of an average and the last step, the average.
WRAPPERS = (
    "generator_ema",
    "ema_model",
    "model_ema",
    "ema",
    "state_dict",
    "generator",
    "model",
    "module",
    "net",
    "params",
)
MAX_WRAPPERS = 4  # that lie in each other
MAX_SHARDS = 1000
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name; `read` brings one of them, on the CPU, and may return a view of the mapped file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]  # in the file's order
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # a safetensors header's


def open_tensors(path: str | Path) -> TensorFile:
    """Open one weight file or sharded index; only names and shapes are read. One of several shards stands for all.

    Raises CheckpointError for a file that is truncated, foreign, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _open_index(path)
    if shard := _SHARD.fullmatch(path.name):
        return _open_shards(path, shard)
    return _open_file(path)


def shard_of(path: Path) -> str | None:
    """Return the name of what a file is one of several shards of; None for a whole file."""
    shard = _SHARD.fullmatch(path.name)
    return shard["stem"] if shard else None


def _open_file(path: Path) -> TensorFile:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise MissingFilesError("checkpoint.unreadable", path=path, reason=error.strerror) from None
    refuse_bytes(path, head)
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


def _open_shards(path: Path, shard: re.Match[str]) -> TensorFile:
    """All shards beside one of them: by their index, or by the numbers in their names."""
    for name in (f"{shard['stem']}{shard['suffix']}.index.json", f"{shard['stem']}.index.json"):
        if path.with_name(name).is_file():
            return _open_index(path.with_name(name))
    count = int(shard["count"])
    if count > MAX_SHARDS:
        raise CheckpointError("checkpoint.not_index", path=path)
    names = [f"{shard['stem']}-{i:05d}-of-{count:05d}{shard['suffix']}" for i in range(1, count + 1)]
    absent = [name for name in names if not path.with_name(name).is_file()]
    if absent:
        raise MissingFilesError("foreign.shard", path=path, count=count, files=some(absent))
    files = [_open_file(path.with_name(name)) for name in names]
    owner = {name: file for file in files for name in file.shapes}
    shapes = {name: owner[name].shapes[name] for name in owner}
    return TensorFile(path, shapes, lambda name: owner[name].read(name), files[0].metadata)


def _open_index(path: Path) -> TensorFile:
    try:
        weight_map = read_json(path)["weight_map"]
        by_shard: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            if Path(shard).name != shard:  # elsewhere: an index that was made to read other files
                raise ValueError
            by_shard.setdefault(shard, []).append(name)
    except OSError as error:
        raise MissingFilesError("checkpoint.unreadable", path=path, reason=error.strerror) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("checkpoint.not_index", path=path) from None
    absent = [shard for shard in by_shard if not (path.parent / shard).is_file()]
    if absent:
        raise MissingFilesError(
            "checkpoint.shards_absent", folder=path.parent, files=some(absent), count=len(by_shard), index=path.name
        )
    shards = {shard: _open_file(path.parent / shard) for shard in by_shard}
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
    content = _unwrapped(content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError("checkpoint.no_tensors", path=path)
    foreign_names = [
        str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if foreign_names:
        raise CheckpointError("checkpoint.not_tensors", path=path, names=some(foreign_names))
    return TensorFile(path, {name: tuple(t.shape) for name, t in content.items()}, content.__getitem__)


def _unwrapped(content: Any) -> Any:
    """The tensors by name inside what trainers write around them: {"model": ..., "step": 7}, {"generator_ema": ...}."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in content.values()):
            break
        inner = {name: value for name, value in content.items() if isinstance(value, dict) and value}
        name = next((name for name in WRAPPERS if name in inner), None)
        if name is None and len(inner) != 1:
            break
        content = inner[name] if name is not None else next(iter(inner.values()))
    return content


def some(names: Sequence[Text | str]) -> Text | Sequence[Text | str]:
    """Return the first three names, with how many there are when there are more."""
    return text("checkpoint.some", names=names[:3], more=len(names) - 3) if len(names) > 3 else names


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
