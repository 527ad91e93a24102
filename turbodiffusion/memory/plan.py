"""The bytes and the work that a video needs, the bytes that a machine has, how they are shared, the refusal in words.

Weights are exact: the networks are built on the meta device and their tensors summed. Activations and work are
estimates by the formulas beside them. Transformer and VAE stay on the device, the text encoder where there is room
(`plan`). The need is the sum of what stays and of the largest of the peaks, which come one after the other: text (if
its layers are streamed), transformer, VAE.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import MachineError
from turbodiffusion.memory.vae import chunk_sizes, decode_bytes
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import PATCH, WanTransformer
from turbodiffusion.nn.linear import PER_TOKEN_DTYPES

# One core of a current x86 server in float32; two of them were measured at 133 GFLOP/s on large products.
CPU_FLOPS_PER_CORE = 65e9
PATIENCE = 3600.0  # seconds; a longer estimate on a CPU that nobody asked for is refused
GPU_SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 140, 180)  # GiB of memory that cards have
USABLE = 0.97  # of a card's memory: its driver and the desktop hold the rest
GIB = 2**30
SPARE = 0.1  # of a device's memory: a plan that needs more than the rest is taken only where none needs less
# What stands beside the tensors: the CUDA context, which PyTorch does not count (nor does `machine` find it free, so
# that much is spare), and in PyTorch's memory the workspaces of cuBLAS and cuDNN and what is rounded up.
CUDA_CONTEXT = 600_000_000
CUDA_OVERHEAD = CUDA_CONTEXT + 600_000_000


@dataclass(frozen=True)
class Job:
    """One video on one model, as far as memory and work go."""

    model: str
    transformer: WanConfig
    vae: VAEConfig
    text: TextConfig
    experts: int  # transformers held: 2 for Wan2.2 I2V
    width: int  # multiples of 16
    height: int
    num_frames: int
    num_steps: int
    guided: bool  # two forwards a step, one after the other
    dtype: torch.dtype
    device: str  # "cuda" or "cpu"

    @property
    def tokens(self) -> int:
        """L: positions of the transformer's sequence."""
        side = self.vae.space_factor * PATCH
        return ((self.num_frames - 1) // self.vae.time_factor + 1) * (self.width // side) * (self.height // side)


@dataclass(frozen=True)
class Plan:
    """How the parts of a job share the device."""

    offload_text: bool = False  # the text encoder rests in CPU memory and passes through the device layer by layer
    latents_per_chunk: int = 1  # that the VAE codes at once
    graphs: bool = False  # forwards are replayed as CUDA graphs, which keep their working memory


@dataclass(frozen=True)
class Needs:
    """Bytes by part, on the device; `host`: in CPU memory beside a GPU."""

    transformer: int
    text: int
    vae: int
    activations: int
    host: int = 0

    @property
    def weights(self) -> int:
        """Bytes that stay on the device between two videos."""
        return self.transformer + self.text + self.vae

    @property
    def total(self) -> int:
        return self.weights + self.activations


@dataclass(frozen=True)
class Machine:
    """A device, its bytes of memory, and the machine's cores and free CPU memory."""

    device: str  # "cuda" or "cpu"
    name: str
    total: int
    free: int
    cores: int
    host_free: int


def needs(job: Job, plan: Plan = Plan()) -> Needs:
    """The bytes that a job holds at its worst moment."""
    text, streamed = _text_bytes(job.text, job.dtype), 0
    if plan.offload_text:
        streamed = 2 * _text_layer_bytes(job.text, job.dtype)
    away = text if plan.offload_text and job.device == "cuda" else 0
    denoising, decoding = _transformer_activations(job), _vae_activations(job, plan.latents_per_chunk)
    activations = max(streamed, denoising, decoding)
    if plan.graphs:  # each expert's have a context that they read and one that they write
        activations = denoising + max(streamed, decoding) + 2 * job.experts * _context_bytes(job)
    return Needs(
        job.experts * transformer_bytes(job.transformer, job.dtype),
        text - away,
        _vae_bytes(job.vae, job.dtype),
        activations + (CUDA_OVERHEAD if job.device == "cuda" else 0),
        away,
    )


def plan(job: Job, here: Machine, *, offload_text: str = "auto", held: Needs | None = None) -> Plan:
    """The quickest plan that fits: the text encoder at hand, then a larger chunk of the VAE, then graphs.

    offload_text: "on", "off", or "auto" for where there is no room. held: what is loaded already. The chunk's size
    changes the last bits of a video, so it follows from the device's whole memory, the same every time; less is taken
    where other programs hold so much that this does not fit. Raises MachineError where nothing does.
    """
    known = {"auto": (False, True) if job.device == "cuda" else (False,), "on": (True,), "off": (False,)}
    if offload_text not in known:
        raise MachineError(f"offload_text {offload_text!r}: there are {', '.join(known)}")
    ways = known[offload_text]
    sizes = chunk_sizes(job.vae, job.width, job.height, job.transformer.kernels.vae)
    plans = {Plan(offload, size): needs(job, Plan(offload, size)) for offload in ways for size in sizes}
    possible = {way: need for way, need in plans.items() if held or need.host <= here.host_free}
    now = min(here.free + (held.weights if held else 0), here.total)
    least = min(need.total for need in (possible or plans).values())
    room = max(min(now, int(here.total * USABLE * (1 - SPARE))), least)
    need = plans[Plan(ways[-1])]
    if room > now and (len(possible) == len(plans) or need.total > now):
        raise MachineError(
            f"{_described(job, need)}; {_memory(here)}. {_advice(job, replace(here, free=now), offload_text)}"
        )
    for candidate, its_need in possible.items():
        if its_need.total <= min(room, now):
            replayed = replace(candidate, graphs=job.device == "cuda")
            return replayed if needs(job, replayed).total <= min(room, now) else candidate
    raise MachineError(
        f"{job.model}'s text encoder needs {_gb(need.host)} of CPU memory beside {here.name}, where "
        f"{_gb(here.host_free)} are free. What works: {_card_advice(job, Plan())} and --offload-text off"
    )


def describe(job: Job, plan: Plan, here: Machine) -> str:
    """A plan in one line, for people."""
    text = "the text encoder rests in CPU memory" if plan.offload_text else "every part stays there"
    chunk = f"the VAE decodes {plan.latents_per_chunk} latent frame{'s' if plan.latents_per_chunk > 1 else ''} at once"
    graphs = ", forwards are replayed as CUDA graphs" if plan.graphs else ""
    return f"at most {_gb(needs(job, plan).total)} of {here.name}'s {_gb(here.total)}: {text}, {chunk}{graphs}"


def flops(job: Job) -> float:
    """Floating-point operations of the whole video: text, every forward, decoding."""
    config, length = job.transformer, float(job.tokens)
    linears = 2 * length * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)  # q, k, v, o; cross q and o; ffn
    kept = config.sla_topk if config.attention_type in ("sla", "sagesla") else 1.0
    attention = 4 * length * config.dim * (kept * length + config.text_len)
    forwards = job.num_steps * (2 if job.guided else 1)
    # 274 TFLOP for 81 frames of 832x480 at dim 96; convolutions grow with the square of the width
    decode = 274e12 * (job.vae.dim / 96) ** 2 * job.width * job.height * job.num_frames / (832 * 480 * 81)
    text = 2 * _text_bytes(job.text, torch.float32) / 4 * job.text.text_len
    return forwards * config.num_layers * (linears + attention) + decode + text


