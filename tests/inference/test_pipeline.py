"""The pipeline on small random models: against the loop written out, over all kinds, and when things go wrong."""

import itertools
import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import turbodiffusion as td
from turbodiffusion.checkpoint.folder import save_folder
from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.config import REFERENCE, TRITON, TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MachineError, MissingFilesError, OutputError, RequestError
from turbodiffusion.inference import auto as kinds
from turbodiffusion.inference import doctor
from turbodiffusion.inference import model_source as source
from turbodiffusion.inference.auto import Kinds, choose_linears, fitting
from turbodiffusion.inference.pipeline import _job, _Stages
from turbodiffusion.inference.sampling import noise, sample_flow
from turbodiffusion.media import video
from turbodiffusion.media.image import adaptive_size, fit, load_image
from turbodiffusion.memory import plan as memory
from turbodiffusion.models.text import TextEncoder, Tokenizer, train_tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.ops.implementations import attention_unsupported_reason
from turbodiffusion.presets import find_model
from turbodiffusion.request import Request
from turbodiffusion.schedules import flow_times, rcm_times

# 9 frames of 64x64 are 3 x 4 x 4 tokens: three blocks of 16, of which SLA keeps one
CONFIG = WanConfig(
    dim=128,
    ffn_dim=256,
    num_heads=2,
    num_layers=2,
    text_dim=32,
    text_len=16,
    freq_dim=32,
    sla_topk=0.34,
    sla_block_q=16,
    sla_block_k=16,
)
FLOW = {"sampler": "flow", "num_steps": 3, "shift": 3.0, "guidance": 4.0, "resolution": "64x64", "num_frames": 9}
RCM = {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0, "resolution": "64x64", "num_frames": 9}
PROMPT = "a red fox runs"


def random_transformer(config: WanConfig, seed: int) -> WanTransformer:
    torch.manual_seed(seed)
    model = WanTransformer(config)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)  # zero at the start of training
    for name, parameter in model.named_parameters():
        if "proj_l" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / "spiece.model"
    train_tokenizer(
        [f"a {c} {s} {v}" for c in ("red", "blue") for s in ("fox", "cat") for v in ("runs", "flies")], path, 300
    )
    return path


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory, spiece):
    """Write a model folder; options: i2v, sampling, and `damage(parts)` to break weights before they are saved."""

    def make(name="tiny", *, i2v=False, sampling=None, config=CONFIG, damage=None) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        config = replace(config, in_dim=36) if i2v else config
        torch.manual_seed(1)
        text = TextConfig(d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=64, vocab_size=300, text_len=16)
        parts = {
            "transformer": random_transformer(config, 2),
            "vae": WanVAE(VAEConfig(dim=8)),
            "text": TextEncoder(text),
        }
        if i2v:
            parts["transformer_low"] = random_transformer(config, 3)
        if damage:
            with torch.no_grad():
                damage(parts)
        defaults = sampling or ({**RCM, "boundary": 0.9, "sigma_max": 200.0} if i2v else FLOW)
        save_folder(folder, config={"sampling": defaults, "about": {}}, tokenizer=spiece, **parts)
        return folder

    return make


@pytest.fixture(scope="module")
def flow_folder(make_folder):
    return make_folder("flow")


@pytest.fixture(scope="module")
def rcm_folder(make_folder):
    return make_folder("rcm", sampling=RCM)


@pytest.fixture(scope="module")
def i2v_folder(make_folder):
    return make_folder("i2v", i2v=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    x, y = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 96))
    Image.fromarray(np.stack((x, y, 255 - x), axis=-1).astype(np.uint8)).save(path)
    return path


def load(folder, **options):
    return td.Pipeline.load(str(folder), **options)


