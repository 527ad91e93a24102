"""The fused VAE against float32, against its layers one by one, and against the clock, on one GPU.

python benchmarks/vae.py --out FILE.json      (--profile: where the time goes; --alternatives: other ways to convolve)

In this order, so that a run that is cut short has said the most: the first decode of the process (cold), checks, times
of the real size (random weights, bfloat16), then the ways to get there, as long as `--seconds` allow. A speed counts
only where the checks of the same run passed. `--smoke` goes through all of it at a tiny size, on a CPU under
TRITON_INTERPRET=1 (minutes).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.targets import target
from turbodiffusion.checkpoint.load import load_vae
from turbodiffusion.config import VAEConfig
from turbodiffusion.evaluation.result_file import Row, write_results
from turbodiffusion.inference.model_source import fetch_files, resolve_model
from turbodiffusion.models.vae.fused import Choices, FusedCoder, attend, attend_written_out, pair_columns
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.ops.vae.norm_silu import norm_silu
from turbodiffusion.ops.vae.winograd import WinogradProducts, transform_weight

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOW = torch.bfloat16
START = time.perf_counter()
BEST, CHUNK = Choices(), 2  # as the pipeline has them on a large GPU
# Ways to decode 81 frames at 832x480: the choices and how many latent frames at once, the most telling first.
VARIANTS: dict[str, tuple[Choices, int]] = {
    "no_winograd": (replace(BEST, winograd=False), CHUNK),
    "chunk10": (BEST, 10),
    "chunk4": (BEST, 4),
    "write_out_attention": (replace(BEST, write_out_attention=True), CHUNK),
    "no_fold": (replace(BEST, fold_upsample=False), CHUNK),
    "no_taps": (replace(BEST, few_channels_head=False), CHUNK),
    "pair_columns": (replace(BEST, winograd=False, pair_columns=96), CHUNK),
    "chunk1": (BEST, 1),
}


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], repeats: int, warm: int = 1) -> float:
    """Median of `repeats` runs, each from an idle device to an idle device."""
    times = []
    for _ in range(warm + repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm:])


def consume(vae: WanVAE, latent: Tensor) -> None:
    for _ in vae.decode_chunks(latent):
        pass


def in_chunks(coder: Callable[[Tensor], Tensor], x_BCTHW: Tensor, size: int) -> Iterator[Tensor]:
    yield coder(x_BCTHW[:, :, :1])
    for start in range(1, x_BCTHW.shape[2], size):
        yield coder(x_BCTHW[:, :, start : start + size])


def random_latent(config: VAEConfig, frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    shape = (1, config.z_dim, frames, height, width)
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def shared(vae: WanVAE, *, dtype: torch.dtype = LOW, **how: Any) -> WanVAE:
    """Another WanVAE of the same weights."""
    other = WanVAE(vae.config, device="meta", dtype=dtype, **how)
    other.load_state_dict({name: value.to(dtype) for name, value in vae.state_dict().items()}, assign=True)
    return other.eval().requires_grad_(False)


@contextmanager
def exact() -> Iterator[None]:
    """Float32 is float32: no TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """NaN where something is not finite."""
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("nan")
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@dataclass(frozen=True)
class Exact:
    """A small or ragged size: z, and what float32 and the bfloat16 layers make of it."""

    what: str
    z: Tensor
    low: Tensor
    expected: Tensor
    video: Tensor
    low_latent: Tensor
    expected_latent: Tensor


def exact_results(plain: WanVAE) -> list[Exact]:
    float32 = shared(plain, dtype=torch.float32)
    results = []
    for frames, height, width in [(3, 7, 9), (6, 12, 20)] if DEVICE.type == "cuda" else [(3, 2, 3)]:
        latent = random_latent(plain.config, frames, height, width, seed=frames)
        with exact():
            expected = float32.decode(latent)
            video = expected.clamp(-1, 1)
            expected_latent = float32.encode(video)
        mean, std = plain._latent_scale(DEVICE)
        z = plain.conv2(plain._prepare(latent.float() * std + mean))
        what = f"{frames} latent frames of {width}x{height}"
        results.append(Exact(what, z, plain.decode(latent), expected, video, plain.encode(video), expected_latent))
    return results


def check(name: str, pairs: Sequence[tuple[Tensor, Tensor, Tensor, str]]) -> Row:
    """The error of what was made over the bfloat16 layers', the worst size; pairs: made, plain, float32, size."""
    worst, line = 0.0, ""
    for made, low, expected, what in pairs:
        error, usual = relative_l2(made, expected), relative_l2(low, expected)
        ratio = error / usual if error == error else float("inf")
        if ratio > worst:
            worst, line = ratio, f"error {error:.2e}, of the layers {usual:.2e}, {what}"
    print(f"check {name:<22} {worst:6.3f} times the plain error  ({line})", flush=True)
    method = f"relative L2 error against float32 over the bfloat16 layers'; {line}"
    return Row(f"vae.check.{name}.ratio", worst, "x", "lower", 1.1, method)


