"""A model in memory: what is checked before it is read, how it computes, its memory plan and graphs."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import turbodiffusion as td
from turbodiffusion.config import TRITON
from turbodiffusion.errors import MachineError, MissingFilesError, RequestError
from turbodiffusion.inference import auto
from turbodiffusion.inference.auto import ComputeConfig
from turbodiffusion.memory import plan as memory
from turbodiffusion.request import Request

PROMPT = "a red fox runs"


def load(folder, **options):
    return td.Pipeline.load(str(folder), **options)


def test_memory_may_be_limited(rcm_folder):
    request = Request(PROMPT, seed=1, num_steps=1)
    load(rcm_folder, max_memory=0.5).generate(request)
    with pytest.raises(MachineError, match=r"\(--max-memory 0.01\) has 0.0 GiB of memory free of 0.0 GiB"):
        load(rcm_folder, max_memory=0.01)
    with pytest.raises(MachineError, match="max_memory is in GiB and more than 0, not -1"):
        load(rcm_folder, max_memory=-1)
    with pytest.raises(MachineError, match="offload_text 'yes': there are auto, on, off"):
        load(rcm_folder, offload_text="yes")
    pipe = load(rcm_folder, max_memory=0.1)
    with pytest.raises(MachineError, match=r"480x480 .*--max-memory 0.1"):
        pipe.generate(replace(request, resolution="480x480"))


def test_chunks_are_smaller_where_the_gpu_is_not_empty(rcm_folder, monkeypatch):
    """The VAE's chunk is that of an empty card unless it does not fit; then the result says so."""
    pipe = load(rcm_folder)
    request = Request(PROMPT, attention_type="original", quant_linear="off").resolve(pipe.model.preset)
    options = {"dtype": "bfloat16", "device": "cuda", "kernels": TRITON}
    job = auto.memory_job("tiny", pipe.model.preset, request, (640, 640), **options)
    held = memory.estimate(job).weights
    for latents in (2, 1):
        free = memory.estimate(job, memory.Plan(False, latents)).total - held
        here = memory.DeviceInfo("cuda", "card", 40 * memory.GIB, free, 8, 40 * memory.GIB)
        monkeypatch.setattr("turbodiffusion.inference.loaded_model.device_info", lambda *_, here=here: here)
        notices = [str(notice) for notice in pipe.model.apply_plan(job)]
        assert pipe.model.vae.latents_per_chunk == latents
        assert notices == [] if latents == 2 else f"at once: {latents}; loaded for this video" in notices[0]


@pytest.fixture
def replayed(graphs_by_hand, monkeypatch):
    """Pipelines whose plans have room for graphs; the list tells of captures."""
    plan = memory.plan
    monkeypatch.setattr(memory, "plan", lambda *a, **k: replace(plan(*a, **k), cuda_graphs=True))
    return graphs_by_hand


def test_replayed_videos_are_the_launched_ones(rcm_folder, replayed, monkeypatch):
    """Over prompts, seeds, kinds and sizes, each of which has graphs of its own."""
    wanted = [
        Request(prompt, seed=seed, **words)
        for words in ({}, {"sla_topk": 0.67}, {"num_frames": 5}, {})
        for seed, prompt in enumerate((PROMPT, "a blue cat flies", PROMPT), 1)
    ]
    pipe = load(rcm_folder, attention_type="sla")
    videos = [pipe.generate(request).frames for request in wanted]
    # keys and values of two blocks, and beside these x and t; from the second context and the fifth forward on
    assert replayed == 4 * [1, 6]
    monkeypatch.undo()
    plain = load(rcm_folder, attention_type="sla")
    for request, frames in zip(wanted, videos, strict=True):
        assert np.array_equal(plain.generate(request).frames, frames), request


