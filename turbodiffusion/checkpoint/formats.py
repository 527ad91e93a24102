"""The families of Wan checkpoints and the map from each one's tensor names to ours.

Ours are the original Wan names for the transformer and the VAE, and transformers' for the text encoder. A family is
recognised by a tensor that only it has. 8-bit weights are `X.int8_weight` and `X.scale` where a float one is `X.weight`
(TurboDiffusion's `-quant.pth`, arXiv 2512.16093); a weight that was not a matrix has its shape in the file's header.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.checkpoint.files import TensorFile, locate, open_tensors, some
from turbodiffusion.checkpoint.prefetch import prefetch
from turbodiffusion.errors import CheckpointError
from turbodiffusion.ops.linear.int8 import BLOCK, dequantize_int8_block
from turbodiffusion.texts import Text, text

SHAPES_KEY = "shapes"  # in the header of a file of ours: shapes of 8-bit weights that are not matrices, as JSON
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_Renames = tuple[tuple[str, str], ...]

_WAN_TRANSFORMER: _Renames = ((r"\.self_attn\.attn_op\.local_attn\.proj_l\.", ".self_attn.attention.proj_l."),)

_DIFFUSERS_TRANSFORMER: _Renames = (
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),  # the original numbers the norms by the order they were added in
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
    (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
    (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
)

# Inside a residual block; diffusers' up_blocks hold three of them and an upsampler, the original counts all in one row.
_DIFFUSERS_VAE: _Renames = (
    (r"(down_blocks|resnets)\.(\d+)\.norm1\.", r"\1.\2.residual.0."),
    (r"(down_blocks|resnets)\.(\d+)\.conv1\.", r"\1.\2.residual.2."),
    (r"(down_blocks|resnets)\.(\d+)\.norm2\.", r"\1.\2.residual.3."),
    (r"(down_blocks|resnets)\.(\d+)\.conv2\.", r"\1.\2.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
)

_WAN_TEXT: _Renames = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)

_TRANSFORMERS_TEXT: _Renames = ((r"^encoder\.embed_tokens\.", "shared."),)  # one table under two names


def _rename(renames: _Renames) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in renames]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename


def _rename_diffusers_vae(name: str) -> str:
    up = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", name)
    name = _rename(_DIFFUSERS_VAE)(name)
    if up is None:
        return name
    index = 4 * int(up[1]) + (int(up[3]) if up[2] == "resnets" else 3)
    return re.sub(r"^decoder\.up_blocks\.\d+\.(resnets|upsamplers)\.\d+\.", f"decoder.upsamples.{index}.", name)


@dataclass(frozen=True)
class Family:
    """One way of naming a part's tensors; `landmark` is a name that no other family has."""

    name: str
    part: str  # "transformer", "vae" or "text"
    landmark: str
    rename: Callable[[str], str]


FAMILIES = (
    Family("Wan", "transformer", "time_projection.1.weight", _rename(_WAN_TRANSFORMER)),
    Family("diffusers", "transformer", "condition_embedder.time_proj.weight", _rename(_DIFFUSERS_TRANSFORMER)),
    Family("Wan", "vae", "decoder.head.0.gamma", _rename(())),
    Family("diffusers", "vae", "decoder.norm_out.gamma", _rename_diffusers_vae),
    Family("Wan", "text", "token_embedding.weight", _rename(_WAN_TEXT)),
    Family("transformers", "text", "encoder.final_layer_norm.weight", _rename(_TRANSFORMERS_TEXT)),
)


@dataclass(frozen=True)
class Checkpoint:
    """A weight file under our names; an 8-bit weight appears as the float `X.weight` that it stands for."""

    path: Path
    part: str
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _file: TensorFile
    _sources: Mapping[str, tuple[str, ...]]  # names in the file: the tensor, or the int8 values and their scales

    def quantized(self, name: str) -> bool:
        """Say whether `name` is stored as 8-bit blocks."""
        return len(self._sources[name]) == 2

    def blocks(self, name: str) -> tuple[Tensor, Tensor]:
        """Read a quantized weight: int8 [out, in] and float32 scales [ceil(out / 128), ceil(in / 128)]."""
        values, scale = self._sources[name]
        return self._read(values, torch.int8), self._read(scale, torch.float32)

    def read(self, name: str) -> Tensor:
        """Read the weight as a float tensor of `shapes[name]`, dequantized to float32 where it is stored in 8 bits."""
        if self.quantized(name):
            return dequantize_int8_block(*self.blocks(name)).reshape(self.shapes[name])
        return self._read(self._sources[name][0], *FLOATS).reshape(self.shapes[name])

    @contextmanager
    def prefetch(self, device: torch.device) -> Iterator["Checkpoint"]:
        """Give the same checkpoint with its tensors prefetched to a GPU: each once, in the order of `shapes`."""
        order = [stored for name in self.shapes for stored in self._sources[name]]
        with prefetch(self._file.read, order, device) as read:
            yield replace(self, _file=replace(self._file, read=read))

    def _read(self, stored: str, *dtypes: torch.dtype) -> Tensor:
        tensor = self._file.read(stored)
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                "checkpoint.dtype", path=self.path, name=stored, dtype=tensor.dtype, known=list(map(str, dtypes))
            )
        return tensor


