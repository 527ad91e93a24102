"""Memory arithmetic: exact weights, estimates within a stated factor, refusals that say what would work."""

from dataclasses import replace

import pytest

from turbodiffusion.config import TRITON, TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import MachineError
from turbodiffusion.memory.plan import (
    GIB,
    DeviceInfo,
    Job,
    Plan,
    check_cpu_time,
    describe,
    estimate,
    flops,
    plan,
    smallest_card,
)
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.presets import MODELS

WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
JOB = Job(
    model="wan2.1-t2v-14b",
    transformer=WAN_14B,
    vae=VAEConfig(),
    text=TextConfig(),
    experts=1,
    width=832,
    height=480,
    num_frames=81,
    num_steps=4,
    guided=False,
    dtype="bfloat16",
    device="cuda",
)
# Wan2.1 1.3B in 8 bits at 480p, as `--quant-linear on` makes it on a GPU with kernels
QUICK = replace(
    JOB,
    model="wan2.1-t2v-1.3b",
    transformer=replace(MODELS["wan2.1-t2v-1.3b"].transformer, quant_linear="int8_row", kernels=TRITON),
)
SMALL = replace(
    JOB,
    model="demo",
    transformer=WanConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=2, text_dim=64, text_len=32),
    vae=VAEConfig(dim=8),
    text=TextConfig(d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, vocab_size=512, text_len=32),
    width=64,
    height=64,
    num_frames=17,
    dtype="float32",
    device="cpu",
)


def gpu(gib):
    return DeviceInfo("cuda", f"NVIDIA card of {gib} GiB", gib * GIB, int(0.98 * gib * GIB), 8, 64 * GIB)


def cpu(gib, cores=16):
    return DeviceInfo("cpu", "CPU", gib * GIB, int(0.9 * gib * GIB), cores, int(0.9 * gib * GIB))


def test_weights_of_the_14b_model():
    """14.3e9 parameters and the 5.68e9 of umT5-XXL's encoder, two bytes each; the float32 time path adds 0.7 GB."""
    need = estimate(JOB)
    assert need.transformer == pytest.approx(2 * 14.29e9, rel=0.03)
    assert need.text == pytest.approx(2 * 5.68e9, rel=0.01)
    assert need.vae == pytest.approx(2 * 127e6, rel=0.01)
    assert need.total == need.transformer + need.text + need.vae + need.activations


def test_weights_are_those_of_the_built_network():
    vae = WanVAE(SMALL.vae)
    assert estimate(SMALL).vae == sum(p.numel() * 4 for p in vae.parameters())


def test_8_bits_halve_the_transformer_and_two_experts_double_it():
    in_8_bits = replace(JOB, transformer=replace(WAN_14B, quant_linear="int8_block"))
    # the time path and embeddings stay in floating point: a little more than half
    assert 0.50 < estimate(in_8_bits).transformer / estimate(JOB).transformer < 0.53
    assert estimate(replace(JOB, experts=2)).transformer == 2 * estimate(JOB).transformer


def test_activations_grow_with_the_video():
    base = estimate(JOB).activations
    assert estimate(replace(JOB, num_frames=161)).activations > base
    assert estimate(replace(JOB, width=1280, height=720)).activations > 2 * base - 2 * 1.2e9


def test_tokens_are_those_of_the_480p_and_720p_videos():
    assert JOB.tokens == 32760
    assert replace(JOB, width=1280, height=720).tokens == 75600


def test_work_of_one_forward_and_of_decoding():
    """2 x 14e9 multiply-adds a token is 0.9 PFLOP of linears, attention 4 L^2 dim a layer as much again."""
    four, one = flops(JOB), flops(replace(JOB, num_steps=1))
    assert (four - one) / 3 == pytest.approx(0.86e15 + 0.88e15, rel=0.05)
    assert flops(replace(JOB, guided=True)) - four == pytest.approx(4 * (four - one) / 3)
    sparse = replace(JOB, transformer=replace(WAN_14B, attention_type="sla", sla_topk=0.1))
    assert flops(sparse) < 0.62 * four


@pytest.mark.parametrize(
    ("gib", "expected", "peak"),
    [
        (8, Plan(True, 1), 6.7),
        (12, Plan(True, 2, True), 10.0),
        (24, Plan(False, 2, True), 20.5),
    ],
)
def test_1_3b_at_480p_fits_a_card_of_8_gib(gib, expected, peak):
    """A larger card decodes more at once; the text encoder stays on it from 24 GiB on."""
    here = gpu(gib)
    assert plan(QUICK, here) == expected
    need = estimate(QUICK, expected)
    assert need.total / GIB == pytest.approx(peak, abs=0.05)
    assert (need.host > 10 * GIB) == expected.offload_text == (need.text == 0)
    words = str(describe(QUICK, expected, here))
    assert words.startswith(f"at most {need.total / GIB:.1f} GiB of {here.name}'s {gib}.0 GiB")
    assert ("is in CPU memory" in words) == expected.offload_text


def test_the_text_encoder_is_where_the_user_wants_it():
    assert plan(QUICK, gpu(140), offload_text="on") == Plan(True, 2, True)
    assert plan(QUICK, gpu(24), offload_text="off") == Plan(False, 2, True)
    with pytest.raises(MachineError, match=r"What works: --offload-text on \(6\.7 GiB\), or a GPU with 24 GiB"):
        plan(QUICK, gpu(12), offload_text="off")


