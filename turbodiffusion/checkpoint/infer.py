"""The configuration of a checkpoint that does not bring one: the shapes of its tensors tell it.

A `config.json` beside the weights (diffusers' or the original's) adds what shapes cannot tell, and must not contradict
them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from turbodiffusion.checkpoint.folder import HEADER_KEY, PartConfig, config_from
from turbodiffusion.checkpoint.formats import Checkpoint
from turbodiffusion.checkpoint.json_files import parse_json, read_json
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.config import PATCH, WAN_LIMITS, TextConfig, VAEConfig, WanConfig, shown
from turbodiffusion.errors import CheckpointError, UserError
from turbodiffusion.texts import Text

HEAD_DIM = 128  # of every published Wan transformer
# The fields that shapes tell, by part.
TOLD_BY_SHAPES = {
    "transformer": ("dim", "ffn_dim", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim", "image_dim"),
    "vae": ("dim", "z_dim", "dim_mult", "num_res_blocks", "temporal_downsample"),
    "text": ("d_model", "num_layers", "num_heads", "d_kv", "d_ff", "vocab_size"),
}
# Keys of a transformer's config.json, the original's and diffusers', by our fields.
_KEYS = {
    **{name: name for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim")},
    "text_dim": "text_dim",
    "text_len": "text_len",
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
}
_TRANSFORMERS = ("WanModel", "WanTransformer3DModel")  # classes whose config.json is a transformer's


def read_config(path: str | Path, part: str) -> Any:
    """The configuration of "transformer", "transformer_low", "vae" or "text" under `path`, a file or folder.

    A WanConfig has attention_type "sla" where there is a proj_l, and round_time_to_bf16 for what only TurboDiffusion
    writes; without a proj_l or a config.json, heads are taken to be 128 wide. Raises CheckpointError when the tensors
    do not tell a configuration.
    """
    return config_of(open_checkpoint(path, part))


def config_of(checkpoint: Checkpoint) -> Any:
    """Return the configuration of an open checkpoint: its header's, which must fit its tensors, else what they tell."""
    header = read_header(checkpoint)
    if header is None:
        return infer_config(checkpoint)
    try:
        config = config_from(checkpoint.part, header["config"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError("checkpoint.header_reason", path=checkpoint.path, reason=_reason(error)) from None
    check_config(checkpoint, config, checkpoint.path)
    return config


def read_header(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Return what a safetensors file of ours says of itself; None for any other file."""
    source = checkpoint.metadata.get(HEADER_KEY)
    if source is None:
        return None
    try:
        header = parse_json(source)
        if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
            raise ValueError("it has no config")
    except ValueError as error:
        raise CheckpointError("checkpoint.header_reason", path=checkpoint.path, reason=_reason(error)) from None
    return header


def check_config(checkpoint: Checkpoint, config: PartConfig, said_by: Path) -> None:
    """Raise CheckpointError where the tensors of a file are not those of a configuration."""
    told = infer_config(checkpoint, asdict(config))  # what shapes do not tell, the configuration does
    for name in TOLD_BY_SHAPES[checkpoint.part]:
        if getattr(told, name) != getattr(config, name):
            raise CheckpointError(
                "part.contradicts",
                path=checkpoint.path,
                field=name,
                found=shown(getattr(told, name)),
                said_by=said_by,
                said=shown(getattr(config, name)),
            )


def infer_config(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Any:
    """Return the configuration that names and shapes tell, with what `beside`, or a config.json there, adds."""
    try:
        infer = {"transformer": _infer_transformer, "vae": _infer_vae, "text": _infer_text}[checkpoint.part]
        return infer(checkpoint, _config_beside(checkpoint.path) if beside is None else beside)
    except KeyError as error:
        raise CheckpointError("checkpoint.no_config_key", path=checkpoint.path, key=str(error)) from None
    except CheckpointError:
        raise
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError("checkpoint.no_config", path=checkpoint.path, reason=_reason(error)) from None


def _reason(error: Exception) -> Text | str:
    """A UserError in the language of whoever reads it, another error in its own words."""
    return error.text if isinstance(error, UserError) else str(error)


def _config_beside(path: Path) -> Mapping[str, Any]:
    beside = path.parent / "config.json"
    if not beside.is_file():
        return {}
    try:
        values = read_json(beside)
    except (OSError, ValueError) as error:
        raise CheckpointError("checkpoint.damaged", path=beside, reason=str(error)) from None
    if not isinstance(values, dict):
        raise CheckpointError("checkpoint.damaged_object", path=beside)
    limits = WAN_LIMITS | {"num_attention_heads": WAN_LIMITS["num_heads"], "attention_head_dim": 4096}
    for key in (*_KEYS, "attention_head_dim"):
        high = limits[_KEYS.get(key, key)]
        value = values.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= high):
            raise CheckpointError("checkpoint.damaged_number", path=beside, key=key, high=high, value=shown(value))
    return values


def _check_beside(checkpoint: Checkpoint, config: WanConfig, beside: Mapping[str, Any]) -> None:
    """A transformer's own config.json must not contradict its tensors."""
    values = asdict(config)
    for key, name in _KEYS.items():
        if beside.get(key) is not None and beside[key] != values[name]:
            said_by = checkpoint.path.parent / "config.json"
            found, said = shown(values[name]), shown(beside[key])
            raise CheckpointError(
                "part.contradicts", path=checkpoint.path, field=key, found=found, said_by=said_by, said=said
            )


def _infer_transformer(checkpoint: Checkpoint, beside: Mapping[str, Any]) -> WanConfig:
    shapes = checkpoint.shapes
    dim, patch = shapes["patch_embedding.weight"]
    proj_l = next((shape for name, shape in shapes.items() if name.endswith(".proj_l.weight")), None)
    heads = beside.get("num_heads", beside.get("num_attention_heads"))
    if heads is None:
        heads = dim // (beside.get("attention_head_dim") or (proj_l[0] if proj_l else HEAD_DIM))
    text_len = beside.get("text_len")
    image = shapes.get("img_emb.proj.1.weight")
    config = WanConfig(
        dim=dim,
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        num_heads=heads,
        num_layers=_count(shapes, "blocks."),
        in_dim=patch // PATCH**2,
        out_dim=shapes["head.head.weight"][0] // PATCH**2,
        freq_dim=shapes["time_embedding.0.weight"][1],
        text_dim=shapes["text_embedding.0.weight"][1],
        text_len=512 if text_len is None else text_len,
        image_dim=image[1] if image else None,
        round_time_to_bf16=proj_l is not None or checkpoint.quantized("blocks.0.ffn.0.weight"),
        attention_type="sla" if proj_l else "original",
    )
    if beside.get("_class_name") in _TRANSFORMERS:
        _check_beside(checkpoint, config, beside)
    return config


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
    scale = {
        name: tuple(value) if isinstance(value := beside[name], list) else value
        for name in ("latents_mean", "latents_std")
        if name in beside
    }
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
        text_len=512 if beside.get("text_len") is None else beside["text_len"],
    )


def _count(shapes: Mapping[str, Any], start: str) -> int:
    """Count the numbered modules that begin with `start`."""
    return len({name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)})
