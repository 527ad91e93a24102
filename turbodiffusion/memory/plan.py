"""The memory plan: the bytes and the work that a video needs, what a device has, and how the parts share it.

Plain arithmetic without torch: the device comes in as a `DeviceInfo` that somebody else has read
(`inference/device.py`), so a web process can plan for a worker's GPU, and a person for a card in a shop.

Weights are exact (`weights.py`). Activations and work are estimates by the formulas beside them. Transformer and VAE
stay on the device, the text encoder where there is room. A video's peak is the sum of what stays and of the largest
working memory of its stages, which come one after the other: text (if its layers are offloaded), denoising, decoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from turbodiffusion.config import PATCH, PER_TOKEN_LINEARS, SPARSE_ATTENTION, TRITON, TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import MachineError
from turbodiffusion.memory.vae import chunk_sizes, decode_bytes
from turbodiffusion.memory.weights import (
    DTYPE_BYTES,
    text_bytes,
    text_layer_parameters,
    text_parameters,
    transformer_bytes,
    vae_bytes,
)
from turbodiffusion.texts import Text, text

# One core of a current x86 server in float32; two of them were measured at 133 GFLOP/s on large products.
CPU_FLOPS_PER_CORE = 65e9
MAX_CPU_SECONDS = 3600.0  # a longer estimate on a CPU that nobody asked for is refused
GPU_SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 140, 180)  # GiB of memory that cards have
USABLE = 0.97  # of a card's memory: its driver and the desktop hold the rest
GIB = 2**30
SPARE = 0.1  # of a device's memory: a plan that needs more than the rest is taken only where none needs less
# What stands beside the tensors: the CUDA context, which PyTorch does not count (nor is it found free, so that much is
# spare), and in PyTorch's memory the workspaces of cuBLAS and cuDNN and what is rounded up.
CUDA_CONTEXT = 600_000_000
CUDA_OVERHEAD = CUDA_CONTEXT + 600_000_000


@dataclass(frozen=True)
class DeviceInfo:
    """A device as it is now: bytes of memory, cores, free CPU memory; of a GPU also what its kernels depend on."""

    device: str  # "cuda" or "cpu"
    name: str
    total: int
    free: int
    cores: int
    host_free: int
    capability: tuple[int, int] | None = None  # of CUDA
    driver: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # of torch, cuda, triton
    limit: float | None = None  # GiB that the user set

    @property
    def gpu(self) -> str | None:
        """The GPU's name; None on a CPU."""
        return self.name if self.device == "cuda" else None