class ByHand:
    """The parts of a folder, loaded without the pipeline."""

    def __init__(self, folder: Path):
        preset = source.identify(str(folder)).preset
        self.tokenizer = Tokenizer(folder / "spiece.model", preset.text.text_len)
        self.text, self.vae = TextEncoder(preset.text), WanVAE(preset.vae)
        load_text(self.text, folder)
        load_vae(self.vae, folder)
        self.experts = []
        for part in ("transformer", "transformer_low")[: preset.experts]:
            expert = WanTransformer(preset.transformer)
            load_transformer(expert, folder, part=part)
            self.experts.append(expert)

    def velocity(self, x, t, prompt, expert=0):
        model = self.experts[expert]
        context = model.encode_context(self.text(*self.tokenizer([prompt])))
        return model(x.float(), torch.tensor([1000.0 * t]), context)

    def frames(self, latent):
        video = self.vae.decode(latent)[0].clamp(-1, 1)
        return ((video + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


SHAPE = (1, 16, 3, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("ode", [False, True])
def test_distilled_text_to_video_is_the_loop_written_out(rcm_folder, ode):
    hand, times = ByHand(rcm_folder), rcm_times(4, 80.0)
    x = noise(SHAPE, 5, 0).double() * times[0]
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        v = hand.velocity(x, t, PROMPT).double()
        x = x - (t - t_next) * v if ode else (1 - t_next) * (x - t * v) + t_next * noise(SHAPE, 5, i + 1).double()
    result = load(rcm_folder).generate(Request(PROMPT, seed=5, ode=ode))
    # the last SDE step is written x - t v in both; one level of 255 covers the order of float operations
    difference = np.abs(result.frames.astype(int) - hand.frames(x).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert result.frames.shape == (9, 64, 64, 3)


@torch.no_grad()
def test_teacher_is_guided_away_from_the_negative_prompt(flow_folder):
    hand = ByHand(flow_folder)

    def denoise(x, t):
        wanted, unwanted = (hand.velocity(x, t, prompt) for prompt in (PROMPT, "blue cat"))
        return unwanted + 2.5 * (wanted - unwanted)

    latent = sample_flow(denoise, SHAPE, flow_times(3, 3.0), 6)
    pipe = load(flow_folder)
    result = pipe.generate(Request(PROMPT, seed=6, guidance=2.5, negative_prompt="blue cat"))
    assert np.array_equal(result.frames, hand.frames(latent))
    assert not np.array_equal(pipe.generate(Request(PROMPT, seed=6)).frames, result.frames)
    unguided = sample_flow(lambda x, t: hand.velocity(x, t, PROMPT), SHAPE, flow_times(3, 3.0), 6)
    assert np.array_equal(pipe.generate(Request(PROMPT, seed=6, guidance=1.0)).frames, hand.frames(unguided))


@torch.no_grad()
@pytest.mark.parametrize(("boundary", "experts"), [(0.9, (0, 0, 1, 1)), (0.5, (0, 0, 0, 0)), (1.0, (1, 1, 1, 1))])
def test_image_to_video_is_the_loop_written_out(i2v_folder, picture, boundary, experts):
    """Four steps at 0.995, 0.934, 0.853 and 0.609: the first expert while t is at or above the boundary."""
    hand, times = ByHand(i2v_folder), rcm_times(4, 200.0)
    clip = torch.zeros(1, 3, 9, 64, 64)
    clip[0, :, 0] = torch.from_numpy(fit(load_image(picture), 64, 64)).permute(2, 0, 1) / 127.5 - 1
    mask = torch.zeros(1, 4, 3, 8, 8)
    mask[:, :, 0] = 1
    condition = torch.cat((mask, hand.vae.encode(clip)), dim=1)
    x = noise(SHAPE, 7, 0).double() * times[0]
    for t, t_next, expert in zip(times[:-1], times[1:], experts, strict=True):
        v = hand.velocity(torch.cat((x.float(), condition), dim=1), t, PROMPT, expert).double()
        x = x - (t - t_next) * v
    result = load(i2v_folder).generate(Request(PROMPT, image=picture, seed=7, boundary=boundary, ode=True))
    assert np.array_equal(result.frames, hand.frames(x))
    assert result.name.startswith("i2v_7_i2v_")


def test_image_and_experts_matter(i2v_folder, picture, tmp_path):
    pipe = load(i2v_folder)
    first = pipe.generate(Request(PROMPT, image=picture, seed=7))
    assert set(first.seconds) == {"load", "text", "image", "diffusion", "decode", "encode"}
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    other = pipe.generate(Request(PROMPT, image=tmp_path / "red.png", seed=7))
    assert not np.array_equal(first.frames, other.frames)


def test_adaptive_resolution_follows_the_image(i2v_folder, picture):
    pipe = load(i2v_folder)
    result = pipe.generate(Request(PROMPT, image=picture, seed=7, num_steps=1, adaptive_resolution=True))
    width, height = adaptive_size(160, 96, 64 * 64)
    assert result.frames.shape == (9, height, width, 3)
    assert width % 16 == height % 16 == 0 and width * height <= 64 * 64 and width > height


@pytest.mark.slow
def test_every_kind_computes_and_the_loaded_one_comes_back(flow_folder):
    pipe = load(flow_folder)
    first = pipe.generate(Request(PROMPT, seed=1))
    assert first.request.attention_type == "original" and first.request.quant_linear == "off"
    near = {}
    for attention in ("sla", "sage", "sagesla", "original"):
        for linears in ("off", "int8_block", "int8_row", "fp8_row"):
            result = pipe.generate(Request(PROMPT, seed=1, attention_type=attention, quant_linear=linears))
            assert (result.request.attention_type, result.request.quant_linear) == (attention, linears)
            assert ("was not fine-tuned for it" in "".join(result.notices)) == (attention in ("sla", "sagesla"))
            near[attention, linears] = np.abs(result.frames.astype(float) - first.frames).mean()
    assert near["original", "off"] == 0
    assert near["sage", "off"] > 0 and 0 < near["original", "int8_block"] < 2  # levels of 255
    assert near["sla", "off"] > near["sage", "off"]
    again = pipe.generate(Request(PROMPT, seed=1))
    assert again.mp4 == first.mp4


def test_topk_is_a_kind_too(flow_folder):
    pipe = load(flow_folder, attention_type="sla")
    frames = [pipe.generate(Request(PROMPT, seed=1, sla_topk=topk)).frames for topk in (None, 0.34, 0.67, 1.0)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2]) and not np.array_equal(frames[2], frames[3])
    # with every block kept and an untrained projection, SLA is dense attention up to float32's order of sums
    dense = pipe.generate(Request(PROMPT, seed=1, attention_type="original")).frames
    assert np.abs(dense.astype(int) - frames[3]).max() <= 1


def test_a_model_trained_with_sla_runs_dense_and_back(make_folder):
    pipe = load(make_folder("sparse", config=replace(CONFIG, attention_type="sla")))
    first = pipe.generate(Request(PROMPT, seed=1))
    assert first.request.attention_type == "sla" and first.request.sla_topk == 0.34 and first.notices == ()
    dense = pipe.generate(Request(PROMPT, seed=1, attention_type="original"))
    assert not np.array_equal(dense.frames, first.frames)
    assert np.array_equal(pipe.generate(Request(PROMPT, seed=1)).frames, first.frames)


def test_bfloat16_runs_near_float32(flow_folder):
    exact = load(flow_folder).generate(Request(PROMPT, seed=1)).frames.astype(float)
    coarse = load(flow_folder, dtype="bfloat16").generate(Request(PROMPT, seed=1)).frames
    assert 0 < np.abs(exact - coarse).mean() < 6  # 8 bits through a VAE of 60 layers: a few of 255 levels


def test_a_video_is_made_again_from_its_file(flow_folder, tmp_path):
    first = load(flow_folder).generate(Request(PROMPT))
    assert first.request.seed > 0 and f"t2v_{first.request.seed}_flow_" in first.name
    path = first.save(tmp_path)
    metadata = video.read_metadata(path)
    assert metadata["version"] == td.__version__
    request = Request.from_json(metadata["request"])
    assert request == first.request and request.model == str(flow_folder)
    second = load(request.model).generate(request)
    assert np.array_equal(second.frames, first.frames) and second.mp4 == first.mp4
    assert video.read_frames(path).shape == (9, 64, 64, 3)


def test_odd_sizes_are_cut_at_the_centre(flow_folder):
    pipe = load(flow_folder)
    whole = pipe.generate(Request(PROMPT, seed=2, num_steps=1, resolution="80x96"))
    cut = pipe.generate(Request(PROMPT, seed=2, num_steps=1, resolution="70x86"))
    assert cut.request.resolution == "70x86" and cut.frames.shape == (9, 86, 70, 3)
    assert np.array_equal(cut.frames, whole.frames[:, 5:91, 5:75])


def test_progress_tells_every_step(flow_folder):
    seen = []
    pipe = load(flow_folder, on_progress=seen.append)
    assert [(p.stage, p.step, p.total) for p in seen] == [("load", i, 3) for i in range(4)]
    seen.clear()
    result = pipe.generate(Request(PROMPT, seed=1), on_progress=seen.append)
    assert list(dict.fromkeys(p.stage for p in seen)) == ["text", "diffusion", "decode", "encode"]
    for stage, total in (("text", 2), ("diffusion", 3), ("decode", 3), ("encode", 1)):
        steps = [p for p in seen if p.stage == stage]
        assert [(p.step, p.total) for p in steps] == [(i, total) for i in range(total + 1)]
        assert steps[0].seconds_left is None and steps[-1].seconds_left == 0
        assert all(p.seconds_left > 0 for p in steps[1:-1])
    assert list(result.seconds) == ["load", "text", "diffusion", "decode", "encode"]
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert pipe.generate(Request(PROMPT, seed=1)).seconds["load"] == 0


@pytest.mark.parametrize("stage", ["load", "text", "diffusion", "decode", "encode"])
def test_a_cancelled_video_leaves_the_pipeline_whole(flow_folder, stage):
    pipe = load(flow_folder)
    first = pipe.generate(Request(PROMPT, seed=1))
    threads = threading.active_count()

    def cancel(progress):
        if (progress.stage, progress.step) == (stage, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.generate(Request("a blue cat flies", seed=1, attention_type="sla", quant_linear="on"), on_progress=cancel)
    assert threading.active_count() == threads
    assert pipe.generate(Request(PROMPT, seed=1)).mp4 == first.mp4


def test_an_encoders_failure_comes_through(flow_folder):
    pipe = load(flow_folder)
    wrong = video.Encoder(32, 32, 16, {})
    threads = threading.active_count()
    with pytest.raises(AssertionError):
        pipe._decode(torch.zeros(SHAPE), (64, 64), wrong, _Stages(None, torch.device("cpu")))
    assert threading.active_count() == threads


def test_running_out_of_memory_is_one_line(flow_folder):
    def overflow(progress):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MachineError, match=r"ran out of memory.* smaller resolution"):
        load(flow_folder).generate(Request(PROMPT), on_progress=overflow)


def nan_network(parts):
    parts["transformer"].head.head.bias[3] = float("nan")


def inf_vae(parts):
    parts["vae"].decoder.conv1.bias[0] = float("inf")


def flat_vae(parts):
    for parameter in parts["vae"].decoder.head["2"].parameters():
        parameter.zero_()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (nan_network, "not finite at step 1 of 3: the weights are damaged"),
        (inf_vae, "the VAE gave values that are not finite"),
        (flat_vae, r"one flat colour, about \[128, 128, 128\]"),
    ],
)
def test_what_is_no_video_is_an_error(make_folder, damage, words):
    pipe = load(make_folder("damaged", damage=damage))
    with pytest.raises(OutputError, match=words):
        pipe.generate(Request(PROMPT, seed=1))


def test_a_foreign_tensor_is_named(make_folder):
    def rename(parts):
        parts["transformer"].blocks[0].norm_extra = torch.nn.LayerNorm(4)

    with pytest.raises(CheckpointError, match=r"blocks\.0\.norm_extra"):
        load(make_folder("foreign", damage=rename))


def test_notices_reach_the_result(rcm_folder):
    told = []
    request = Request(PROMPT, seed=1, num_steps=1, negative_prompt="blur", guidance=5.0)
    result = load(rcm_folder).generate(request, lambda progress: told.append(progress.stage), told.append)
    assert (*told[:2], told[2]) == (*result.notices, "text")  # before the work
    assert [notice.split()[0] for notice in result.notices] == ["negative_prompt", "guidance"]
    assert result.request.negative_prompt is None


def test_a_demo_model_says_what_length_it_knows():
    pipe = td.Pipeline.load("demo", device="cpu")
    request = Request("a red car drives to the left", seed=1, num_steps=1, resolution="64x64")
    assert pipe.generate(replace(request, num_frames=5)).notices == (
        "demo has seen videos of 33 frames alone: others look worse",
    )
    assert pipe.generate(request).notices == ()


def test_states_of_prompts_are_kept_but_not_for_ever(rcm_folder):
    prompts = load(rcm_folder)._prompts
    for prompt in ["fox 0", *(f"fox {number}" for number in range(20)), "fox 4"]:
        assert prompts.encode(prompt) is prompts._states[prompt]
    assert list(prompts._states) == [*(f"fox {number}" for number in range(5, 20)), "fox 4"]


def test_an_offloaded_text_encoder_makes_the_same_video(rcm_folder, caplog):
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        pipe = load(rcm_folder, offload_text="on")
    assert "the text encoder rests in CPU memory" in pipe.memory_plan and pipe.memory_plan in caplog.text
    resident = load(rcm_folder)
    assert "every part stays there" in resident.memory_plan
    for prompt in (PROMPT, "a blue cat flies", PROMPT):
        assert pipe.generate(Request(prompt, seed=1)).mp4 == resident.generate(Request(prompt, seed=1)).mp4


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
    request = Request(PROMPT, attention_type="original", quant_linear="off").resolve(pipe.preset)
    job = _job("tiny", pipe.preset, request, (640, 640), torch.bfloat16, torch.device("cuda"), TRITON)
    held = memory.needs(job).weights
    for latents in (2, 1):
        free = memory.needs(job, memory.Plan(False, latents)).total - held
        here = memory.Machine("cuda", "card", 40 * memory.GIB, free, 8, 40 * memory.GIB)
        monkeypatch.setattr(memory, "machine", lambda *_, here=here: here)
        notices = [notice for notice in pipe._plan(job) if notice]
        assert pipe._vae.latents_per_chunk == latents
        assert notices == [] if latents == 2 else f"at once: {latents}; loaded for this video" in notices[0]


@pytest.fixture
def replayed(graphs_by_hand, monkeypatch):
    """Pipelines whose plans have room for graphs; the list tells of captures."""
    plan = memory.plan
    monkeypatch.setattr(memory, "plan", lambda *a, **k: replace(plan(*a, **k), graphs=True))
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


def test_a_pipeline_makes_its_own_model_only(rcm_folder):
    pipe = load(rcm_folder)
    assert pipe.generate(Request(PROMPT, seed=1, num_steps=1, model=str(rcm_folder))).request.model == str(rcm_folder)
    with pytest.raises(RequestError, match=r"this pipeline holds .*rcm; Pipeline.load\('demo'\)"):
        pipe.generate(Request(PROMPT, model="demo"))


def test_kinds_are_resolved_once_and_logged(rcm_folder, caplog):
    with caplog.at_level(logging.INFO, logger="turbodiffusion"):
        pipe = load(rcm_folder, attention_type="sla", sla_topk=0.5, quant_linear="on")
    assert pipe.kinds == Kinds("sla", 0.5, "int8_block")
    assert "cpu in float32: attention sla, sla_topk 0.5, linears int8_block" in caplog.text
    assert pipe.generate(Request(PROMPT, seed=1, num_steps=1)).request.sla_topk == 0.5


def test_8_bit_linears_by_default_where_memory_is_short():
    def gpu(gib):
        return memory.Machine("cuda", "card", gib * memory.GIB, gib * memory.GIB, 8, gib * memory.GIB)

    large, demo = (find_model(name).transformer for name in ("wan2.1-t2v-14b", "demo"))
    for kernels, kind in ((REFERENCE, "int8_block"), (TRITON, "int8_row")):
        assert choose_linears("auto", large, gpu(24), kernels) == kind
        assert choose_linears("on", demo, gpu(80), kernels) == kind
        assert choose_linears("auto", large, gpu(80), kernels) == "off"
        assert choose_linears("auto", demo, gpu(24), kernels) == "off"
        assert choose_linears("auto", large, memory.machine("cpu"), kernels) == "off"
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
    monkeypatch.setattr(memory, "_system_memory", lambda: small)
    assert "81 is the nearest" in refuse(RequestError, device="cpu", requests=[good, bad])
    words = refuse(MachineError, device="cpu", requests=[good])
    assert "needs" in words and "7.0 GiB of memory free of 8.0 GiB" in words and "model demo" in words
    monkeypatch.setattr(memory, "_system_memory", lambda: large)
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
    assert pipe.kernels == TRITON and "kernels attention triton, linear triton" in caplog.text
    assert result.request.quant_linear == "int8_row"  # complete: the stored request makes this video again
    again = load(flow_folder, kernels="reference").generate(result.request)
    assert np.abs(result.frames.astype(int) - again.frames).max() <= 2  # 8 bits on the edge between two levels

    attention = pipe._experts[0].blocks[1].self_attn
    place = attention.q.int8_weight.data_ptr()
    pipe.generate(replace(one_step, attention_type="sage", num_steps=1))
    other = pipe._experts[0].blocks[1].self_attn
    assert other is not attention and other.q.int8_weight.data_ptr() == place
    assert (
        "attention by the reference: the Triton kernels take blocks of 64 or 128 tokens, not 16 and 16" in caplog.text
    )


def test_kernels_that_cannot_run_here_are_refused(rcm_folder, monkeypatch):
    with pytest.raises(MachineError, match="there are auto, reference, triton"):
        load(rcm_folder, kernels="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(MachineError, match="impl 'triton' needs"):
        load(rcm_folder, kernels="triton", device="cpu")
    assert load(rcm_folder, device="cpu").kernels == REFERENCE


def test_kernels_fit_the_network():
    cpu, config = torch.device("cpu"), find_model("wan2.1-t2v-1.3b").transformer
    fast = replace(config, attention_type="sagesla", quant_linear="int8_row")
    assert fitting(TRITON, fast, cpu) == TRITON
    assert fitting(TRITON, replace(fast, sla_block_q=32), cpu) == replace(TRITON, attention="reference")
    assert fitting(TRITON, replace(fast, num_heads=16), cpu) == replace(TRITON, attention="reference")
    assert fitting(TRITON, replace(fast, ffn_dim=8968), cpu) == replace(TRITON, linear="reference")
    assert fitting(TRITON, replace(fast, ffn_dim=8968, quant_linear="off"), cpu) == TRITON
    assert "needs fp8" in attention_unsupported_reason("sage", 128, 128, 64, (8, 0))
    assert attention_unsupported_reason("sla", 128, 128, 64, (8, 0)) is None


def test_kernels_by_default_are_those_of_bfloat16(monkeypatch):
    monkeypatch.setattr(doctor, "choose", lambda device: TRITON)
    device = torch.device("cuda")
    assert kinds.choose_kernels("auto", device, torch.bfloat16) == TRITON
    assert kinds.choose_kernels("auto", device, torch.float32) == REFERENCE
    assert kinds.choose_kernels("reference", device, torch.bfloat16) == REFERENCE
