"""What a weight file is that this package does not read: by its first bytes, and by the names of its tensors.

A file that people have is named as what it is, with the nearest thing that works; `formats.py` knows those that are
read.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from turbodiffusion.config import PATCH
from turbodiffusion.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# A name that only such a file has; the first that fits tells.
_NAMES = (
    ("foreign.lora", r"(^|[._])(lora_(A|B|up|down)|lora\.(up|down)|lokr_w[12]|hada_w[12]_[ab])([._]|$)|\.diff(_b)?$"),
    ("foreign.quantized", r"\.(qweight|qzeros|g_idx|scales|SCB|absmax|quant_map|weight\._data|smooth_factor|wscales)$"),
    ("foreign.quantized", r"\.quant_state\."),
    ("foreign.vace", r"(^|\.)vace_(blocks|patch_embedding)\."),
    ("foreign.fastwan", r"\.to_gate_compress\."),
    ("foreign.fun_control", r"(^|\.)(ref_conv|control_adapter)\."),
    ("foreign.animate", r"(^|\.)(face_adapter|motion_encoder|pose_patch_embedding)\."),
    ("foreign.sound", r"(^|\.)(casual_audio_encoder|audio_injector|audio_proj|audio_cross_attn|vocal_projector)\."),
    ("foreign.clip", r"(^|\.)(visual\.(transformer|conv1|patch_embedding)|vision_model|text_model)\."),
    ("foreign.other_model", r"(^|\.)(double_blocks|single_transformer_blocks|transformer_blocks|joint_blocks)\.\d"),
    ("foreign.other_model", r"(^|\.)(input_blocks|down_blocks)\.\d+\.(\d|attentions)"),
)
_PATTERNS = [(code, re.compile(pattern)) for code, pattern in _NAMES]
TI2V_CHANNELS = 48  # of Wan 2.2 TI2V 5B's latent; all others have 16


def refuse_bytes(path: Path, head: bytes) -> None:
    """Raise CheckpointError where the first bytes tell that a file is no checkpoint at all."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError("foreign.empty", path=path)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("checkpoint.lfs_pointer", path=path)
    if head.startswith(b"GGUF"):
        raise CheckpointError("foreign.gguf", path=path)
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise CheckpointError("foreign.web_page", path=path)


def refuse_names(path: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError where the names of its tensors tell that a file is another thing than Wan's weights."""
    names = list(names)
    for code, pattern in _PATTERNS:
        if any(map(pattern.search, names)):
            raise CheckpointError(code, path=path)


def refuse_shapes(path: Path, part: str, shapes: Shapes) -> None:
    """Raise CheckpointError for a network of Wan's family, under our names, that is not computed here."""
    if part == "transformer":
        inputs = math.prod(shapes.get("patch_embedding.weight", ())[1:2]) // PATCH**2
        outputs = math.prod(shapes.get("head.head.weight", ())[:1]) // PATCH**2
        if inputs == outputs == TI2V_CHANNELS:
            raise CheckpointError("foreign.ti2v", path=path)
        if outputs == 16 and inputs not in (0, 16, 36):
            raise CheckpointError("foreign.channels", path=path, channels=inputs)
    if part == "vae" and shapes.get("conv2.weight", ())[:1] == (TI2V_CHANNELS,):
        raise CheckpointError("foreign.ti2v_vae", path=path)
    if part == "text":
        bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
        layers = any(name.startswith("encoder.block.1.") for name in shapes)
        if layers and bias.format(0) in shapes and bias.format(1) not in shapes:
            raise CheckpointError("foreign.t5", path=path)