@dataclass(frozen=True)
class Job:
    """One video on one model, as far as memory and work go."""

    model: str
    transformer: WanConfig
    vae: VAEConfig
    text: TextConfig
    experts: int  # transformers held: 2 for Wan 2.2 A14B
    width: int  # multiples of 16
    height: int
    num_frames: int
    num_steps: int
    guided: bool  # two forwards a step, one after the other
    dtype: str  # "bfloat16" or "float32"
    device: str  # "cuda" or "cpu"

    @property
    def tokens(self) -> int:
        """L: positions of the transformer's sequence."""
        side = self.vae.space_factor * PATCH
        return ((self.num_frames - 1) // self.vae.time_factor + 1) * (self.width // side) * (self.height // side)


@dataclass(frozen=True)
class Plan:
    """How the parts of a job share the device."""

    offload_text: bool = False  # the text encoder is in CPU memory and passes through the device layer by layer
    latents_per_chunk: int = 1  # that the VAE codes at once
    cuda_graphs: bool = False  # forwards are replayed as CUDA graphs, which keep their working memory


@dataclass(frozen=True)
class MemoryEstimate:
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


def estimate(job: Job, plan: Plan = Plan()) -> MemoryEstimate:
    """Return the bytes that a job holds at its worst moment."""
    text_encoder, offloaded = text_bytes(job.text, job.dtype), 0
    if plan.offload_text:
        offloaded = 2 * DTYPE_BYTES[job.dtype] * text_layer_parameters(job.text)
    away = text_encoder if plan.offload_text and job.device == "cuda" else 0
    denoising, decoding = _transformer_activations(job), _vae_activations(job, plan.latents_per_chunk)
    activations = max(offloaded, denoising, decoding)
    if plan.cuda_graphs:  # each expert's have a context that they read and one that they write
        activations = denoising + max(offloaded, decoding) + 2 * job.experts * _context_bytes(job)
    return MemoryEstimate(
        job.experts * transformer_bytes(job.transformer, job.dtype),
        text_encoder - away,
        vae_bytes(job.vae, job.dtype),
        activations + (CUDA_OVERHEAD if job.device == "cuda" else 0),
        away,
    )


def plan(job: Job, device: DeviceInfo, *, offload_text: str = "auto", loaded: MemoryEstimate | None = None) -> Plan:
    """Return the quickest plan that fits: the text encoder on the device, then a larger VAE chunk, then CUDA graphs.

    offload_text: "on", "off", or "auto" for where there is no room. loaded: what is in memory already. The chunk's
    size changes the last bits of a video, so it follows from the device's whole memory, the same every time; less is
    taken where other programs hold so much that this does not fit. Raises MachineError where nothing does.
    """
    known = {"auto": (False, True) if job.device == "cuda" else (False,), "on": (True,), "off": (False,)}
    if offload_text not in known:
        raise MachineError("memory.offload_text_unknown", value=repr(offload_text), known=list(known))
    # 1. every plan, and those whose text encoder fits in CPU memory
    ways = known[offload_text]
    sizes = chunk_sizes(job.vae, job.width, job.height, job.transformer.kernels.vae)
    plans = {Plan(offload, size): estimate(job, Plan(offload, size)) for offload in ways for size in sizes}
    possible = {way: need for way, need in plans.items() if loaded or need.host <= device.host_free}
    # 2. the room: what is free now, and no more than the device's whole memory less a spare
    now = min(device.free + (loaded.weights if loaded else 0), device.total)
    least = min(need.total for need in (possible or plans).values())
    room = max(min(now, int(device.total * USABLE * (1 - SPARE))), least)
    need = plans[Plan(ways[-1])]
    if room > now and (len(possible) == len(plans) or need.total > now):
        raise MachineError(
            "memory.too_small",
            job=_described(job, need),
            device=_memory(device),
            advice=_advice(job, replace(device, free=now), offload_text),
        )
    # 3. the first that fits, with CUDA graphs where there is room for them too
    for candidate, its_need in possible.items():
        if its_need.total <= min(room, now):
            replayed = replace(candidate, cuda_graphs=job.device == "cuda")
            return replayed if estimate(job, replayed).total <= min(room, now) else candidate
    raise MachineError(
        "memory.host_too_small",
        model=job.model,
        need=_gib(need.host),
        device=device_name(device),
        free=_gib(device.host_free),
        card=_card_advice(job, Plan()),
    )


def describe(job: Job, plan: Plan, device: DeviceInfo) -> Text:
    """Return a plan as one line for people."""
    return text(
        "memory.plan",
        need=_gib(estimate(job, plan).total),
        device=device_name(device),
        total=_gib(device.total),
        text=text("memory.plan_text_offloaded" if plan.offload_text else "memory.plan_text_resident"),
        latents=plan.latents_per_chunk,
        s="s" if plan.latents_per_chunk > 1 else "",
        graphs=text("memory.plan_graphs") if plan.cuda_graphs else "",
    )


def device_name(device: DeviceInfo) -> Text:
    """Return a device's name for people, with the limit that the user set."""
    name: str | Text = device.name
    if device.device == "cpu":
        name = text("memory.cpu_name", cores=device.cores)
    if device.limit is not None:
        return text("memory.limited_name", name=name, limit=f"{device.limit:g}")
    return text("memory.name", name=name)


def flops(job: Job) -> float:
    """Return the floating-point operations of the whole video: text, every forward, decoding."""
    config, length = job.transformer, float(job.tokens)
    linears = 2 * length * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)  # q, k, v, o; cross q and o; ffn
    kept = config.sla_topk if config.attention_type in SPARSE_ATTENTION else 1.0
    attention = 4 * length * config.dim * (kept * length + config.text_len)
    forwards = job.num_steps * (2 if job.guided else 1)
    # 274 TFLOP for 81 frames of 832x480 at dim 96; convolutions grow with the square of the width
    decode = 274e12 * (job.vae.dim / 96) ** 2 * job.width * job.height * job.num_frames / (832 * 480 * 81)
    encode = 2 * text_parameters(job.text) * job.text.text_len
    return forwards * config.num_layers * (linears + attention) + decode + encode


