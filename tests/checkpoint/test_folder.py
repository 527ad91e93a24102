"""Our folder: what is written loads by itself, in full precision or in 8-bit blocks, and never half."""

import dataclasses
import json
import shutil

import pytest
import torch

from turbodiffusion.checkpoint.files import open_tensors
from turbodiffusion.checkpoint.folder import read_folder, save_folder
from turbodiffusion.checkpoint.infer import read_config
from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.config import TRITON, TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.ops.linear.int8 import dequantize_int8_block, quantize_int8_block

WAN = WanConfig(
    dim=128, ffn_dim=200, num_heads=2, num_layers=2, freq_dim=32, text_dim=96, text_len=8, attention_type="sla"
)
VAE = VAEConfig(dim=8, z_dim=4, latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(1.0, 2.0, 3.0, 4.0))
TEXT = TextConfig(d_model=96, num_layers=1, num_heads=4, d_kv=24, d_ff=200, vocab_size=256, text_len=8)
CONFIG = {"sampling": {"num_steps": 4, "shift": 5.0}, "about": {"title": "小狐狸"}}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    torch.manual_seed(0)
    spiece = tmp_path_factory.mktemp("vocabulary") / "any-name.model"
    spiece.write_bytes(b"pieces")
    transformer = WanTransformer(WAN)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return {"transformer": transformer, "vae": WanVAE(VAE), "text": TextEncoder(TEXT), "tokenizer": spiece}


def load_all(folder):
    config = read_folder(folder)
    loaded = {
        "transformer": WanTransformer(config.transformer, device="meta"),
        "vae": WanVAE(config.vae, device="meta"),
        "text": TextEncoder(config.text, device="meta"),
    }
    load_transformer(loaded["transformer"], folder)
    load_vae(loaded["vae"], folder)
    load_text(loaded["text"], folder)
    return loaded


def test_round_trip_is_exact(parts, tmp_path):
    save_folder(tmp_path / "model", config=CONFIG, **parts)
    config = read_folder(tmp_path / "model")
    assert (config.transformer, config.vae, config.text) == (WAN, VAE, TEXT)
    assert (config.sampling, config.about, config.two_experts) == (CONFIG["sampling"], CONFIG["about"], False)
    assert (tmp_path / "model" / "spiece.model").read_bytes() == b"pieces"
    for part, module in load_all(tmp_path / "model").items():
        for name, tensor in parts[part].state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name


def test_kernels_are_not_stored(parts, tmp_path):
    network = WanTransformer(dataclasses.replace(WAN, kernels=TRITON), device="meta").to_empty(device="cpu")
    save_folder(tmp_path / "model", config=CONFIG, **{**parts, "transformer": network})
    assert "kernels" not in (tmp_path / "model" / "model.json").read_text()
    assert read_folder(tmp_path / "model").transformer == WAN
    assert read_config(tmp_path / "model", "transformer") == WAN


def test_bfloat16_stays_bfloat16(parts, tmp_path):
    model = WanTransformer(WAN, dtype=torch.bfloat16)
    load = dict(parts, transformer=model)
    save_folder(tmp_path / "model", config={}, **load)
    file = open_tensors(tmp_path / "model" / "transformer.safetensors")
    assert file.read("blocks.0.ffn.0.weight").dtype == torch.bfloat16
    assert file.read("head.head.weight").dtype == torch.float32


def test_two_experts(parts, tmp_path):
    low = WanTransformer(WAN)
    torch.nn.init.ones_(low.head.head.weight)
    save_folder(tmp_path / "model", config={}, transformer_low=low, **parts)
    assert read_folder(tmp_path / "model").two_experts
    loaded = WanTransformer(WAN, device="meta")
    load_transformer(loaded, tmp_path / "model", part="transformer_low")
    assert (loaded.head.head.weight == 1).all()
    other = WanTransformer(dataclasses.replace(WAN, num_layers=1))
    with pytest.raises(CheckpointError, match="one configuration"):
        save_folder(tmp_path / "other", config={}, transformer_low=other, **parts)