def check_decode(plain: WanVAE, sizes: Sequence[Exact], name: str, choices: Choices, size: int) -> Row:
    def made(x: Exact) -> Tensor:
        return torch.cat(list(in_chunks(FusedCoder(plain.decoder, choices), x.z, size)), dim=2)

    return check(f"decode.{name}", [(made(x), x.low, x.expected, x.what) for x in sizes])


def check_encode(plain: WanVAE, sizes: Sequence[Exact]) -> Row:
    fast = shared(plain, impl="triton")
    return check("encode", [(fast.encode(x.video), x.low_latent, x.expected_latent, x.what) for x in sizes])


def check_demo() -> list[Row]:
    """The shipped VAE on a smooth moving picture, against float32."""
    source = resolve_model("demo")
    path = fetch_files(source)["vae"]

    def load(dtype: torch.dtype, **how: Any) -> WanVAE:
        vae = WanVAE(source.preset.vae, device="meta", dtype=dtype, **how)
        load_vae(vae, path, device=DEVICE)
        return vae.eval().requires_grad_(False)

    frames, height, width = (33, 256, 256) if DEVICE.type == "cuda" else (5, 16, 24)
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n, device=DEVICE) for n in (frames, height, width)), indexing="ij")
    waves = [torch.sin(9 * x + 4 * t), torch.cos(7 * y - 5 * t), torch.sign(torch.sin(20 * (x + y) + 6 * t))]
    video = 0.8 * torch.stack(waves)[None]
    float32 = load(torch.float32)
    with exact():
        latent = float32.encode(video)
        expected = float32.decode(latent)
    rows = []
    for name, vae in {"plain": load(LOW), "fast": load(LOW, impl="triton", latents_per_chunk=CHUNK)}.items():
        error = (vae.decode(latent).double() - expected.double()).square().mean()
        psnr = (10 * torch.log10(4 / error)).item()
        target = 50.0 if name == "fast" else None
        print(f"check demo {name:<17} {psnr:6.2f} dB PSNR against float32", flush=True)
        method = f"demo VAE, bfloat16 against float32, {frames} frames {width}x{height}"
        rows.append(Row(f"vae.demo.{name}.psnr", psnr, "dB", "higher", target, method))
    return rows


