"""The pipeline on small random models: against the loop written out, over all kinds, and when things go wrong."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import turbodiffusion as td
from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.errors import CheckpointError, MachineError, OutputError, RequestError
from turbodiffusion.inference import model_source as source
from turbodiffusion.inference.sampling import State, noise, sample_flow
from turbodiffusion.inference.stage_timer import StageTimer
from turbodiffusion.media import video
from turbodiffusion.media.image import adaptive_size, fit, load_image
from turbodiffusion.media.metadata import read_metadata
from turbodiffusion.models.text import TextEncoder, Tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.request import Request
from turbodiffusion.schedules import flow_times, rcm_times

PROMPT = "a red fox runs"


def load(folder, **options):
    return td.Pipeline.load(str(folder), **options)


class ByHand:
    """The parts of a folder, loaded without the pipeline."""

    def __init__(self, folder: Path):
        preset = source.resolve_model(str(folder)).preset
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


@torch.no_grad()
@pytest.mark.parametrize("scales", [(4.0, 3.0), (4.0, 1.0)])
def test_each_expert_has_its_own_guidance(make_folder, scales):
    """As Wan 2.2 T2V: `guidance` for the high-noise expert, `guidance_low` for the other; 1 is a single forward."""
    guided = {"guidance": scales[0], "guidance_low": scales[1], "boundary": 0.875}
    sampling = {"sampler": "flow", "num_steps": 3, "shift": 12.0, "resolution": "64x64", "num_frames": 9, **guided}
    folder = make_folder("t2v_a14b", experts=2, sampling=sampling)
    hand, times, used = ByHand(folder), flow_times(3, 12.0), []

    def denoise(x, t):
        expert = 0 if t >= 0.875 else 1
        used.append(expert)
        wanted, unwanted = (hand.velocity(x, t, prompt, expert) for prompt in (PROMPT, ""))
        return wanted if scales[expert] == 1 else unwanted + scales[expert] * (wanted - unwanted)

    latent = sample_flow(denoise, SHAPE, times, 6)
    assert used == [0, 0, 1]
    result = load(folder).generate(Request(PROMPT, seed=6))
    assert (result.request.guidance, result.request.guidance_low, result.request.sampler) == (*scales, "flow")
    assert np.array_equal(result.frames, hand.frames(latent))


@torch.no_grad()
def test_a_teacher_runs_as_the_student_that_the_user_says_it_is(flow_folder):
    hand, times = ByHand(flow_folder), rcm_times(4, 80.0)
    x = noise(SHAPE, 5, 0).double() * times[0]
    for t, t_next in itertools.pairwise(times):
        x = x - (t - t_next) * hand.velocity(x, t, PROMPT).double()
    result = load(flow_folder).generate(Request(PROMPT, seed=5, ode=True, sampler="rcm"))
    assert np.array_equal(result.frames, hand.frames(x))
    assert (result.request.num_steps, result.request.sigma_max, result.request.guidance) == (4, 80.0, None)


def test_image_and_experts_matter(i2v_folder, picture, tmp_path):
    pipe = load(i2v_folder)
    first = pipe.generate(Request(PROMPT, image=picture, seed=7))
    assert set(first.seconds) == {"load", "text_encode", "image_encode", "denoise", "vae_decode", "mp4_encode"}
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    other = pipe.generate(Request(PROMPT, image=tmp_path / "red.png", seed=7))
    assert not np.array_equal(first.frames, other.frames)


def test_adaptive_resolution_follows_the_image(i2v_folder, picture):
    pipe = load(i2v_folder)
    result = pipe.generate(
        Request(PROMPT, image=picture, seed=7, num_steps=1, resolution="96x96", adaptive_resolution=True)
    )
    width, height = adaptive_size(160, 96, 96 * 96)
    assert result.frames.shape == (9, height, width, 3)
    assert width % 16 == height % 16 == 0 and width * height <= 96 * 96 and width > height


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


def test_a_model_trained_with_sla_runs_dense_and_back(make_folder, small_config):
    pipe = load(make_folder("sparse", config=replace(small_config, attention_type="sla")))
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
    metadata = read_metadata(path)
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
    assert list(dict.fromkeys(p.stage for p in seen)) == ["text_encode", "denoise", "vae_decode", "mp4_encode"]
    for stage, total in (("text_encode", 2), ("denoise", 3), ("vae_decode", 3), ("mp4_encode", 1)):
        steps = [p for p in seen if p.stage == stage]
        assert [(p.step, p.total) for p in steps] == [(i, total) for i in range(total + 1)]
        assert steps[0].seconds_left is None and steps[-1].seconds_left == 0
        assert all(p.seconds_left > 0 for p in steps[1:-1])
    assert list(result.seconds) == ["load", "text_encode", "denoise", "vae_decode", "mp4_encode"]
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert pipe.generate(Request(PROMPT, seed=1)).seconds["load"] == 0


@pytest.mark.parametrize("stage", ["load", "text_encode", "denoise", "vae_decode", "mp4_encode"])
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
        pipe._decode(torch.zeros(SHAPE), (64, 64), wrong, StageTimer(None, torch.device("cpu")))
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
    result = load(rcm_folder).generate(
        request, lambda progress: told.append(progress.stage), lambda n: told.append(str(n))
    )
    assert (*told[:2], told[2]) == (*result.notices, "text_encode")  # before the work
    assert [notice.split()[0] for notice in result.notices] == ["negative_prompt", "guidance"]
    assert result.request.negative_prompt is None


def test_a_demo_model_says_what_length_it_knows():
    pipe = td.Pipeline.load("demo", device="cpu")
    request = Request("a red car drives to the left", seed=1, num_steps=1, resolution="64x64")
    assert pipe.generate(replace(request, num_frames=5)).notices == (
        "demo has seen videos of 33 frames alone: others look worse",
    )
    assert pipe.generate(request).notices == ()


def test_a_pipeline_makes_its_own_model_only(rcm_folder):
    pipe = load(rcm_folder)
    assert pipe.generate(Request(PROMPT, seed=1, num_steps=1, model=str(rcm_folder))).request.model == str(rcm_folder)
    with pytest.raises(RequestError, match=r"this pipeline holds .*rcm; Pipeline.load\('demo'\)"):
        pipe.generate(Request(PROMPT, model="demo"))


class StoppedError(Exception):
    pass


def stopped_after(pipe, request, step: int) -> State:
    """The sampler's state where a user stops a video."""
    states = []

    def stop(state: State) -> None:
        states.append(state)
        if state.step == step:
            raise StoppedError

    with pytest.raises(StoppedError):
        pipe.generate(request, on_state=stop)
    assert [state.step for state in states] == list(range(1, step + 1))
    return states[-1]


