"""What 'auto' and 'on' mean, on any machine."""

from dataclasses import replace

import pytest
import torch

import turbodiffusion as td
from turbodiffusion.config import REFERENCE, TRITON
from turbodiffusion.errors import MachineError
from turbodiffusion.inference import auto, doctor
from turbodiffusion.inference.auto import choose_linears, supported_kernels
from turbodiffusion.inference.device import device_info
from turbodiffusion.memory import plan as memory
from turbodiffusion.ops.implementations import attention_unsupported_reason
from turbodiffusion.presets import find_model

PROMPT = "a red fox runs"


def load(folder, **options):
    return td.Pipeline.load(str(folder), **options)


def test_8_bit_linears_by_default_where_memory_is_short():
    def gpu(gib):
        return memory.DeviceInfo("cuda", "card", gib * memory.GIB, gib * memory.GIB, 8, gib * memory.GIB)

    large, demo = (find_model(name).transformer for name in ("wan2.1-t2v-14b", "demo"))
    for kernels, kind in ((REFERENCE, "int8_block"), (TRITON, "int8_row")):
        assert choose_linears("auto", large, gpu(24), kernels) == kind
        assert choose_linears("on", demo, gpu(80), kernels) == kind
        assert choose_linears("auto", large, gpu(80), kernels) == "off"
        assert choose_linears("auto", demo, gpu(24), kernels) == "off"
        assert choose_linears("auto", large, device_info("cpu"), kernels) == "off"
        assert choose_linears("fp8_row", demo, gpu(80), kernels) == "fp8_row"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "there are auto, cpu, cuda, cuda:1"),
        ({"device": "meta"}, "take auto, cpu or cuda"),
        ({"device": "cuda:99"}, "this machine has .* take auto or cpu"),
        ({"dtype": "float8"}, "there are auto, float32, bfloat16"),
    ],
)
def test_devices_and_dtypes_are_named(rcm_folder, options, words):
    with pytest.raises(MachineError, match=words):
        load(rcm_folder, **options)


def test_kernels_that_cannot_run_here_are_refused(rcm_folder, monkeypatch):
    with pytest.raises(MachineError, match="there are auto, reference, triton"):
        load(rcm_folder, kernels="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(MachineError, match="impl 'triton' needs"):
        load(rcm_folder, kernels="triton", device="cpu")
    assert load(rcm_folder, device="cpu").model.kernels == REFERENCE


def test_kernels_fit_the_network():
    cpu, config = torch.device("cpu"), find_model("wan2.1-t2v-1.3b").transformer
    fast = replace(config, attention_type="sagesla", quant_linear="int8_row")
    assert supported_kernels(TRITON, fast, cpu) == TRITON
    assert supported_kernels(TRITON, replace(fast, sla_block_q=32), cpu) == replace(TRITON, attention="reference")
    assert supported_kernels(TRITON, replace(fast, num_heads=16), cpu) == replace(TRITON, attention="reference")
    assert supported_kernels(TRITON, replace(fast, ffn_dim=8968), cpu) == replace(TRITON, linear="reference")
    assert supported_kernels(TRITON, replace(fast, ffn_dim=8968, quant_linear="off"), cpu) == TRITON
    assert "needs fp8" in attention_unsupported_reason("sage", 128, 128, 64, (8, 0))
    assert attention_unsupported_reason("sla", 128, 128, 64, (8, 0)) is None


def test_kernels_by_default_are_those_of_bfloat16(monkeypatch):
    monkeypatch.setattr(doctor, "choose", lambda device: TRITON)
    device = torch.device("cuda")
    assert auto.choose_kernels("auto", device, "bfloat16") == TRITON
    assert auto.choose_kernels("auto", device, "float32") == REFERENCE
    assert auto.choose_kernels("reference", device, "bfloat16") == REFERENCE
