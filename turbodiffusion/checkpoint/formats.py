"""The families of Wan checkpoints and the map from each one's tensor names to ours.

Ours are the original Wan names for the transformer and the VAE, and transformers' for the text encoder. A family is
recognised by a tensor that only it has, under whatever prefix training frameworks and ComfyUI put before it. 8-bit
weights are `X.int8_weight` and `X.scale` where a float one is `X.weight` (TurboDiffusion's `-quant.pth`, arXiv
2512.16093); a weight that was not a matrix has its shape in the file's header. fp8 weights are read as the float ones
that they stand for, with a scale beside them (ComfyUI's `scale_weight`) or without.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.checkpoint.files import TensorFile, open_tensors, some
from turbodiffusion.checkpoint.foreign import refuse_names, refuse_shapes
from turbodiffusion.checkpoint.json_files import parse_json
from turbodiffusion.checkpoint.prefetch import prefetch
from turbodiffusion.errors import CheckpointError
from turbodiffusion.ops.linear.int8 import BLOCK, dequantize_int8_block
from turbodiffusion.texts import Text, text

SHAPES_KEY = "shapes"  # in the header of a file of ours: shapes of 8-bit weights that are not matrices, as JSON
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Wrapper modules, whose names may stand anywhere in a tensor's.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# What stands before the names of a part: a training's attributes, ComfyUI's. Of an average and the weights of the last
# step, the average is taken.
_AVERAGES = ("ema", "ema_model", "model_ema", "net_ema", "generator_ema")
_PREFIXES = {
    *_AVERAGES,
    *("module", "net", "model", "diffusion_model", "generator", "student", "dit", "transformer", "vae"),
    *("first_stage_model", "cond_stage_model", "text_encoder", "text_encoders", "umt5xxl", "t5xxl"),
}
# Tensors of ComfyUI's that are no weights: the marks of scaled fp8, scales of activations, the tokenizer.
VOCABULARY = "spiece_model"
_MARKS = re.compile(r"(^|\.)(scaled_fp8|spiece_model|scale_input|input_scale|comfy_quant)$")
_FP8_SCALES = (".scale_weight", ".weight_scale")
_T5_DECODER = ("decoder.", "lm_head.")  # of a whole umT5, whose encoder alone is used
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
    _fp8_scales: Mapping[str, str] = field(
        default_factory=dict
    )  # of fp8 weights: our names, and the scale's in the file

    def quantized(self, name: str) -> bool:
        """Say whether `name` is stored as 8-bit blocks."""
        return len(self._sources[name]) == 2

    def blocks(self, name: str) -> tuple[Tensor, Tensor]:
        """Read a quantized weight: int8 [out, in] and float32 scales [ceil(out / 128), ceil(in / 128)]."""
        values, scale = self._sources[name]
        return self._read(values, torch.int8), self._read(scale, torch.float32)

    def read(self, name: str) -> Tensor:
        """Read the weight as a float tensor of `shapes[name]`: int8 dequantized to float32, fp8 to bfloat16."""
        if self.quantized(name):
            return dequantize_int8_block(*self.blocks(name)).reshape(self.shapes[name])
        value = self._read(self._sources[name][0], *FLOATS, *FP8)
        if name in self._fp8_scales:
            scale = self._read(self._fp8_scales[name], *FLOATS).to(value.device).float()
            value = value.float() * (scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (value.ndim - 1)))
            value = value.bfloat16()
        elif value.dtype in FP8:
            value = value.bfloat16()
        return value.reshape(self.shapes[name])

    @contextmanager
    def prefetch(self, device: torch.device) -> Iterator["Checkpoint"]:
        """Give the same checkpoint with its tensors prefetched to a GPU: each once, in the order of `shapes`."""
        scales = {name: (stored,) for name, stored in self._fp8_scales.items()}
        order = [stored for name in self.shapes for stored in (*self._sources[name], *scales.get(name, ()))]
        with prefetch(self._file.read, order, device) as read:
            yield replace(self, _file=replace(self._file, read=read))

    def _read(self, stored: str, *dtypes: torch.dtype) -> Tensor:
        tensor = self._file.read(stored)
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                "checkpoint.dtype", path=self.path, name=stored, dtype=tensor.dtype, known=list(map(str, dtypes))
            )
        return tensor


def interpret(file: TensorFile, part: str) -> Checkpoint:
    """Interpret an open file of a part ("transformer", "transformer_low", "vae" or "text"), of any family.

    Only tensors that appear under two names are read. Raises CheckpointError when the file belongs to no family of that
    part, names what it is instead, or contradicts itself.
    """
    kind = part.removesuffix("_low")
    found = _families(file.shapes)
    family, prefix = next(((family, prefix) for family, prefix in found if family.part == kind), (None, ""))
    if family is None:
        refuse_names(file.path, file.shapes)
        reason = _what(found, list(file.shapes))
        raise CheckpointError("checkpoint.not_this_part", path=file.path, part=text(f"part.{kind}"), reason=reason)
    plain = _named(file.shapes, prefix, [other for _, other in found])
    refuse_names(file.path, plain)
    sources: dict[str, tuple[str, ...]] = {}
    fp8_scales: dict[str, str] = {}
    for bare, original in plain.items():
        if kind == "text" and bare.startswith(_T5_DECODER):
            continue
        name = family.rename(bare)
        if name.endswith(_FP8_SCALES):
            fp8_scales[f"{name.rpartition('.')[0]}.weight"] = original
            continue
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
    if any(name.endswith((".scale", ".zero_point")) for name in sources):
        raise CheckpointError("foreign.quantized", path=file.path)
    shapes = _shapes(file, sources)
    _check_fp8_scales(file, fp8_scales, shapes)
    refuse_shapes(file.path, kind, shapes)
    return Checkpoint(file.path, kind, shapes, file.metadata, file, sources, fp8_scales)


def part_of(path: str | Path) -> str:
    """Tell which part a weight file holds: "transformer", "vae" or "text". Raises CheckpointError for none."""
    file = open_tensors(path)
    found = _families(file.shapes)
    if not found:
        refuse_names(file.path, file.shapes)
        raise CheckpointError("checkpoint.not_wan", path=file.path, reason=_what(found, list(file.shapes)))
    return found[0][0].part


def parts_of(file: TensorFile) -> set[str]:
    """Return the parts that a file holds; ComfyUI's has all of a model, ours one."""
    return {family.part for family, _ in _families(file.shapes)}