def open_checkpoint(path: str | Path, part: str) -> Checkpoint:
    """Open the weights of `part` ("transformer", "transformer_low", "vae" or "text") under `path`, of any family.

    Raises CheckpointError when the file belongs to no family of that part, or contradicts itself.
    """
    return interpret(open_tensors(locate(path, part)), part)


def interpret(file: TensorFile, part: str) -> Checkpoint:
    """Interpret an open file as `open_checkpoint` does; only tensors that appear under two names are read."""
    kind = part.removesuffix("_low")
    plain = {name.removeprefix("net."): name for name in file.shapes}  # training checkpoints have the prefix
    found = [family for family in FAMILIES if family.landmark in plain]
    family = next((family for family in found if family.part == kind), None)
    if family is None:
        raise CheckpointError("checkpoint.not_this_part", path=file.path, part=kind, reason=_what(found, list(plain)))
    sources: dict[str, tuple[str, ...]] = {}
    for bare, original in plain.items():
        name = family.rename(bare)
        if name in sources:
            if not _equal(file, sources[name][0], original):
                raise CheckpointError("checkpoint.twice", path=file.path, name=name, original=original)
            continue
        sources[name] = (original,)
    for name in [name for name in sources if name.endswith(".int8_weight")]:
        base = name.removesuffix(".int8_weight")
        if f"{base}.scale" not in sources:
            raise CheckpointError("checkpoint.no_scale", path=file.path, scale=f"{base}.scale", name=name)
        sources[f"{base}.weight"] = sources.pop(name) + sources.pop(f"{base}.scale")
    shapes = _shapes(file, sources)
    return Checkpoint(file.path, kind, shapes, file.metadata, file, sources)


def part_of(path: str | Path) -> str:
    """Tell which part a weight file holds: "transformer", "vae" or "text". Raises CheckpointError for none."""
    file = open_tensors(path)
    plain = [name.removeprefix("net.") for name in file.shapes]
    found = [family for family in FAMILIES if family.landmark in plain]
    if not found:
        raise CheckpointError("checkpoint.not_wan", path=file.path, reason=_what(found, plain))
    return found[0].part


def _what(found: list[Family], names: list[str]) -> Text:
    if found:
        return text("checkpoint.holds_part", part=found[0].part)
    return text("checkpoint.unknown_family", names=some(names))


def _shapes(file: TensorFile, sources: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    try:
        recorded = {name: tuple(shape) for name, shape in json.loads(file.metadata.get(SHAPES_KEY, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError("checkpoint.header", path=file.path, key=SHAPES_KEY) from None
    shapes = {}
    for name, stored in sources.items():
        shape = file.shapes[stored[0]]
        if len(stored) == 2:
            blocks = tuple(-(-size // BLOCK) for size in shape)
            if len(shape) != 2 or file.shapes[stored[1]] != blocks:
                raise CheckpointError(
                    "checkpoint.scales",
                    path=file.path,
                    name=stored[0],
                    shape=str(list(shape)),
                    needed=str(list(blocks)),
                    scale=stored[1],
                    scale_shape=str(list(file.shapes[stored[1]])),
                )
            full = recorded.get(name, shape)
            if math.prod(full) != math.prod(shape):
                raise CheckpointError(
                    "checkpoint.shape",
                    path=file.path,
                    name=stored[0],
                    shape=str(list(shape)),
                    wanted=str(list(full)),
                )
            shape = full
        elif name == "patch_embedding.weight":
            shape = (shape[0], math.prod(shape[1:]))  # a Conv3d over whole patches is a Linear over (c, t, h, w)
        shapes[name] = shape
    return shapes


def _equal(file: TensorFile, one: str, other: str) -> bool:
    return file.shapes[one] == file.shapes[other] and bool((file.read(one) == file.read(other)).all())
