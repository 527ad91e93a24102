"""Any family of checkpoint to ours: safetensors with the configuration in the header, or a whole model folder.

Where a checkpoint does not bring its configuration, the shapes of its tensors tell it; a `config.json` beside the
weights (diffusers' or the original's) adds what shapes cannot tell. Names and shapes are checked against the network of
that configuration before anything is written. Tensors keep their dtype and stay in the mapped source until they are
written; with `quantize` the 8-bit copy is held in memory, half the size of a bfloat16 source.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbodiffusion.checkpoint.folder import PartConfig, Stored, read_folder, write_folder, write_part
from turbodiffusion.checkpoint.formats import part_of
from turbodiffusion.checkpoint.infer import config_of, read_header
from turbodiffusion.checkpoint.load import check
from turbodiffusion.checkpoint.pair import find_transformers
from turbodiffusion.checkpoint.places import find_shared, open_checkpoint
from turbodiffusion.checkpoint.sampling import SAMPLING_FIELDS, check_sampler, infer_sampling
from turbodiffusion.config import VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.files import check_writable
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import SAMPLER_FIELDS, wan_sampling


def convert(
    source: str | Path,
    target: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    sampler: str | None = None,
    parts: Mapping[str, str | Path | None] | None = None,
) -> Path:
    """Write `source` in our format and return `target`.

    A `target` that ends in ".safetensors" gets one part: that of the source file, or the transformer of a folder. Any
    other target becomes a model folder, of every part: those in the source folder or beside the source file, or those
    that `parts` names ("vae", "text", "tokenizer": a file).
    config: overrides by part, e.g. {"transformer": WanConfig(...)}; for a folder also "sampling" and "about".
    quantize: None keeps 8-bit weights and float ones as they are; "int8_block" stores large weights in 8 bits.
    sampler: "rcm" for a distilled model, "flow" for another; None: what the source says, else a guess by names.
    Raises CheckpointError when the source is of no known family or does not fit its configuration.
    """
    source, target, config = Path(source), Path(target), config or {}
    if quantize not in (None, "int8_block"):
        raise CheckpointError("checkpoint.quantize", value=quantize)
    check_writable(target if target.suffix == ".safetensors" else target / "model.json")
    check_sampler(sampler)
    if target.suffix == ".safetensors":
        return _convert_part(source, target, config, quantize, sampler)

    # 1. where each part is
    transformers = find_transformers(source)
    shared, missing = find_shared(source, parts or {})
    if missing is not None:
        raise missing
    # 2. how it is sampled
    ours = read_folder(source) if (source / "model.json").is_file() else None
    rest = {} if ours is None else {"sampling": ours.sampling, "about": ours.about}
    # 3. names and shapes of each part
    read = {"transformer": _read(transformers.high, "transformer", config.get("transformer"))}
    if transformers.low is not None:
        read["transformer_low"] = _read(transformers.low, "transformer_low", read["transformer"][0])
    read |= {part: _read(shared[part], part, config.get(part)) for part in ("vae", "text")}
    if ours is None or sampler is not None:
        rest["sampling"] = _sampling(source, read, rest.get("sampling", {}), sampler)
    rest |= {key: config[key] for key in ("sampling", "about") if key in config}
    write_folder(target, read, shared["tokenizer"], rest, store=quantize)
    return target


def _convert_part(
    source: Path, target: Path, config: Mapping[str, Any], quantize: str | None, sampler: str | None
) -> Path:
    part = part_of(source) if source.is_file() else "transformer"
    sampling: dict[str, Any] = {}
    if part == "transformer" and source.is_dir():
        if find_transformers(source).low is not None:
            raise CheckpointError("experts.one_file", path=source)
        if (source / "model.json").is_file():
            sampling = dict(read_folder(source).sampling)
    values, stored = _read(source, part, config.get(part))
    if sampler is not None:
        if not isinstance(values, WanConfig):
            raise CheckpointError("sampling.no_transformer", path=source)
        sampling = _with_sampler(values, values.in_dim > values.out_dim, 1, sampling, sampler)
    write_part(target, part, values, stored, store=quantize, sampling=sampling)
    return target


def _sampling(
    source: Path, parts: Mapping[str, tuple[PartConfig, Stored]], own: Mapping[str, Any], sampler: str | None
) -> dict[str, Any]:
    """The sampling of a folder that is made from another project's files, or that the user says otherwise."""
    transformer, vae = parts["transformer"][0], parts["vae"][0]
    assert isinstance(transformer, WanConfig) and isinstance(vae, VAEConfig)
    experts, image = 1 + ("transformer_low" in parts), transformer.in_dim > vae.z_dim
    if not own and source.is_file():
        header = read_header(open_checkpoint(source, "transformer")) or {}
        own = header.get("sampling") or {}
    if own:
        return _with_sampler(transformer, image, experts, own, sampler)
    inferred = infer_sampling(source, transformer, "i2v" if image else "t2v", experts, sampler=sampler)
    return {"resolution": "480p", **inferred.values}


def _with_sampler(
    transformer: WanConfig, image: bool, experts: int, own: Mapping[str, Any], sampler: str | None
) -> dict[str, Any]:
    """A model's own sampling, with the numbers of another sampler where the user names one."""
    if sampler in (None, own.get("sampler")):
        return dict(own)
    assert sampler is not None
    numbers = wan_sampling(transformer, "i2v" if image else "t2v", experts, sampler)
    others = {"num_steps", "guidance_low", *(name for names in SAMPLER_FIELDS.values() for name in names)}
    kept = {name: value for name, value in own.items() if name in SAMPLING_FIELDS and name not in others}
    return {**numbers, **kept, "sampler": sampler}


def _read(source: Path, part: str, config: PartConfig | None) -> tuple[PartConfig, Stored]:
    checkpoint = open_checkpoint(source, part)
    config = config or config_of(checkpoint)
    check(_on_meta(config), checkpoint)
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in checkpoint.shapes.items():
        if not checkpoint.quantized(name):
            tensors[name] = checkpoint.read(name)
            continue
        base = name.removesuffix(".weight")
        tensors[f"{base}.int8_weight"], tensors[f"{base}.scale"] = checkpoint.blocks(name)
        if len(shape) > 2:
            shapes[name] = shape
    return config, Stored(tensors, shapes)


def _on_meta(config: PartConfig) -> nn.Module:
    if isinstance(config, WanConfig):
        return WanTransformer(config, device="meta")
    return WanVAE(config, device="meta") if isinstance(config, VAEConfig) else TextEncoder(config, device="meta")