def check_cpu_time(job: Job, device: DeviceInfo, *, chosen: bool = False) -> Text | None:
    """Return a notice where the video takes long on a CPU; raise MachineError for hours, unless the user chose that."""
    if device.device != "cpu":
        return None
    seconds = flops(job) / (CPU_FLOPS_PER_CORE * device.cores)
    if seconds < MAX_CPU_SECONDS / 6:
        return None
    if seconds > MAX_CPU_SECONDS and not chosen:
        raise MachineError(
            "memory.cpu_too_slow",
            job=_described(job, estimate(job)),
            cores=device.cores,
            time=_duration(seconds),
            advice=_advice(job, device),
        )
    return text("memory.cpu_slow", time=_duration(seconds), cores=device.cores)


def smallest_card(job: Job, *, quant_linear: str = "off", plan: Plan = Plan()) -> int:
    """Return the GiB of the smallest GPU that runs a job with our kernels in bfloat16, whatever device it is for."""
    transformer = replace(job.transformer, quant_linear=quant_linear, kernels=TRITON)
    total = estimate(replace(job, dtype="bfloat16", device="cuda", transformer=transformer), plan).total
    return next((size for size in GPU_SIZES if size * USABLE * GIB >= total), total // GIB + 1)


def _described(job: Job, need: MemoryEstimate) -> Text:
    resident = text("memory.text_resident", bytes=_gib(need.text)) if need.text else text("memory.text_offloaded")
    return text(
        "memory.job",
        model=job.model,
        width=job.width,
        height=job.height,
        frames=job.num_frames,
        total=_gib(need.total),
        transformer=_gib(need.transformer),
        text=resident,
        vae=_gib(need.vae),
        activations=_gib(need.activations),
    )


def _memory(device: DeviceInfo) -> Text:
    code = "memory.gpu_free" if device.device == "cuda" else "memory.cpu_free"
    return text(code, device=device_name(device), free=_gib(device.free), total=_gib(device.total))


def _advice(job: Job, device: DeviceInfo, offload_text: str = "auto") -> Text:
    """What would work, nearest first."""
    ways: list[Text] = []
    least = Plan(offload_text != "off")
    in_8_bits = replace(job, transformer=replace(job.transformer, quant_linear="int8_block"))
    if device.device == "cuda":
        offloaded, quantized = estimate(job, Plan(True)).total, estimate(in_8_bits, least).total
        if offload_text == "off" and offloaded <= device.free:
            ways.append(text("memory.try_offload", need=_gib(offloaded)))
        elif job.transformer.quant_linear == "off" and quantized <= device.free:
            ways.append(text("memory.try_8_bits", need=_gib(quantized)))
    ways.append(_card_advice(job, least))
    if job.model != "demo":
        ways.append(text("memory.try_demo"))
    joined = ways[0]
    for way in ways[1:]:
        joined = text("memory.either", first=joined, second=way)
    return joined


def _card_advice(job: Job, plan: Plan) -> Text:
    """The GPU that is large enough for a plan: the one that a person would buy, so with its own kernels."""
    card, small = smallest_card(job, plan=plan), smallest_card(job, quant_linear="int8_block", plan=plan)
    return text("memory.card_8_bits" if small < card else "memory.card", card=card, small=small)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _duration(seconds: float) -> Text:
    if seconds > 5400:
        return text("memory.hours", count=f"{seconds / 3600:.0f}")
    return text("memory.minutes", count=f"{max(seconds / 60, 1):.0f}")


def _transformer_activations(job: Job) -> int:
    """The worst moment of a block: in its ffn, or in its attention.

    Of the 8-bit rows that kernels compute with: 1.05 to 1.15 times what forwards of 1.3B and 14B held at 480p and 720p
    (`peak.forward.fast` in benchmarks/results). The floating-point forward is estimated at 1.5 times of 1.3B's.
    """
    config, width = job.transformer, DTYPE_BYTES[job.dtype]
    if config.quant_linear in PER_TOKEN_LINEARS and config.kernels.linear == config.kernels.attention == "triton":
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
    return 2 * config.num_layers * config.text_len * config.dim * DTYPE_BYTES[job.dtype]


def _vae_activations(job: Job, latents: int) -> int:
    """Decoding's worst moment; from an image also the whole clip in float32, of which its condition is made."""
    width, pixels = DTYPE_BYTES[job.dtype], job.width * job.height
    peak = decode_bytes(job.vae, job.width, job.height, latents, width, job.transformer.kernels.vae)
    clip = 3 * 4 * job.num_frames * pixels if job.transformer.in_dim > job.transformer.out_dim else 0
    frames = 3 * job.num_frames * pixels if job.device == "cpu" else 0  # uint8; beside a GPU they are in CPU memory
    return peak + clip + frames
