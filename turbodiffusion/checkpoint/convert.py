"""Any family of checkpoint to ours: safetensors with the configuration in the header, or a whole model folder.

Where a checkpoint does not bring its configuration, the shapes of its tensors tell it; a `config.json` beside the
weights (diffusers' or the original's) adds what shapes cannot tell. Names and shapes are checked against the network of
that configuration before anything is written. Tensors keep their dtype and stay in the mapped source until they are
written; with `quantize` the 8-bit copy is held in memory, half the size of a bfloat16 source.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbodiffusion.checkpoint.files import find, locate
from turbodiffusion.checkpoint.folder import (
    FILES,
    HEADER_KEY,
    PartConfig,
    Stored,
    config_from,
    read_folder,
    write_folder,
    write_part,
)
from turbodiffusion.checkpoint.formats import Checkpoint, open_checkpoint, part_of
from turbodiffusion.checkpoint.load import check
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError
from turbodiffusion.files import check_writable
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import PATCH, WanTransformer

HEAD_DIM = 128  # of every published Wan transformer


def read_config(path: str | Path, part: str) -> Any:
    """Read the configuration of "transformer", "transformer_low", "vae" or "text" under `path`, a file or folder.

    A WanConfig has attention_type "sla" where there is a proj_l, and round_time_to_bf16 for what only TurboDiffusion
    writes; without a proj_l or a config.json, heads are taken to be 128 wide. Raises CheckpointError when the tensors
    do not tell a configuration.
    """
    return _config_of(open_checkpoint(path, part))


def convert(
    source: str | Path,
    target: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Path:
    """Write `source` in our format and return `target`.

    A `target` that ends in ".safetensors" gets one part: that of the source file, or the transformer of a folder. Any
    other target becomes a model folder, for which the source must be a folder with every part.
    config: overrides by part, e.g. {"transformer": WanConfig(...)}; for a folder also "sampling" and "about".
    quantize: None keeps 8-bit weights and float ones as they are; "int8_block" stores large weights in 8 bits.
    Raises CheckpointError when the source is of no known family or does not fit its configuration.
    """
    source, target, config = Path(source), Path(target), config or {}
    if quantize not in (None, "int8_block"):
        raise CheckpointError("checkpoint.quantize", value=quantize)
    check_writable(target if target.suffix == ".safetensors" else target / "model.json")
    if target.suffix == ".safetensors":
        part = part_of(source) if source.is_file() else "transformer"
        values, stored = _read(source, part, config.get(part))
        write_part(target, part, values, stored, store=quantize)
        return target
    if source.is_file():
        raise CheckpointError("checkpoint.one_part", path=source)
    parts = {part: _read(source, part, config.get(part)) for part in FILES if part != "transformer_low"}
    if (source / "model.json").is_file():
        ours = read_folder(source)
        config = {"sampling": ours.sampling, "about": ours.about, **config}
    if find(source, "transformer_low"):
        parts["transformer_low"] = _read(source, "transformer_low", parts["transformer"][0])
    rest = {key: config[key] for key in ("sampling", "about") if key in config}
    write_folder(target, parts, locate(source, "tokenizer"), rest, store=quantize)
    return target


def _read(source: Path, part: str, config: PartConfig | None) -> tuple[PartConfig, Stored]:
    checkpoint = open_checkpoint(source, part)
    config = config or _config_of(checkpoint)
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


def _config_of(checkpoint: Checkpoint) -> Any:
    try:
        header = checkpoint.metadata.get(HEADER_KEY)
        if header is not None:
            return config_from(checkpoint.part, json.loads(header)["config"])
        infer = {"transformer": _infer_transformer, "vae": _infer_vae, "text": _infer_text}[checkpoint.part]
        return infer(checkpoint, _config_beside(checkpoint.path))
    except KeyError as error:
        raise CheckpointError("checkpoint.no_config_key", path=checkpoint.path, key=str(error)) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError("checkpoint.no_config", path=checkpoint.path, reason=str(error)) from None


def _config_beside(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values if isinstance(values, dict) else {}


def _infer_transformer(checkpoint: Checkpoint, beside: Mapping[str, Any]) -> WanConfig:
    shapes = checkpoint.shapes
    dim, patch = shapes["patch_embedding.weight"]
    proj_l = next((shape for name, shape in shapes.items() if name.endswith(".proj_l.weight")), None)
    heads = beside.get("num_heads", beside.get("num_attention_heads"))
    image = shapes.get("img_emb.proj.1.weight")
    return WanConfig(
        dim=dim,
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        num_heads=heads or dim // (proj_l[0] if proj_l else HEAD_DIM),
        num_layers=_count(shapes, "blocks."),
        in_dim=patch // PATCH**2,
        out_dim=shapes["head.head.weight"][0] // PATCH**2,
        freq_dim=shapes["time_embedding.0.weight"][1],
        text_dim=shapes["text_embedding.0.weight"][1],
        text_len=beside.get("text_len", 512),
        image_dim=image[1] if image else None,
        round_time_to_bf16=proj_l is not None or checkpoint.quantized("blocks.0.ffn.0.weight"),
        attention_type="sla" if proj_l else "original",
    )


def _infer_vae(checkpoint: Checkpoint, beside: Mapping[str, Any]) -> VAEConfig:
    shapes = checkpoint.shapes
    dim = shapes["encoder.conv1.weight"][0]
    widths: list[list[int]] = [[]]  # of the residual blocks, stage by stage
    temporal = []
    for layer in range(_count(shapes, "encoder.downsamples.")):
        start = f"encoder.downsamples.{layer}."
        if f"{start}resample.1.weight" in shapes:
            temporal.append(f"{start}time_conv.weight" in shapes)
            widths.append([])
        else:
            widths[-1].append(shapes[f"{start}residual.2.weight"][0])
    scale = {name: tuple(beside[name]) for name in ("latents_mean", "latents_std") if name in beside}
    return VAEConfig(
        dim=dim,
        z_dim=shapes["conv2.weight"][0],
        dim_mult=tuple(stage[-1] // dim for stage in widths),
        num_res_blocks=len(widths[0]),
        temporal_downsample=tuple(temporal),
        **scale,
    )


def _infer_text(checkpoint: Checkpoint, beside: Mapping[str, Any]) -> TextConfig:
    shapes = checkpoint.shapes
    vocab_size, d_model = shapes["shared.weight"]
    heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][1]
    return TextConfig(
        d_model=d_model,
        num_layers=_count(shapes, "encoder.block."),
        num_heads=heads,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        vocab_size=vocab_size,
        text_len=beside.get("text_len", 512),
    )


def _count(shapes: Mapping[str, Any], start: str) -> int:
    """Count the numbered modules that begin with `start`."""
    return len({name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)})