def alternatives(frames: int, scale: int) -> list[str]:
    """Milliseconds and useful TFLOP/s of one 3x3x3 convolution, in several forms, at the sizes of the last stages."""
    from turbodiffusion.ops.vae.kernels import norm_silu as norm_silu_kernels

    lines = []
    for channels, height, width, count in (
        (96, 480, 832, frames),
        (192, 240, 416, frames),
        (384, 120, 208, frames // 2),
    ):
        channels, height, width = channels // scale, height // scale, width // scale
        work = 2.0 * 27 * channels * channels * count * height * width
        x = torch.randn(1, count + 2, height, width, channels, device=DEVICE).to(LOW)
        x3 = torch.randn(count, height, width, 3 * channels, device=DEVICE).to(LOW).movedim(-1, 1)
        weight = torch.randn(channels, channels, 3, 3, 3, device=DEVICE).to(LOW).mul_(channels**-0.5)
        inner, flat = torch.channels_last_3d, torch.channels_last
        weight = weight.contiguous(memory_format=inner)
        paired = pair_columns(weight).contiguous(memory_format=inner)
        stacked_in = weight.permute(0, 2, 1, 3, 4).flatten(1, 2).contiguous(memory_format=flat)
        stacked_out = weight.permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(memory_format=flat)
        x_BCTHW, x_NCHW = x.movedim(-1, 1), x[0].movedim(-1, 1)
        gamma = torch.ones(channels, device=DEVICE, dtype=LOW)
        kernels = [kernel.contiguous(memory_format=flat) for kernel in transform_weight(weight)]
        frames_2d = [torch.randn_like(x_NCHW[: count // 2]) for _ in range(4)]
        products = WinogradProducts(tuple(torch.randn_like(x[:, : count // 2]) for _ in range(4)))
        cache = {"cache_BNHWC": x[:, :2], "cache_frames": 2, "impl": "triton"}
        ways: dict[str, Callable[[], Any]] = {
            "conv3d": lambda x=x_BCTHW, w=weight: F.conv3d(x, w, padding=(0, 1, 1)),
            "conv3d, two columns": lambda x=x_BCTHW, w=paired: F.conv3d(x, w, stride=(1, 1, 2), padding=(0, 1, 1)),
            "conv2d x 4, winograd": lambda v=frames_2d, w=kernels: list(map(partial(F.conv2d, padding=1), v, w)),
            "conv2d, taps in": lambda x=x3, w=stacked_in: F.conv2d(x, w, padding=1),
            "conv2d, taps out": lambda x=x_NCHW, w=stacked_out: F.conv2d(x, w, padding=1),
            "norm_silu": lambda x=x, g=gamma, c=cache: norm_silu(x[:, 2:], g, **c),
            "norm_silu, middle": lambda m=products, g=gamma, c=cache: norm_silu(m, g, transform=True, **c),
            "norm_silu, start": lambda m=products, x=x, g=gamma, c=cache: norm_silu(
                m, g, residual_BTHWC=x[:, 2:], keep_sum=True, transform=True, **c
            ),
        }
        # Tensors read and written, of the size of x; the first also copies two frames twice.
        passes = {"norm_silu": 2, "norm_silu, middle": 4, "norm_silu, start": 6}
        for name, run in ways.items():
            tiles = (1024, 2048, 4096) if passes.get(name, 0) > 2 else (norm_silu_kernels.PAIR_TILE,)
            for tile in tiles:
                with patch.object(norm_silu_kernels, "PAIR_TILE", tile):
                    try:
                        ms = 1e3 * seconds(run, 5, warm=2)
                    except RuntimeError as failure:
                        lines.append(f"  {channels:>4} channels  {name:<24} FAILED {str(failure).splitlines()[0][:80]}")
                        continue
                size = 2e-9 * passes.get(name, 0) * count * height * width * channels
                rate = f"{size / ms:7.2f} TB/s, tile {tile}" if size else f"{work / ms / 1e9:7.1f} TFLOP/s"
                lines.append(f"  {channels:>4} channels  {name:<24} {ms:8.3f} ms {rate}")
    lines += attention_ways(4, 6240 // scale**2, 384 // scale)
    return lines


def attention_ways(frames: int, positions: int, channels: int) -> list[str]:
    q, k, v = (torch.randn(frames, positions, channels, device=DEVICE).to(LOW) for _ in range(3))
    ways = {"sdpa": lambda: attend(q, k, v), "written out": lambda: attend_written_out(q, k, v)}
    work = 4.0 * frames * positions * positions * channels
    lines = []
    for name, run in ways.items():
        ms = 1e3 * seconds(run, 5)
        lines.append(f"  attention      {name:<24} {ms:8.3f} ms {work / ms / 1e9:7.1f} TFLOP/s")
    return lines


def profile(vae: WanVAE, z: Tensor, size: int) -> None:
    """Milliseconds of each layer over a whole decode, then the kernels that take most."""
    coder = FusedCoder(vae.decoder, BEST)
    modules = (*vae.decoder.middle, *vae.decoder.upsamples)
    spans: list[tuple[int, float]] = []

    def timed(index: int, layer: Any) -> Any:
        def run(*args: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            out = layer(*args)
            synchronize()
            spans.append((index, time.perf_counter() - start))
            return out

        return run

    coder._layers = [timed(index, layer) for index, layer in enumerate(coder._layers)]
    total = seconds(lambda: list(map(len, in_chunks(coder, z, size))), 1, warm=0)
    for index, module in enumerate(modules):
        ms = 1e3 * sum(span for n, span in spans if n == index)
        print(f"layer {index:>2} {type(module).__name__:<16} {ms:8.2f} ms")
    rest = total - sum(span for _, span in spans)
    print(f"first convolution and head  {1e3 * rest:8.2f} ms; each layer waited for: slower than the whole at once")
    if DEVICE.type != "cuda":
        return
    activities = [torch.profiler.ProfilerActivity.CUDA]
    coder = FusedCoder(vae.decoder, BEST)
    with torch.profiler.profile(activities=activities) as profiler:
        for chunk in in_chunks(coder, z, size):
            del chunk
        synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events)
    for event in events[:30]:
        share = event.self_device_time_total / busy
        print(f"{event.self_device_time_total / 1e3:9.2f} ms {share:6.1%} {event.count:>5} times  {event.key[:110]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a result file; rows that are in it and not measured now stay")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by layer and by kernel")
    parser.add_argument("--alternatives", action="store_true", help="time other ways to convolve and to attend")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="other ways to decode that are timed, by comma")
    parser.add_argument("--seconds", type=float, default=60, help="start nothing optional after so many")
    parser.add_argument("--smoke", action="store_true", help="a tiny size: shows that this script runs, nothing else")
    chosen = parser.parse_args(arguments)
    if DEVICE.type != "cuda" and not chosen.smoke:
        parser.error("an NVIDIA GPU is needed; on a CPU, tests/models/test_models/vae/fused.py checks the results")
    with torch.inference_mode():
        rows = measure(chosen)
    print(f"\n{time.perf_counter() - START:.0f} s in all")
    for row in rows:
        value = "-" if row.value is None else f"{row.value:10.3f}"
        print(f"{row.name:<36} {value} {row.unit:<4}{' MISSES ' + str(row.target) if row.misses else ''}")
    if chosen.out:
        write_results(chosen.out, rows, "python " + " ".join(sys.argv), keep=True)
    return 1 if any(row.misses for row in rows if ".check." in row.name) else 0


def measure(chosen: argparse.Namespace) -> list[Row]:
    """All rows."""
    torch.manual_seed(0)
    smoke = chosen.smoke
    config = (
        VAEConfig(dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True))
        if smoke
        else VAEConfig()
    )
    size_480, size_720, length = ((2, 3), (3, 4), 6) if smoke else ((60, 104), (90, 160), 21)
    repeats = 1 if smoke else 3
    plain = WanVAE(config, device=DEVICE, dtype=LOW).eval().requires_grad_(False)
    fast = shared(plain, impl="triton", latents_per_chunk=CHUNK)
    rows: list[Row] = []

    def add(name: str, value: float, unit: str, method: str) -> None:
        rows.append(Row(f"vae.{name}", value, unit, "lower", target(f"vae.{name}"), method))
        print(f"[{time.perf_counter() - START:5.1f} s] vae.{name} {value:.3f} {unit}", flush=True)

    latent = random_latent(config, length, *size_480)
    real = "81 frames 832x480, random weights, bfloat16"
    once = seconds(lambda: consume(fast, latent), 1, warm=0)
    add("decode.480p.cold_s", once, "s", f"{real}: first decode of the process, kernels compiled")
    sizes = exact_results(plain)
    rows.append(check_decode(plain, sizes, "best", BEST, CHUNK))
    rows += check_demo()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ms = 1e3 * seconds(lambda: consume(fast, latent), repeats + 2)
    add("decode.480p.ms", ms, "ms", f"{real}: median of {repeats + 2}, chunks not kept, from idle to idle")
    if DEVICE.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        add("decode.480p.peak_gib", peak, "GiB", f"{real}: most that PyTorch held, weights included")
    plain_ms = 1e3 * seconds(lambda: consume(plain, latent), 2)
    add("decode.480p.plain_ms", plain_ms, "ms", f"{real}: layer by layer, median of 2")
    mean, std = plain._latent_scale(DEVICE)
    z = plain.conv2(plain._prepare(latent * std + mean))
    if chosen.profile:
        profile(plain, z, CHUNK)
    if chosen.alternatives:
        print("\n".join(alternatives(8 if smoke else 16, 8 if smoke else 1)), flush=True)

    def variant(name: str) -> None:
        choices, size = VARIANTS[name]
        rows.append(check_decode(plain, sizes, name, choices, size))
        run = seconds(lambda: [None for _ in in_chunks(FusedCoder(plain.decoder, choices), z, size)], repeats)
        add(f"decode.480p.{name}.ms", 1e3 * run, "ms", f"{real}: {choices}, {size} latent frames at once")

    def decode_720p() -> None:
        large = random_latent(config, length, *size_720)
        run = seconds(lambda: consume(fast, large), repeats)
        add("decode.720p.ms", 1e3 * run, "ms", "81 frames 1280x720, random weights, bfloat16")

    def encode() -> None:
        rows.append(check_encode(plain, sizes))
        video = fast.decode(latent).clamp(-1, 1)
        add("encode.480p.ms", 1e3 * seconds(lambda: fast.encode(video), repeats), "ms", real)
        add("encode.480p.plain_ms", 1e3 * seconds(lambda: plain.encode(video), 1), "ms", f"{real}: layer by layer")
        picture = video[:, :, :1]
        add("encode.480p.frame_ms", 1e3 * seconds(lambda: fast.encode(picture), repeats), "ms", "one frame 832x480")

    extra: list[Callable[[], None]] = [
        lambda name=name: variant(name) for name in filter(None, chosen.variants.split(","))
    ]
    for run in (*extra[:2], decode_720p, encode, *extra[2:]):
        if time.perf_counter() - START > chosen.seconds and not smoke:
            print("no time left for the rest; --seconds gives more", flush=True)
            break
        run()
    return rows


if __name__ == "__main__":
    sys.exit(main())
