"""Memory arithmetic: exact weights, estimates within a stated factor, refusals that say what would work."""

from dataclasses import replace

import pytest
import torch

from turbodiffusion.errors import MachineError
from turbodiffusion.memory import GIB, Job, Machine, _system_memory, check, flops, machine, needs
from turbodiffusion.models.text import TextConfig
from turbodiffusion.models.vae import VAEConfig, WanVAE
from turbodiffusion.models.wan import WanConfig

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
    dtype=torch.bfloat16,
    device="cuda",
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
    dtype=torch.float32,
    device="cpu",
)


def gpu(gib):
    return Machine("cuda", f"NVIDIA card of {gib} GiB", gib * GIB, int(0.98 * gib * GIB), 8)


def cpu(gib, cores=16):
    return Machine("cpu", f"this machine's CPU ({cores} cores)", gib * GIB, int(0.9 * gib * GIB), cores)


def test_weights_of_the_14b_model():
    """14.3e9 parameters and the 5.68e9 of umT5-XXL's encoder, two bytes each; the float32 time path adds 0.7 GB."""
    need = needs(JOB)
    assert need.transformer == pytest.approx(2 * 14.29e9, rel=0.03)
    assert need.text == pytest.approx(2 * 5.68e9, rel=0.01)
    assert need.vae == pytest.approx(2 * 127e6, rel=0.01)
    assert need.total == need.transformer + need.text + need.vae + need.activations


def test_weights_are_those_of_the_built_network():
    vae = WanVAE(SMALL.vae)
    assert needs(SMALL).vae == sum(p.numel() * 4 for p in vae.parameters())


def test_8_bits_halve_the_transformer_and_two_experts_double_it():
    in_8_bits = replace(JOB, transformer=replace(WAN_14B, quant_linear="int8_block"))
    # the time path and embeddings stay in floating point: a little more than half
    assert 0.50 < needs(in_8_bits).transformer / needs(JOB).transformer < 0.53
    assert needs(replace(JOB, experts=2)).transformer == 2 * needs(JOB).transformer


def test_activations_grow_with_the_video():
    base = needs(JOB).activations
    assert needs(replace(JOB, num_frames=161)).activations > base
    assert needs(replace(JOB, width=1280, height=720)).activations > 2 * base - 2 * 1.2e9


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


@pytest.mark.parametrize("device", [gpu(8), gpu(24)])
def test_14b_on_a_small_gpu_is_refused_in_words(device):
    with pytest.raises(MachineError) as error:
        check(JOB, device)
    words = str(error.value)
    assert "\n" not in words
    for part in ("wan2.1-t2v-14b at 832x480", "transformer 27.0 GiB", device.name, "a GPU with 48 GiB", "model demo"):
        assert part in words


def test_8_bit_weights_are_offered_where_they_fit():
    with pytest.raises(MachineError, match=r"What works: 8-bit weights \(--quant-linear on: "):
        check(JOB, gpu(40))


def test_a_card_that_fits_is_taken_and_one_is_named_that_would():
    assert check(JOB, gpu(80)) is None
    assert check(JOB, gpu(48)) is None


def test_14b_on_a_cpu_with_little_memory_is_refused():
    job = replace(JOB, dtype=torch.float32, device="cpu")
    with pytest.raises(MachineError, match=r"no GPU in use and this machine's CPU \(4 cores\) has 14\.4 GiB"):
        check(job, cpu(16, cores=4))


def test_hours_on_a_cpu_need_the_users_word():
    job = replace(JOB, dtype=torch.float32, device="cpu")
    with pytest.raises(MachineError, match=r"take about 2 hours.*--device cpu"):
        check(job, cpu(512))
    notice = check(job, cpu(512), chosen=True)
    assert notice is not None and "about 2 hours on 16 CPU cores" in notice


def test_a_small_model_on_a_cpu_needs_no_words():
    assert check(SMALL, cpu(4, cores=2)) is None


def test_what_is_loaded_already_is_not_asked_for_again():
    held = needs(JOB).total - needs(JOB).activations
    full = Machine("cuda", "NVIDIA card", 48 * GIB, 8 * GIB, 8)
    with pytest.raises(MachineError):
        check(JOB, full)
    assert check(JOB, full, held=held) is None


def test_this_machine_has_memory():
    here = machine("cpu")
    assert here.device == "cpu" and here.cores >= 1
    assert 0 < here.free <= here.total
    assert here.total > 2**28


def test_a_containers_limit_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  64000000 kB\nMemAvailable:  60000000 kB\nHugePages_Total:  0\n")
    assert _system_memory(proc, cgroup) == (64000000 * 1024, 60000000 * 1024)
    (cgroup / "memory.max").write_text("max\n")
    assert _system_memory(proc, cgroup) == (64000000 * 1024, 60000000 * 1024)
    (cgroup / "memory.max").write_text(f"{8 * GIB}\n")
    (cgroup / "memory.current").write_text(f"{4 * GIB}\n")
    (cgroup / "memory.stat").write_text(f"anon {3 * GIB}\ninactive_file {GIB}\n")  # cached files are given back
    assert _system_memory(proc, cgroup) == (8 * GIB, 5 * GIB)
