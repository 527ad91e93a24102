"""Files that people have and this package does not read are named as what they are, with what works instead."""

from pathlib import Path

import pytest
import torch

from turbodiffusion.checkpoint.files import TensorFile
from turbodiffusion.checkpoint.foreign import refuse_bytes
from turbodiffusion.checkpoint.formats import interpret
from turbodiffusion.errors import CheckpointError

WAN = {
    "time_projection.1.weight": (9216, 1536),
    "patch_embedding.weight": (1536, 16, 1, 2, 2),
    "head.head.weight": (64, 1536),
}


def on_file(names, *, base=WAN):
    shapes = dict(base) | (names if isinstance(names, dict) else dict.fromkeys(names, (4, 4)))
    return TensorFile(Path("people/file.safetensors"), shapes, lambda name: torch.zeros(shapes[name]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blocks.0.self_attn.q.lora_A.weight"], "is a LoRA.*merge it"),
        (["diffusion_model.blocks.0.self_attn.q.lora_down.weight"], "is a LoRA"),
        (["lora_unet_blocks_0_self_attn_q.lora_up.weight"], "is a LoRA"),
        (["blocks.0.self_attn.q.diff_b"], "is a LoRA"),
        (["blocks.0.self_attn.q.qweight", "blocks.0.self_attn.q.qzeros"], "quantized in a form that is not read"),
        (["blocks.0.self_attn.q.weight.quant_state.bitsandbytes__nf4"], "quantized"),
        (["double_blocks.0.img_attn.qkv.weight"], "another family of models"),
        (["transformer_blocks.0.attn1.to_q.weight"], "another family of models"),
        (["visual.transformer.0.attn.to_qkv.weight"], "is a CLIP encoder"),
    ],
)
def test_a_file_of_no_family(names, message):
    with pytest.raises(CheckpointError, match=message):
        interpret(on_file(names, base={}), "transformer")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vace_blocks.0.before_proj.weight"], "is a VACE model.*text or image to video"),
        (["blocks.0.self_attn.to_gate_compress.weight"], "is FastWan.*wan2.1-t2v-1.3b"),
        (["ref_conv.weight"], "Fun-Control"),
        (["face_adapter.fuser_blocks.0.linear1_kv.weight"], "Wan Animate"),
        (["casual_audio_encoder.weights"], "from sound"),
        (["blocks.0.audio_cross_attn.q_linear.weight"], "from sound"),
        (["blocks.0.ffn.0.scale", "blocks.0.ffn.0.zero_point"], "quantized"),
        (
            {"patch_embedding.weight": (3072, 48, 1, 2, 2), "head.head.weight": (192, 3072)},
            "TI2V 5B.*48 latent channels",
        ),
        ({"patch_embedding.weight": (1536, 48, 1, 2, 2)}, "takes 48 channels, so it is a control model"),
        ({"patch_embedding.weight": (5120, 52, 1, 2, 2)}, "takes 52 channels"),
    ],
)
def test_a_relative_of_wan_is_named(names, message):
    with pytest.raises(CheckpointError, match=message):
        interpret(on_file(names), "transformer")


def test_other_vaes_and_text_encoders_are_named():
    vae = on_file({"decoder.head.0.gamma": (96, 1, 1, 1), "conv2.weight": (48, 48, 1, 1, 1)}, base={})
    with pytest.raises(CheckpointError, match=r"VAE of Wan 2.2 TI2V 5B .*need Wan2.1_VAE"):
        interpret(vae, "vae")
    layer = "encoder.block.{}.layer.0.SelfAttention.{}.weight"
    t5 = [layer.format(0, "q"), layer.format(0, "relative_attention_bias"), layer.format(1, "q")]
    with pytest.raises(CheckpointError, match=r"is T5.*needs umT5-XXL"):
        interpret(on_file([*t5, "shared.weight", "encoder.final_layer_norm.weight"], base={}), "text")


def test_weights_are_not_refused_by_their_first_bytes():
    for head in (b"PK\x03\x04", b"\x80\x02}", (64).to_bytes(8, "little") + b'{"a'):
        refuse_bytes(Path("x"), head)
    for lang in ("en", "zh"):
        with pytest.raises(CheckpointError) as caught:
            refuse_bytes(Path("x"), b"GGUF")
        assert "GGUF" in caught.value.text.render(lang)