def machine(device: torch.device | str, limit: float | None = None) -> Machine:
    """The device as it is now: free bytes count what other programs hold. limit: GiB of it that may be used."""
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, host_free = _system_memory()
    free = host_free
    name = f"this machine's CPU ({cores} cores)"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, unused
        name = torch.cuda.get_device_name(device)
    if limit is not None:
        if limit <= 0:
            raise MachineError(f"max_memory is in GiB and more than 0, not {limit:g}")
        name += f" (--max-memory {limit:g})"
        total, free = (min(size, int(limit * GIB)) for size in (total, free))
    return Machine(device.type, name, total, free, cores, host_free)


def wait(job: Job, here: Machine, *, chosen: bool = False) -> str | None:
    """A notice where the video takes long; MachineError where it takes hours on a CPU, unless the user chose that."""
    if here.device != "cpu":
        return None
    seconds = flops(job) / (CPU_FLOPS_PER_CORE * here.cores)
    if seconds < PATIENCE / 6:
        return None
    if seconds > PATIENCE and not chosen:
        raise MachineError(
            f"{_described(job, needs(job))} and a GPU; this machine has none that PyTorch can use, and its "
            f"{here.cores} CPU cores would take about {_duration(seconds)} for this video. {_advice(job, here)}, or "
            "--device cpu to wait for it"
        )
    return f"no GPU: about {_duration(seconds)} on {here.cores} CPU cores; the model demo takes a minute or two"


def _described(job: Job, need: Needs) -> str:
    text = f"text encoder {_gb(need.text)}" if need.text else "the text encoder in CPU memory"
    return (
        f"{job.model} at {job.width}x{job.height} with {job.num_frames} frames needs {_gb(need.total)} "
        f"(transformer {_gb(need.transformer)}, {text}, VAE {_gb(need.vae)}, working memory {_gb(need.activations)})"
    )


def _memory(here: Machine) -> str:
    if here.device == "cuda":
        return f"{here.name} has {_gb(here.free)} free of {_gb(here.total)}"
    return f"there is no GPU in use and {here.name} has {_gb(here.free)} of memory free of {_gb(here.total)}"


