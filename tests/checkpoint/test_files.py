"""Reading weight files: every container, and one clear line for each way in which a file can be wrong."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from turbodiffusion.checkpoint.files import open_tensors, write_tensors
from turbodiffusion.errors import CheckpointError, MissingFilesError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


class Exploit:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def legacy(path):
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def under_state_dict(path):
    torch.save({"state_dict": TENSORS, "step": 7}, path)


def without_suffix(path):
    save_file(TENSORS, path)  # as in a hub's cache


def sharded(path):
    save_file({"a.weight": TENSORS["a.weight"]}, path.parent / "one.safetensors")
    save_file({"a.bias": TENSORS["a.bias"]}, path.parent / "two.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", "a.bias": "two.safetensors"}}
    path.write_text(json.dumps({"metadata": {}, **index}))


CONTAINERS = {
    "zip.pth": lambda path: torch.save(TENSORS, path),
    "legacy.pth": legacy,
    "training.pth": under_state_dict,
    "plain.safetensors": lambda path: save_file(TENSORS, path),
    "blob": without_suffix,
    "x.safetensors.index.json": sharded,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_tensors(name, tmp_path):
    CONTAINERS[name](tmp_path / name)
    file = open_tensors(tmp_path / name)
    assert file.shapes == {"a.weight": (2, 3), "a.bias": (2,)}
    read = {key: file.read(key) for key in file.shapes}
    for key, tensor in TENSORS.items():
        assert torch.equal(read[key], tensor)
        assert read[key].dtype == tensor.dtype


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated_file_is_one_clear_line(name, tmp_path):
    path = tmp_path / name
    CONTAINERS[name](path)
    whole = path.read_bytes()
    for length in (0, 1, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|not the index|is empty") as caught:
            open_tensors(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pickle_that_could_run_code_raises(tmp_path):
    torch.save({"a": torch.ones(1), "b": Exploit(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"mkdir beside tensors.*could run code") as caught:
        open_tensors(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Exploit(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError):
        open_tensors(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><body>404</body></html>", "is a web page, not weights.*hf download"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (b"GGUF\x03\0\0\0", "is a GGUF file.*take the .safetensors"),
        (b"", "is empty: its download was cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (bytes(range(256)) * 8, "neither a .pth nor a .safetensors"),
    ],
)
def test_foreign_file_is_one_clear_line(content, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "no tensors by name"),
        ({}, "no tensors by name"),
        ({"a": torch.ones(1), "step": 3}, "other things than tensors: step"),
        ({0: torch.ones(1)}, "other things than tensors: 0"),  # an optimizer's state, say
    ],
)
def test_pickle_without_tensors_by_name_raises(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "weights.pth")


def test_sharded_index_must_agree_with_its_shards(tmp_path):
    path = tmp_path / "x.safetensors.index.json"
    sharded(path)
    (tmp_path / "two.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingFilesError, match=r"lacks two\.safetensors of the 2 shards"):
        open_tensors(path)
    save_file({"b.bias": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"disagree about a\.bias, b\.bias"):
        open_tensors(path)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(MissingFilesError, match="cannot be read"):
        open_tensors(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"model": TENSORS, "step": 7, "optimizer": {"state": {}, "param_groups": []}},
        {"generator_ema": TENSORS, "generator": {"a.weight": torch.zeros(1)}, "critic": {"b": torch.zeros(1)}},
        {"module": TENSORS, "buffer_names": [], "ds_version": "0.16"},
        {"state_dict": {"model": TENSORS}, "epoch": 3},
        {"weights": TENSORS},
    ],
)
def test_what_trainers_put_around_the_tensors_is_taken_off(content, tmp_path):
    torch.save(content, tmp_path / "training.pt")
    file = open_tensors(tmp_path / "training.pt")
    assert file.shapes == {"a.weight": (2, 3), "a.bias": (2,)}
    assert torch.equal(file.read("a.weight"), TENSORS["a.weight"])


def shards(folder, stem="model"):
    save_file({"a.weight": TENSORS["a.weight"]}, folder / f"{stem}-00001-of-00002.safetensors")
    save_file({"a.bias": TENSORS["a.bias"]}, folder / f"{stem}-00002-of-00002.safetensors")
    return folder / f"{stem}-00001-of-00002.safetensors", folder / f"{stem}-00002-of-00002.safetensors"


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_several_shards_stands_for_all(number, tmp_path):
    path = shards(tmp_path)[number]
    assert set(open_tensors(path).shapes) == set(TENSORS)
    index = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_tensors(path).shapes) == {"a.weight"}  # the index says which


def test_a_single_shard_is_told_with_what_is_missing(tmp_path):
    first, second = shards(tmp_path)
    second.unlink()
    with pytest.raises(MissingFilesError, match=rf"is one of 2 shards, and there is no {second.name} beside it"):
        open_tensors(first)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a.weight": "../../secret.safetensors"}}',
        '{"weight_map": ' + "[" * 60_000,
        '{"weight_map": {"a.weight": ' + "9" * 5000 + "}}",
        '{"weight_map": NaN}',
    ],
)
def test_a_hostile_index_is_one_clear_line(index, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(CheckpointError, match="not the index"):
        open_tensors(path)


@pytest.mark.parametrize(
    "header", ["[" * 60_000, '{"a": ' + "9" * 5000 + "}", '{"a": {"dtype": "F32", "shape": [NaN]}}']
)
def test_a_hostile_header_is_one_clear_line(header, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    with pytest.raises(CheckpointError, match="not a safetensors file") as caught:
        open_tensors(path)
    assert len(str(caught.value)) < 500


def test_write_leaves_nothing_behind_when_it_fails(tmp_path):
    path = tmp_path / "out.safetensors"
    write_tensors(path, TENSORS, {"note": "first"})
    with pytest.raises(Exception, match=r"str|metadata"):
        write_tensors(path, TENSORS, {"note": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
    assert open_tensors(path).metadata["note"] == "first"


def test_written_files_are_readable_as_the_umask_asks(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_tensors(tmp_path / "out.safetensors", TENSORS, {})
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