def test_int8_blocks_hold_what_the_format_says(parts, tmp_path):
    save_folder(tmp_path / "exact", config={}, **parts)
    save_folder(tmp_path / "small", config={}, store="int8_block", **parts)
    in_blocks = set()
    for part, module in load_all(tmp_path / "small").items():
        for name, loaded in module.state_dict().items():
            tensor = parts[part].state_dict()[name]
            assert loaded.shape == tensor.shape
            if not torch.equal(loaded, tensor):
                in_blocks.add(f"{part}.{name}")
                expected = dequantize_int8_block(*quantize_int8_block(tensor.flatten(1), top=127)).view_as(tensor)
                assert torch.equal(loaded, expected), name
    for name in ("transformer.blocks.0.ffn.0", "text.shared", "vae.decoder.middle.0.residual.2"):  # the last a Conv3d
        assert f"{name}.weight" in in_blocks
    assert "vae.encoder.downsamples.8.resample.1.weight" not in in_blocks  # 32 x 32 x 9 values are less than a block
    kept = ("proj_l", "time_", "head.", "patch_", "text_embedding", "norm", "modulation", "bias", "gamma")
    assert not [name for name in in_blocks if any(word in name for word in kept)]
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors")) for name in ("exact", "small")]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_model_in_blocks_is_written_as_it_was_read(parts, tmp_path):
    """The published scale, amax / 128, stores a block's largest positive value as 127/128 of itself each time."""
    save_folder(tmp_path / "once", config={}, store="int8_block", **parts)
    again = load_all(tmp_path / "once")
    save_folder(tmp_path / "twice", config={}, store="int8_block", **dict(parts, **again))
    first, second = load_all(tmp_path / "once"), load_all(tmp_path / "twice")
    for part, module in first.items():
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(second[part].state_dict()[name], tensor, rtol=1e-6, atol=0)


def test_row_formats_raise(parts, tmp_path):
    for kind in ("int8_row", "fp8_row"):
        model = WanTransformer(dataclasses.replace(WAN, quant_linear=kind))
        with pytest.raises(CheckpointError, match=r"row format.*'off'"):
            save_folder(tmp_path / "model", config={}, **dict(parts, transformer=model))
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_stored_as_it_is(parts, tmp_path):
    model = WanTransformer(dataclasses.replace(WAN, quant_linear="int8_block"))
    save_folder(tmp_path / "model", config={}, **dict(parts, transformer=model))
    loaded = load_all(tmp_path / "model")["transformer"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_model_folder_is_replaced_and_another_folder_is_not(parts, tmp_path):
    save_folder(tmp_path / "model", config={}, **parts)
    save_folder(tmp_path / "model", config=CONFIG, **parts)
    assert read_folder(tmp_path / "model").about == CONFIG["about"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match=r"photos exists and is not a model folder"):
        save_folder(tmp_path / "photos", config={}, **parts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "photos"]


def test_a_failed_write_leaves_the_older_folder(parts, tmp_path):
    save_folder(tmp_path / "model", config=CONFIG, **parts)
    with pytest.raises(MissingFilesError, match=r"nowhere\.model"):
        save_folder(tmp_path / "model", config={}, **dict(parts, tokenizer=tmp_path / "nowhere.model"))
    assert read_folder(tmp_path / "model").about == CONFIG["about"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_unknown_keys_and_stores_are_named(parts, tmp_path):
    with pytest.raises(CheckpointError, match="not smapling"):
        save_folder(tmp_path / "model", config={"smapling": {}}, **parts)
    with pytest.raises(CheckpointError, match="not 'int4'"):
        save_folder(tmp_path / "model", config={}, store="int4", **parts)


def test_damaged_folders_are_named(parts, tmp_path):
    save_folder(tmp_path / "model", config=CONFIG, **parts)
    path = tmp_path / "model" / "model.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"version": 2}, "has version 2; this release reads version 1"),
        ({"vae": {"dim": 8, "speed": 3}}, "damaged.*speed"),
        ({"transformer": model["transformer"] | {"num_heads": 3}}, "damaged.*num_heads"),
    ):
        path.write_text(json.dumps(model | change))
        with pytest.raises(CheckpointError, match=message):
            read_folder(tmp_path / "model")
    path.write_text(json.dumps({name: value for name, value in model.items() if name != "sampling"}))
    with pytest.raises(CheckpointError, match="lacks sampling"):
        read_folder(tmp_path / "model")
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        read_folder(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(MissingFilesError, match=r"it has no model\.json"):
        read_folder(tmp_path / "model")
