"""Our folder of a whole model, which loads by itself.

`model.json` has the format's version, the configurations of the parts, the sampling defaults and what else is to be
known about the model. Beside it: `transformer.safetensors`, `transformer_low.safetensors` for a second expert,
`vae.safetensors`, `text_encoder.safetensors`, `spiece.model`. Each safetensors file repeats its own configuration in
its header, so that it also loads alone.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from turbodiffusion.checkpoint.files import write_tensors
from turbodiffusion.checkpoint.formats import SHAPES_KEY
from turbodiffusion.checkpoint.json_files import read_json
from turbodiffusion.checkpoint.places import read_vocabulary
from turbodiffusion.checkpoint.sampling import check_about, check_sampling
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig, shown
from turbodiffusion.errors import CheckpointError, MissingFilesError, OutputError, UserError
from turbodiffusion.files import check_writable, reason
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.ops.linear.int8 import BLOCK, quantize_int8_block

VERSION = 1
HEADER_KEY = "turbodiffusion"  # in a safetensors header: version, part and configuration, as JSON
PartConfig = WanConfig | VAEConfig | TextConfig
CONFIGS: dict[str, Any] = {"transformer": WanConfig, "vae": VAEConfig, "text": TextConfig}
FILES = {
    "transformer": "transformer.safetensors",
    "transformer_low": "transformer_low.safetensors",
    "vae": "vae.safetensors",
    "text": "text_encoder.safetensors",
}


@dataclass(frozen=True)
class FolderConfig:
    """What `model.json` says. `sampling` and `about` are the plain values that were given to `save_folder`."""

    folder: Path
    transformer: WanConfig
    vae: VAEConfig
    text: TextConfig
    two_experts: bool  # transformer_low.safetensors is there
    sampling: Mapping[str, Any]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A part's tensors as a file has them: 8-bit weights as two, with the shapes of those that are no matrices."""

    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def save_folder(
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    transformer: WanTransformer,
    vae: WanVAE,
    text: TextEncoder,
    tokenizer: str | Path,
    transformer_low: WanTransformer | None = None,
    store: str | None = None,
) -> None:
    """Write a model folder; it appears whole, in place of an older model folder of that name, or not at all.

    config: `{"sampling": {...}, "about": {...}}`, both optional and of JSON's types; the parts bring their own
    configurations. tokenizer: the spiece.model to copy. store: None keeps every tensor as it is; "int8_block" keeps the
    weights of the transformer's blocks, of the text encoder and of the VAE in 8 bits (`in_blocks`).
    Raises CheckpointError for an unknown key of `config`, and where `folder` exists and is not a model folder;
    OutputError when it cannot be written.
    """
    modules = {"transformer": transformer, "transformer_low": transformer_low, "vae": vae, "text": text}
    parts = {part: (m.config, Stored(m.state_dict())) for part, m in modules.items() if m is not None}
    write_folder(folder, parts, tokenizer, config, store=store)