def test_graphs_keep_the_working_memory_of_a_forward():
    """So it stands beside the VAE's and not in its place; where there is no room for both, nothing is replayed."""
    launched, replayed = (estimate(QUICK, Plan(True, 1, graphs)) for graphs in (False, True))
    forward = replayed.total - launched.total
    assert 1 * GIB < forward < 2 * GIB
    ample = next(gib for gib in range(8, 100) if plan(QUICK, gpu(gib)).cuda_graphs)
    assert estimate(QUICK, plan(QUICK, gpu(ample))).total <= 0.9 * 0.97 * ample * GIB
    assert "replayed as CUDA graphs" in str(describe(QUICK, plan(QUICK, gpu(ample)), gpu(ample)))
    assert not plan(replace(QUICK, device="cpu"), cpu(100)).cuda_graphs


def test_two_layers_are_on_the_gpu_while_a_prompt_is_encoded():
    """They count where they are more than the video's own working memory."""
    text = replace(SMALL.text, d_ff=1 << 20)
    job = replace(SMALL, text=text, device="cuda")
    encoder = TextEncoder(text, device="meta")
    layer = sum(p.nbytes for p in encoder.encoder.block[0].parameters())
    need = estimate(job, Plan(True))
    assert need.host == sum(p.nbytes for p in encoder.parameters()) and need.text == 0
    assert need.activations == 2 * layer + 1_200_000_000


def test_on_a_cpu_nothing_is_offloaded_unless_asked():
    assert plan(SMALL, cpu(4)) == Plan()
    assert plan(SMALL, cpu(4), offload_text="on") == Plan(True)
    assert estimate(SMALL, Plan(True)).text == estimate(SMALL).text and estimate(SMALL, Plan(True)).host == 0


def test_what_the_text_encoder_needs_of_cpu_memory_is_checked_too():
    poor = replace(gpu(8), host_free=6 * GIB)
    with pytest.raises(MachineError) as error:
        plan(QUICK, poor)
    words = str(error.value)
    for part in ("text encoder needs 10.6 GiB of CPU memory", "6.0 GiB are free", "24 GiB and --offload-text off"):
        assert part in words
    assert plan(QUICK, replace(gpu(24), host_free=6 * GIB)) == Plan(False, 2, True)
    # The usual spare is given up where the text encoder has no other place.
    assert plan(QUICK, replace(gpu(18), host_free=6 * GIB)) == Plan(False, 1)
    assert plan(QUICK, poor, loaded=estimate(QUICK, Plan(True))) == Plan(True)  # it is there already


def test_the_plan_is_that_of_the_whole_card_while_that_fits():
    """The chunk changes the last bits of a video: a browser that holds half a GiB must not."""
    for free in (24, 22, 20):  # graphs change no bits, so they may depend on it
        assert plan(QUICK, replace(gpu(24), free=free * GIB)) == Plan(False, 2, free > 20)
    assert plan(QUICK, replace(gpu(24), free=18 * GIB)) == Plan(False, 1)
    assert plan(QUICK, replace(gpu(24), free=10 * GIB)) == Plan(True, 2, True)


def test_a_chunk_that_costs_nothing_is_taken():
    """14B's transformer needs more than a VAE with two latent frames at once."""
    job = replace(JOB, transformer=replace(WAN_14B, kernels=TRITON))
    assert estimate(job, Plan(True, 2)) == estimate(job, Plan(True, 1))
    assert plan(job, replace(gpu(40), free=estimate(job, Plan(True)).total)) == Plan(True, 2)


@pytest.mark.parametrize("device", [gpu(8), gpu(24)])
def test_14b_on_a_small_gpu_is_refused_in_words(device):
    with pytest.raises(MachineError) as error:
        plan(JOB, device)
    words = str(error.value)
    assert "\n" not in words
    for part in ("wan2.1-t2v-14b at 832x480", "transformer 27.0 GiB", device.name, "a GPU with 40 GiB", "model demo"):
        assert part in words


def test_8_bit_weights_are_offered_where_they_fit():
    with pytest.raises(MachineError, match=r"What works: 8-bit weights \(--quant-linear on: "):
        plan(JOB, gpu(32))


def test_14b_on_a_cpu_with_little_memory_is_refused():
    job = replace(JOB, dtype="float32", device="cpu")
    with pytest.raises(MachineError, match=r"no GPU in use and this machine's CPU \(4 cores\) has 14\.4 GiB"):
        plan(job, cpu(16, cores=4))


def test_hours_on_a_cpu_need_the_users_word():
    job = replace(JOB, dtype="float32", device="cpu")
    assert plan(job, cpu(512)) == Plan()
    with pytest.raises(MachineError, match=r"take about 2 hours.*--device cpu"):
        check_cpu_time(job, cpu(512))
    notice = check_cpu_time(job, cpu(512), chosen=True)
    assert notice is not None and "about 2 hours on 16 CPU cores" in str(notice)
    assert check_cpu_time(JOB, gpu(80)) is None


def test_a_small_model_on_a_cpu_needs_no_words():
    assert check_cpu_time(SMALL, cpu(4, cores=2)) is None


def test_what_is_loaded_already_is_not_asked_for_again():
    full = replace(gpu(48), free=8 * GIB)
    with pytest.raises(MachineError):
        plan(JOB, full, offload_text="off")
    assert plan(JOB, full, offload_text="off", loaded=estimate(JOB)) == Plan()


def test_the_advice_is_for_the_card_that_a_person_would_buy():
    """Without a GPU the reference kernels compute, but a card has its own, which hold less."""
    job = replace(JOB, width=1280, height=720, dtype="float32", device="cpu")
    with pytest.raises(MachineError, match=r"a GPU with 48 GiB \(32 GiB with --quant-linear on\)"):
        check_cpu_time(job, cpu(512))
    assert smallest_card(job, plan=Plan(True)) == 48


def test_the_plan_in_chinese():
    assert "文本编码器放在内存中" in describe(QUICK, Plan(True), gpu(8)).render("zh")