@pytest.mark.parametrize("folder", ["flow_folder", "rcm_folder"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stopped_video_goes_on_to_the_same_bytes(request, folder, step):
    """Elsewhere too: the state goes through a file, into another pipeline."""
    path = request.getfixturevalue(folder)
    pipe = load(path)
    wanted = pipe.model.fill(Request(PROMPT, seed=5))
    whole = pipe.generate(wanted)
    state = stopped_after(pipe, wanted, step)
    state = State(state.step, state.x.clone(), tuple(x.clone() for x in state.history))
    told = []
    rest = load(path).generate(wanted, on_progress=told.append, resume=state)
    assert rest.mp4 == whole.mp4 and np.array_equal(rest.frames, whole.frames)
    denoise = [progress.step for progress in told if progress.stage == "denoise"]
    assert denoise == list(range(step, wanted.num_steps + 1))


def test_a_state_of_another_request_is_refused(rcm_folder):
    pipe = load(rcm_folder)
    state = stopped_after(pipe, Request(PROMPT, seed=5), 2)
    with pytest.raises(RequestError, match="belongs to another request"):
        pipe.generate(Request(PROMPT, seed=5, num_frames=5), resume=state)
    with pytest.raises(RequestError, match="belongs to another request"):
        pipe.generate(Request(PROMPT, seed=5, num_steps=1), resume=state)


def test_threads_wait_for_each_other(flow_folder):
    """Without the lock two threads that ask for other linears take the network from under each other."""
    pipe = load(flow_folder)
    wanted = [Request(PROMPT, seed=seed, quant_linear=("off", "on")[seed % 2]) for seed in range(1, 7)]
    alone = [pipe.generate(request).mp4 for request in wanted]
    with ThreadPoolExecutor(3) as pool:
        together = [result.mp4 for result in pool.map(pipe.generate, wanted)]
    assert together == alone
