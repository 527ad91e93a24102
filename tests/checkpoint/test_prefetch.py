"""Prefetch: the bytes of the file, in new memory, in the order that was promised."""

import pytest
import torch

from turbodiffusion.checkpoint import prefetch as prefetch_module
from turbodiffusion.checkpoint.load import load_text
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.checkpoint.prefetch import prefetch
from turbodiffusion.config import TextConfig
from turbodiffusion.models.text import TextEncoder

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TEXT = TextConfig(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=64, text_len=12)


@pytest.fixture
def small(monkeypatch):
    """Tensors of several pieces, a few of them prefetched, and some too small to be."""
    monkeypatch.setattr(prefetch_module, "PIECE", 64)
    monkeypatch.setattr(prefetch_module, "PREFETCH", 300)
    monkeypatch.setattr(prefetch_module, "SMALL", 20)


def tensors():
    torch.manual_seed(0)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    found = {f"{kind}.{n}": torch.randn(n, 7).to(kind) for kind in kinds for n in (0, 1, 16, 50)}
    found["int8"] = torch.randint(-128, 128, (33, 5), dtype=torch.int8)
    return found | {"one": torch.tensor(3.0), "transposed": torch.randn(6, 9).T}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inference", [False, True])
def test_every_byte_comes(small, device, inference):
    stored = tensors()
    with torch.inference_mode(inference), prefetch(stored.__getitem__, list(stored), torch.device(device)) as read:
        for name, expected in stored.items():
            tensor = read(name)
            assert tensor.device.type == device and tensor.dtype == expected.dtype
            assert torch.equal(tensor.cpu(), expected), name
            assert tensor.data_ptr() != expected.data_ptr() or not expected.numel()


def test_no_more_is_read_than_may_be_prefetched(small):
    stored, opened = {str(n): torch.zeros(25) for n in range(20)}, []
    with prefetch(lambda name: opened.append(name) or stored[name], list(stored), torch.device("cpu")) as read:
        for number, name in enumerate(stored, 1):
            read(name)
            assert len(opened) == min(number + 3, 20)  # 300 bytes


def test_what_reading_raises_comes_through(small):
    def broken(name):
        raise OSError(f"{name} is gone")

    with pytest.raises(OSError, match="first is gone"), prefetch(broken, ["first"], torch.device("cpu")) as read:
        read("first")
    with (
        pytest.raises(AssertionError, match="before"),
        prefetch(tensors().get, ["one", "int8"], torch.device("cpu")) as read,
    ):
        read("int8")


@pytest.mark.parametrize("device", DEVICES)
def test_a_prefetched_checkpoint_is_the_checkpoint(small, tmp_path, device):
    torch.manual_seed(0)
    torch.save(TextEncoder(TEXT).state_dict(), tmp_path / "text.pth")
    checkpoint = open_checkpoint(tmp_path / "text.pth", "text")
    with checkpoint.prefetch(torch.device(device)) as prefetched:
        for name in checkpoint.shapes:
            assert torch.equal(prefetched.read(name).cpu(), checkpoint.read(name)), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gets_what_memory_gets(small, tmp_path, dtype):
    torch.manual_seed(0)
    torch.save(TextEncoder(TEXT).state_dict(), tmp_path / "text.pth")
    here, there = (TextEncoder(TEXT, device="meta", dtype=dtype) for _ in range(2))
    load_text(here, tmp_path / "text.pth")
    load_text(there, tmp_path / "text.pth", device="cuda")
    for name, tensor in there.state_dict().items():
        assert tensor.is_cuda and torch.equal(tensor.cpu(), here.state_dict()[name]), name