def test_each_expert_has_its_graphs(i2v_folder, picture, replayed, monkeypatch):
    wanted = [Request(PROMPT, image=picture, seed=seed, boundary=0.9) for seed in range(1, 5)]
    pipe = load(i2v_folder)
    videos = [pipe.generate(request).frames for request in wanted]
    assert replayed == [1, 1, 6, 6]
    monkeypatch.undo()
    plain = load(i2v_folder)
    for request, frames in zip(wanted, videos, strict=True):
        assert np.array_equal(plain.generate(request).frames, frames)


def test_where_a_graph_does_not_fit_forwards_are_launched(rcm_folder, replayed, monkeypatch, caplog):
    def overflow(self, function, inputs):
        replayed.append(0)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("turbodiffusion.models.cuda_graphs.CudaGraphCache._capture", overflow)
    pipe = load(rcm_folder)
    videos = [pipe.generate(Request(PROMPT, seed=1)).frames for _ in range(4)]
    assert all(np.array_equal(video, videos[0]) for video in videos)
    assert replayed == [0] and caplog.text.count("without CUDA graphs from now on") == 1


def test_kinds_are_resolved_once_and_logged(rcm_folder, caplog):
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        pipe = load(rcm_folder, attention_type="sla", sla_topk=0.5, quant_linear="on")
    assert pipe.model.compute == ComputeConfig("sla", 0.5, "int8_block")
    assert "cpu in float32: attention sla, sla_topk 0.5, linears int8_block" in caplog.text
    assert pipe.generate(Request(PROMPT, seed=1, num_steps=1)).request.sla_topk == 0.5


def test_a_large_model_asks_for_a_request_then_a_machine_then_files(monkeypatch, tmp_path):
    def refuse(error, **options):
        with pytest.raises(error) as caught:
            td.Pipeline.load("wan2.1-t2v-14b", **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    gib = memory.GIB
    small, large = (8 * gib, 7 * gib), (2048 * gib, 2000 * gib)
    bad, good = Request(PROMPT, num_frames=80), Request(PROMPT)
    monkeypatch.setattr("turbodiffusion.inference.device._system_memory", lambda: small)
    assert "81 is the nearest" in refuse(RequestError, device="cpu", requests=[good, bad])
    words = refuse(MachineError, device="cpu", requests=[good])
    assert "needs" in words and "7.0 GiB of memory free of 8.0 GiB" in words and "model demo" in words
    monkeypatch.setattr("turbodiffusion.inference.device._system_memory", lambda: large)
    words = refuse(MissingFilesError, device="cpu", requests=[good])
    assert "TurboWan2.1-T2V-14B-480P.pth" in words and "hf download" in words
    words = refuse(MissingFilesError, device="cpu", requests=[replace(good, resolution="720p")], quant_linear="on")
    assert "TurboWan2.1-T2V-14B-720P-quant.pth" in words


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities, under Triton's interpreter
def test_triton_kernels_make_the_same_video(flow_folder, caplog):
    pytest.importorskip("triton", reason="Triton is not installed")
    one_step = Request(PROMPT, seed=1, num_steps=1, guidance=1.0, quant_linear="on")
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        pipe = load(flow_folder, kernels="triton")
        result = pipe.generate(one_step)
    assert pipe.model.kernels == TRITON and "kernels attention triton, linear triton" in caplog.text
    assert result.request.quant_linear == "int8_row"  # complete: the stored request makes this video again
    again = load(flow_folder, kernels="reference").generate(result.request)
    assert np.abs(result.frames.astype(int) - again.frames).max() <= 2  # 8 bits on the edge between two levels

    attention = pipe.model._experts[0].blocks[1].self_attn
    place = attention.q.int8_weight.data_ptr()
    pipe.generate(replace(one_step, attention_type="sage", num_steps=1))
    other = pipe.model._experts[0].blocks[1].self_attn
    assert other is not attention and other.q.int8_weight.data_ptr() == place
    assert (
        "attention by the reference: the Triton kernels take blocks of 64 or 128 tokens, not 16 and 16" in caplog.text
    )