def _families(names: Iterable[str]) -> list[tuple[Family, str]]:
    """Each family that the names belong to, with the prefix that they have there, in the order of FAMILIES."""
    landmarks = {family.landmark.rpartition(".")[2] for family in FAMILIES}
    ends = [_WRAPPERS.sub("", name) for name in names if name.rpartition(".")[2] in landmarks]
    found = []
    for family in FAMILIES:
        prefixes = {name.removesuffix(family.landmark) for name in ends if f".{name}".endswith(f".{family.landmark}")}
        known = [prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= _PREFIXES]
        if known:
            # averages first, then what stands nearest to the top
            found.append((family, min(known, key=lambda p: (not set(p.split(".")) & set(_AVERAGES), len(p), p))))
    return found


def _named(names: Iterable[str], prefix: str, others: Iterable[str]) -> dict[str, str]:
    """The names under a prefix, without it and without wrappers and marks, each with its name in the file.

    Of a file whose names have no prefix, those of its other parts are left out; all the rest must fit.
    """
    elsewhere = tuple(other for other in others if other and not prefix)
    plain = {}
    for name in names:
        bare = _WRAPPERS.sub("", name)
        if bare.startswith(prefix) and not bare.startswith(elsewhere) and not _MARKS.search(bare):
            plain[bare.removeprefix(prefix)] = name
    return plain


def _what(found: list[tuple[Family, str]], names: list[str]) -> Text:
    if found:
        return text("checkpoint.holds_part", part=text(f"part.{found[0][0].part}"))
    return text("checkpoint.unknown_family", names=some(names))


def _recorded_shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """The shapes that the header has of 8-bit weights that are no matrices."""
    try:
        recorded = {name: tuple(shape) for name, shape in parse_json(file.metadata.get(SHAPES_KEY, "{}")).items()}
        if not all(type(size) is int and 0 < size < 2**31 for shape in recorded.values() for size in shape):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError("checkpoint.header", path=file.path, key=SHAPES_KEY) from None
    return recorded


def _shapes(file: TensorFile, sources: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    recorded, shapes = _recorded_shapes(file), {}
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
            shape = (*shape[:1], math.prod(shape[1:]))  # a Conv3d over whole patches is a Linear over (c, t, h, w)
        shapes[name] = shape
    return shapes


def _check_fp8_scales(file: TensorFile, scales: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Each scale must have a weight, and be one number or one for each of its rows."""
    for name, stored in scales.items():
        count = math.prod(file.shapes[stored])
        if name not in shapes or count not in (1, *shapes[name][:1]):
            raise CheckpointError("foreign.quantized", path=file.path)


def _equal(file: TensorFile, one: str, other: str) -> bool:
    return file.shapes[one] == file.shapes[other] and bool((file.read(one) == file.read(other)).all())
