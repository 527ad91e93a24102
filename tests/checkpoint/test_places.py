"""Parts are found where published models have them, and anywhere else by what the files hold."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from turbodiffusion.checkpoint.formats import part_of
from turbodiffusion.checkpoint.places import find, find_shared, holds, locate, read_vocabulary
from turbodiffusion.errors import CheckpointError, MissingFilesError

LANDMARKS = {
    "transformer": {"time_projection.1.weight": torch.zeros(6, 1)},
    "vae": {"decoder.head.0.gamma": torch.zeros(8, 1, 1, 1)},
    "text": {"token_embedding.weight": torch.zeros(4, 2)},
}
LANDMARKS["transformer_low"] = LANDMARKS["transformer"]


def write(path, part, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = LANDMARKS[part] | more
    if path.suffix in (".safetensors", ".sft"):
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "transformer"),
        ("Wan2.1_VAE.pth", "vae"),
        ("text_encoder/model.safetensors", "text"),
        ("TurboWan2.1-T2V-1.3B-480P.pth", "transformer"),
        ("diffusion_pytorch_model.safetensors", "transformer"),
        ("diffusion_pytorch_model.safetensors", "vae"),  # of a folder that holds that part alone
        ("transformer/diffusion_pytorch_model.fp16.safetensors", "transformer"),  # a variant
        ("transformer/diffusion_pytorch_model.bin", "transformer"),
        ("vae/diffusion_pytorch_model.bf16.safetensors", "vae"),
        ("diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", "transformer"),  # ComfyUI's
        ("text_encoders/umt5_xxl_fp16.safetensors", "text"),
        ("my own words.sft", "text"),
        ("epoch 7.ckpt", "vae"),
    ],
)
def test_a_part_is_found_by_what_a_file_holds(place, part, tmp_path):
    path = write(tmp_path / place, part)
    write(tmp_path / "notes" / "judge.safetensors", "vae" if part != "vae" else "text")
    (tmp_path / "broken.safetensors").write_bytes(b"\x01")
    assert find(tmp_path, part) == locate(tmp_path, part) == path


def test_shards_without_an_index_and_variants_with_one(tmp_path):
    first = write(tmp_path / "transformer" / "model.fp16-00001-of-00002.safetensors", "transformer")
    save_file({"a": torch.zeros(1)}, first.with_name("model.fp16-00002-of-00002.safetensors"))
    assert find(tmp_path, "transformer") == first
    names = dict.fromkeys(LANDMARKS["transformer"], first.name) | {"a": "model.fp16-00002-of-00002.safetensors"}
    index = first.with_name("model.safetensors.index.fp16.json")
    index.write_text(json.dumps({"weight_map": names}))
    assert find(tmp_path, "transformer") == index


def test_a_pickle_beside_its_safetensors_is_passed_over(tmp_path):
    write(tmp_path / "wan.pth", "transformer")
    assert find(tmp_path, "transformer") == tmp_path / "wan.pth"
    write(tmp_path / "wan.safetensors", "transformer")
    assert find(tmp_path, "transformer") == tmp_path / "wan.safetensors"


def test_several_files_of_a_part_are_told(tmp_path):
    for name in ("a-720P.pth", "a-480P.pth", "a-480P-quant.pth", "b.pth"):
        write(tmp_path / name, "transformer")
    with pytest.raises(MissingFilesError, match=r"several files for the transformer: a-480P-quant.pth, .* and 1 more"):
        find(tmp_path, "transformer")


def test_two_experts_in_one_folder(tmp_path):
    high = write(tmp_path / "TurboWan-high.pth", "transformer")
    low = write(tmp_path / "TurboWan-low.pth", "transformer")
    assert (find(tmp_path, "transformer"), find(tmp_path, "transformer_low")) == (high, low)
    high.unlink()
    assert (find(tmp_path, "transformer"), find(tmp_path, "transformer_low")) == (low, None)


def test_a_lone_file_is_never_the_second_expert(tmp_path):
    write(tmp_path / "model.pth", "transformer")
    assert find(tmp_path, "transformer_low") is None


def test_what_is_missing_is_told_with_what_was_seen(tmp_path):
    write(tmp_path / "words" / "umt5.safetensors", "text")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(MissingFilesError) as caught:
        locate(tmp_path, "vae")
    for words in ("holds no VAE", "vae/diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth", "--vae"):
        assert words in str(caught.value)
    assert "words/umt5.safetensors (text encoder)" in str(caught.value) and "tokenizer.json" in str(caught.value)
    assert "文本编码器" in caught.value.text.render("zh")
    with pytest.raises(MissingFilesError, match="seen: no weights; name a file with --vae"):
        (tmp_path / "empty").mkdir()
        locate(tmp_path / "empty", "vae")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("wan.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("wan.pth", b"<!doctype html>", "is a web page"),
        (
            "model-00002-of-00003.safetensors",
            b"",
            "is one of 3 shards, and there is no model-00001-of-00003.safetensors",
        ),
    ],
)
def test_a_folder_without_any_part_is_told_by_what_its_file_is(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        locate(tmp_path, "transformer")


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\0b", "~nouser/x"])
def test_a_path_that_is_none_is_told(name, tmp_path):
    with pytest.raises(MissingFilesError):
        locate(tmp_path / name, "vae")
    with pytest.raises(MissingFilesError):
        find_shared(tmp_path, {"vae": name})


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MissingFilesError, match="Permission denied"):
        locate(tmp_path, "vae")


def test_own_parts_are_named_and_must_be_what_they_are_for(tmp_path):
    vae, text = write(tmp_path / "a.pth", "vae"), write(tmp_path / "b.pth", "text")
    (tmp_path / "words.model").write_bytes(b"pieces")
    found, missing = find_shared(tmp_path, {})
    assert found == {"vae": vae, "text": text, "tokenizer": tmp_path / "words.model"} and missing is None
    with pytest.raises(CheckpointError, match="is not a Wan VAE checkpoint: it holds a text encoder"):
        find_shared(tmp_path, {"vae": text})
    with pytest.raises(CheckpointError, match=r"b.pth is no tokenizer: .*spiece.model"):
        find_shared(tmp_path, {"tokenizer": text})
    other = write(tmp_path / "other" / "v.pth", "vae")
    assert find_shared(tmp_path, {"vae": tmp_path / "other"}, only_named=True) == ({"vae": other}, None)


def test_parts_beside_the_folder_of_a_transformer(tmp_path):
    """ComfyUI's and diffusers' folders, where a person names the transformer's file."""
    path = write(tmp_path / "diffusion_models" / "wan.safetensors", "transformer")
    vae = write(tmp_path / "vae" / "wan_2.1_vae.safetensors", "vae")
    found, missing = find_shared(path, {})
    assert found == {"vae": vae} and "holds no text encoder, tokenizer" in str(missing)
    write(tmp_path / "vae" / "another.safetensors", "vae")
    assert find_shared(path, {})[0] == {}  # several: which one is not guessed


def test_comfyuis_text_encoder_has_the_tokenizer_inside(tmp_path):
    pieces = torch.from_numpy(np.frombuffer(b"a vocabulary", np.uint8).copy())
    path = write(tmp_path / "umt5.safetensors", "text", spiece_model=pieces)
    assert part_of(path) == "text" and holds(path, "tokenizer")
    assert find(tmp_path, "tokenizer") == path and read_vocabulary(path) == b"a vocabulary"
    elsewhere, _ = find_shared(tmp_path / "none.pth", {"text": path})
    assert elsewhere["tokenizer"] == path
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        read_vocabulary(write(tmp_path / "plain.safetensors", "text"))