def write_folder(
    folder: str | Path,
    parts: Mapping[str, tuple[PartConfig, Stored]],
    tokenizer: str | Path,
    config: Mapping[str, Any],
    *,
    store: str | None = None,
) -> None:
    """Write a folder as `save_folder` does, from the parts' configurations and tensors (keys of FILES)."""
    folder = Path(folder)
    unknown = set(config) - {"sampling", "about"}
    if unknown:
        raise CheckpointError("checkpoint.folder_config", names=sorted(unknown))
    if folder.exists() and not (folder / "model.json").is_file() and any(folder.iterdir()):
        raise CheckpointError("checkpoint.folder_exists", path=folder)
    if "transformer_low" in parts and parts["transformer_low"][0] != parts["transformer"][0]:
        raise CheckpointError("checkpoint.experts_differ")
    sampling, about = (dict(config.get(key, {})) for key in ("sampling", "about"))
    check_sampling(sampling, folder / "model.json")
    check_about(about, folder / "model.json")
    model = {
        "version": VERSION,
        "two_experts": "transformer_low" in parts,
        **{part: config_values(parts[part][0]) for part in CONFIGS},
        "sampling": sampling,
        "about": about,
    }
    check_writable(folder / "model.json")
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        (beside / "model.json").write_text(json.dumps(model, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for part, (part_config, stored) in parts.items():
            write_part(beside / FILES[part], part, part_config, stored, store=store)
        (beside / "spiece.model").write_bytes(read_vocabulary(Path(tokenizer)))
        _replace(folder, beside)
    except OSError as error:
        raise OutputError("files.cannot_write", path=folder, reason=reason(error, folder.parent, 0)) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_folder(folder: str | Path) -> FolderConfig:
    """Read `model.json`. Raises MissingFilesError when there is none, CheckpointError when it is damaged or newer."""
    folder = Path(folder)
    path = folder / "model.json"
    try:
        model = read_json(path)
    except OSError:
        raise MissingFilesError("checkpoint.not_folder", path=folder) from None
    except ValueError as error:
        raise CheckpointError("checkpoint.damaged", path=path, reason=str(error)) from None
    if not isinstance(model, dict) or model.get("version") != VERSION:
        version = model.get("version") if isinstance(model, dict) else None
        raise CheckpointError("checkpoint.version", path=path, version=shown(version), known=VERSION)
    for key in ("two_experts", *CONFIGS, "sampling", "about"):
        if key not in model:
            raise CheckpointError("checkpoint.damaged_key", path=path, key=key)
    if not isinstance(model["two_experts"], bool):
        value = shown(model["two_experts"])
        raise CheckpointError("checkpoint.damaged_bool", path=path, key="two_experts", value=value)
    return FolderConfig(
        folder,
        _part_config(path, "transformer", model),
        _part_config(path, "vae", model),
        _part_config(path, "text", model),
        model["two_experts"],
        check_sampling(model["sampling"], path),
        check_about(model["about"], path),
    )


def _part_config(path: Path, part: str, model: Mapping[str, Any]) -> Any:
    values = model[part]
    if not isinstance(values, dict):
        raise CheckpointError("checkpoint.damaged_section", path=path, section=part, value=shown(values))
    try:
        return config_from(part, values)
    except UserError as error:
        raise CheckpointError("checkpoint.damaged", path=path, reason=error.text) from None
    except ValueError as error:
        raise CheckpointError("checkpoint.damaged", path=path, reason=str(error)) from None


def config_values(config: PartConfig) -> dict[str, Any]:
    """Return the configuration as JSON's values, without `kernels`: those are of the machine that built the network."""
    values = dataclasses.asdict(config)
    values.pop("kernels", None)
    return values


def config_from(part: str, values: Mapping[str, Any]) -> Any:
    """Make the part's configuration from JSON's values. Raises ValueError, which UserError is, for what is none."""
    kind = CONFIGS[part.removesuffix("_low")]
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "kernels"}
    if unknown := [shown(name) for name in values if name not in fields]:
        raise UserError("config.unknown_field", config=kind.__name__, names=unknown, known=list(fields))
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if needed:
        raise UserError("config.lacks", config=kind.__name__, names=needed)
    lists_as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**lists_as_tuples)


def write_part(
    path: str | Path,
    part: str,
    config: PartConfig,
    stored: Stored,
    *,
    store: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write one part's tensors, in our names, with its configuration in the header; of a transformer also its sampling.

    Raises CheckpointError for linears in 8-bit rows: they are made at load for the GPU at hand and have no file format.
    """
    if store not in (None, "int8_block"):
        raise CheckpointError("checkpoint.store", value=store)
    for name, tensor in stored.tensors.items():
        if name.endswith(".fp8_weight") or (name.endswith(".scale") and tensor.ndim == 1):
            raise CheckpointError("checkpoint.row_format", name=name)
    if store:
        stored = in_blocks(stored, part)
    header = {"version": VERSION, "part": part, "config": config_values(config)}
    if sampling:
        header["sampling"] = dict(sampling)
    write_tensors(path, stored.tensors, {HEADER_KEY: json.dumps(header), SHAPES_KEY: json.dumps(stored.shapes)})


def in_blocks(stored: Stored, part: str) -> Stored:
    """Quantize the large weights in blocks of 128 x 128, to `X.int8_weight` and `X.scale`.

    Large: at least one whole block of 128 x 128; below that, scales and rounding cost more than the bytes are worth. A
    convolution [out, in, ...] is stored as the matrix [out, in * ...]. Of a transformer only the linears of its blocks
    are taken, without proj_l, as in the published format; a block's scale is amax / 127 and not its amax / 128, so
    that what was read from a file is written as it was.
    """
    tensors: dict[str, Tensor] = {}
    shapes = dict(stored.shapes)
    for name, tensor in stored.tensors.items():
        eligible = not part.startswith("transformer") or re.match(r"blocks\.(?!.*\.proj_l\.)", name)
        large = tensor.ndim >= 2 and tensor.numel() >= BLOCK * BLOCK and tensor.is_floating_point()
        if not (eligible and large and name.endswith(".weight")):
            tensors[name] = tensor
            continue
        base = name.removesuffix(".weight")
        values, scale = quantize_int8_block(tensor.detach().flatten(1), top=127)
        tensors[f"{base}.int8_weight"], tensors[f"{base}.scale"] = values, scale
        if tensor.ndim > 2:
            shapes[name] = tuple(tensor.shape)
    return Stored(tensors, shapes)


def _replace(folder: Path, beside: Path) -> None:
    """Rename `beside` to `folder`; an older folder of that name is removed once the new one is in its place."""
    if not folder.exists():
        beside.rename(folder)
        return
    old = beside.with_suffix(".old")
    folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old)