def _advice(job: Job, here: Machine, offload_text: str = "auto") -> str:
    """What would work, nearest first."""
    ways = []
    least = Plan(offload_text != "off")
    in_8_bits = replace(job, transformer=replace(job.transformer, quant_linear="int8_block"))
    if here.device == "cuda":
        if offload_text == "off" and needs(job, Plan(True)).total <= here.free:
            ways.append(f"--offload-text on ({_gb(needs(job, Plan(True)).total)})")
        elif job.transformer.quant_linear == "off" and needs(in_8_bits, least).total <= here.free:
            ways.append(f"8-bit weights (--quant-linear on: {_gb(needs(in_8_bits, least).total)})")
    ways.append(_card_advice(job, least))
    if job.model != "demo":
        ways.append("the model demo, which runs anywhere")
    return "What works: " + ", or ".join(ways)


def _card_advice(job: Job, plan: Plan) -> str:
    """The GPU that is large enough for a plan."""
    on_gpu = replace(job, dtype=torch.bfloat16, device="cuda")
    in_8_bits = replace(on_gpu, transformer=replace(job.transformer, quant_linear="int8_block"))
    card, small = (_card(needs(way, plan).total) for way in (on_gpu, in_8_bits))
    return f"a GPU with {card} GiB" + (f" ({small} GiB with --quant-linear on)" if small < card else "")


def _card(total: int) -> int:
    """The smallest card that holds `total` bytes, in GiB."""
    return next((size for size in GPU_SIZES if size * USABLE * GIB >= total), total // GIB + 1)


def _gb(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.0f} hours" if seconds > 5400 else f"{max(seconds / 60, 1):.0f} minutes"


def _transformer_activations(job: Job) -> int:
    """The worst moment of a block: in its ffn, or in its attention.

    Of the 8-bit rows that kernels compute with: 1.05 to 1.15 times what forwards of 1.3B and 14B held at 480p and 720p
    (`peak.forward.fast` in benchmarks/results). The floating-point forward is estimated at 1.5 times of 1.3B's.
    """
    config, width = job.transformer, job.dtype.itemsize
    if config.quant_linear in PER_TOKEN_DTYPES and config.kernels.linear == config.kernels.attention == "triton":
        block = max(21 * config.dim, 8 * config.dim + 3 * config.ffn_dim)
    else:
        stream = 6 * width + 12  # q, k, v or their like in the network's dtype; x, y and their gated sum in float32
        ffn = 2 * config.ffn_dim * width  # hidden states before and after GELU
        if config.quant_linear != "off" and config.kernels.linear == "reference":
            ffn += 8 * config.ffn_dim  # the emulated product: 8-bit values as float32, and the scaled result
        # float32 copies of q, k, v and the output, and phi of q and k with their normalised product
        emulated = config.attention_type != "original" and config.kernels.attention == "reference"
        block = stream * config.dim + max(ffn, 4 * 8 * config.dim if emulated else 0)
    cross = _context_bytes(job) * (2 if job.guided else 1)
    state = 6 * 8 * config.out_dim * job.tokens * PATCH**2  # the sampler's float64 tensors
    return job.tokens * block + cross + state


def _context_bytes(job: Job) -> int:
    """Keys and values of one prompt, of every block."""
    config = job.transformer
    return 2 * config.num_layers * config.text_len * config.dim * job.dtype.itemsize


def _vae_activations(job: Job, latents: int) -> int:
    """Decoding's worst moment; from an image also the whole clip in float32, of which its condition is made."""
    width, pixels = job.dtype.itemsize, job.width * job.height
    peak = decode_bytes(job.vae, job.width, job.height, latents, width, job.transformer.kernels.vae)
    clip = 3 * 4 * job.num_frames * pixels if job.transformer.in_dim > job.transformer.out_dim else 0
    frames = 3 * job.num_frames * pixels if job.device == "cpu" else 0  # uint8; beside a GPU they are in CPU memory
    return peak + clip + frames


def _size_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@lru_cache(maxsize=16)
def transformer_bytes(config: WanConfig, dtype: torch.dtype) -> int:
    """One network's weights."""
    return _size_of(WanTransformer(config, device="meta", dtype=dtype))


@lru_cache(maxsize=16)
def _text_bytes(config: TextConfig, dtype: torch.dtype) -> int:
    return _size_of(TextEncoder(config, device="meta", dtype=dtype))


@lru_cache(maxsize=16)
def _text_layer_bytes(config: TextConfig, dtype: torch.dtype) -> int:
    return _size_of(TextEncoder(replace(config, num_layers=1), device="meta", dtype=dtype).encoder.block[0])


@lru_cache(maxsize=16)
def _vae_bytes(config: VAEConfig, dtype: torch.dtype) -> int:
    return _size_of(WanVAE(config, device="meta", dtype=dtype))


_CGROUP_FILES = (  # versions 2 and 1: limit ("max" means none), bytes used, and the name of cached files among them
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def _system_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(total, free) bytes for this process: the kernel's estimate, cut to a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total  # macOS tells no more
    if (proc / "meminfo").exists():
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used, stat, cached in _CGROUP_FILES:
        if (cgroup / limit).exists() and (text := (cgroup / limit).read_text().strip()).isdigit():
            stats = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            in_use = int((cgroup / used).read_text()) - int(stats.get(cached, 0))
            total = min(total, int(text))
            free = min(free, max(total - in_use, 0))
    return total, free
