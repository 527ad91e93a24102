"""One forward of the whole transformer at its real sizes, checked and timed, on one GPU.

python benchmarks/forward.py --models 1_3b,14b --sizes 480p,720p --modes original,tuned,fast --out FILE.json
                             (--profile: the kernels of one forward by their time; --layers N: a cut network)

Modes: "original" is the plain eager bfloat16 network with dense attention by cuDNN, "tuned" the same arithmetic with
every fusion; "fast" is SageSLA with int8 rows, "fast_fp8" with fp8 rows, "sla_bf16" SLA without any 8 bits.

First the whole network of the demo model, with its own weights, in each 8-bit form: evaluation.md's bounds. Then each
mode on two layers at the model's real width and a ragged length: its error against float32 beside that of the same
arithmetic in plain PyTorch. A mode that fails is not timed. Then the times: CUDA events around each forward, their
median; all but the original are CUDA graphs, as in the pipeline. The weights are random, which changes no time: shapes
decide, and as many blocks are kept for any weights.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.targets import target
from turbodiffusion.checkpoint.load import load_transformer
from turbodiffusion.config import REFERENCE, TRITON, Kernels, WanConfig
from turbodiffusion.evaluation.result_file import Row, write_results
from turbodiffusion.inference import model_source as source
from turbodiffusion.models.cuda_graphs import CudaGraphCache
from turbodiffusion.models.wan import Context, WanTransformer
from turbodiffusion.nn.linear import QuantizedLinear
from turbodiffusion.ops.cases import OF_THE_EMULATION
from turbodiffusion.ops.cases import error as relative_l2
from turbodiffusion.presets import MODELS

PRESETS = {"1_3b": "wan2.1-t2v-1.3b", "14b": "wan2.1-t2v-14b"}
LATENTS = {"480p": (21, 60, 104), "720p": (21, 90, 160)}  # 81 frames of 832x480 and of 1280x720: 32760, 75600 tokens
CHECK_LATENT = (5, 60, 104)  # 7800 tokens, a multiple of no tile
CHECK_LAYERS = 2
DEMO_LATENT = (9, 32, 32)  # 33 frames of 256x256
TOPK = 0.1
FORWARDS = 7
DEVICE = torch.device("cuda")
GIB = 2**30


@dataclass(frozen=True)
class Mode:
    """How the network computes. bound: of its relative L2 error against float32, where evaluation.md gives one; it may
    never be over 1.1 times that of the same arithmetic in plain PyTorch."""

    attention: str
    linear: str
    kernels: Kernels
    bound: float
    row: str  # in the result file

    def config(self, base: WanConfig, kernels: Kernels) -> WanConfig:
        kinds = {"attention_type": self.attention, "quant_linear": self.linear}
        return replace(base, sla_topk=TOPK, kernels=kernels, **kinds)


BF16 = 0.02  # bfloat16 costs two narrow layers about 0.6%
BOUNDS = {name: target(f"error.forward.{name}") for name in ("int8", "fp8")}
MODES = {
    "original": Mode("original", "off", REFERENCE, BF16, "original.{}.forward_ms"),
    "tuned": Mode("original", "off", TRITON, BF16, "tuned.{}.forward_ms"),
    "sla_bf16": Mode("sla", "off", TRITON, BF16, "sla_bf16.{}.forward_ms"),
    "fast": Mode("sagesla", "int8_row", TRITON, BOUNDS["int8"], "forward.{}.ms"),
    "fast_fp8": Mode("sagesla", "fp8_row", TRITON, BOUNDS["fp8"], "fast_fp8.{}.forward_ms"),
}


@torch.no_grad()
def build(config: WanConfig, dtype: torch.dtype = torch.bfloat16) -> WanTransformer:
    """A network with random weights, none of them zero, made on the GPU."""
    torch.manual_seed(0)
    model = WanTransformer(config, device=DEVICE, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter += 0.1 * torch.randn_like(parameter)
        elif name.endswith("modulation"):
            nn.init.normal_(parameter, std=0.5)  # gates that let through what the blocks compute
        elif "proj_l" in name or name == "head.head.weight":
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


@torch.no_grad()
def copy_weights(source: WanTransformer, target: WanTransformer) -> None:
    """The same weights in another form. `target` may lack SLA's projection."""
    for name, module in target.named_modules():
        twin = source.get_submodule(name)
        if isinstance(module, QuantizedLinear):
            module.load_weight(twin.get_parameter("weight"))
        for leaf, parameter in module.named_parameters(recurse=False):
            parameter.copy_(twin.get_parameter(leaf))


def inputs(config: WanConfig, latent: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """A noisy latent, its time, and the text's states."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    x_BCTHW = torch.randn(1, config.in_dim, *latent, generator=generator, device=DEVICE)
    text_BSE = torch.randn(1, config.text_len, config.text_dim, generator=generator, device=DEVICE)
    return x_BCTHW, torch.full((1,), 937.5, device=DEVICE), text_BSE


def by_cudnn(mode: str) -> AbstractContextManager:
    """The plain network leaves the choice of dense attention to PyTorch; here it is cuDNN's."""
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if mode == "original" else nullcontext()


def velocity(model: WanTransformer, latent: tuple[int, int, int]) -> Tensor:
    x_BCTHW, t_B, text_BSE = inputs(model.config, latent)
    return model(x_BCTHW, t_B, model.encode_context(text_BSE))


def check(name: str, mode: Mode, base: WanConfig) -> tuple[bool, Row]:
    """Compare two layers of the network with float32, and with the same arithmetic by the references."""
    base = replace(base, num_layers=CHECK_LAYERS)
    dense = {"sage": "original", "sagesla": "sla"}
    exact_model = build(
        replace(
            mode.config(base, REFERENCE), quant_linear="off", attention_type=dense.get(mode.attention, mode.attention)
        ),
        torch.float32,
    )
    exact = velocity(exact_model, CHECK_LATENT)
    outputs = []
    for kernels in (REFERENCE, mode.kernels):
        model = build(mode.config(base, kernels))
        copy_weights(exact_model, model)
        with by_cudnn(name if kernels is mode.kernels else ""):
            outputs.append(velocity(model if kernels == REFERENCE else model.prepare(), CHECK_LATENT))
    emulated, actual = outputs
    error, of_emulation = relative_l2(actual, exact), relative_l2(emulated, exact)
    limit = min(mode.bound, OF_THE_EMULATION * of_emulation)
    right = error <= limit  # false for NaN
    print(
        f"{'    ' if right else 'MISS'} {name:<10} {CHECK_LAYERS} layers: {error:.3%} from float32 (at most "
        f"{limit:.3%}), {relative_l2(actual, emulated):.3%} from its own arithmetic in PyTorch",
        flush=True,
    )
    method = f"{CHECK_LAYERS} layers of {base.dim}, latent {CHECK_LATENT}, random weights, against float32"
    return right, Row(f"error.{name}.{base.dim}", error, "relative L2", "lower", limit, method)


def demo_errors() -> list[Row]:
    """The relative L2 error of the demo model's velocity in 8-bit rows against float32, at three noise levels."""
    origin = source.resolve_model("demo")
    preset, paths = origin.preset, source.fetch_files(origin)
    x_BCTHW, _, text_BSE = inputs(preset.transformer, DEMO_LATENT)
    text_BSE[:, 16:] = 0  # past a prompt's end; its states are random, so that this needs no text encoder

    def velocities(kind: str, kernels: Kernels, dtype: torch.dtype) -> list[Tensor]:
        config = replace(preset.transformer, quant_linear=kind, kernels=kernels)
        model = WanTransformer(config, device="meta", dtype=dtype)
        load_transformer(model, paths["transformer"], device=DEVICE)
        context = model.eval().prepare().encode_context(text_BSE)
        return [model(x_BCTHW, torch.full((1,), t, device=DEVICE), context) for t in (990.0, 700.0, 300.0)]

    exact = velocities("off", REFERENCE, torch.float32)
    rows = []
    for name, bound in BOUNDS.items():
        kind = f"{name}_row"
        pairs = zip(velocities(kind, TRITON, torch.bfloat16), exact, strict=True)
        error = max(relative_l2(actual, expected) for actual, expected in pairs)
        method = f"demo model, {kind} by Triton in bfloat16 against float32, worst of three noise levels"
        rows.append(Row(f"error.forward.{name}", error, "relative L2", "lower", bound, method))
        print(
            f"{'MISS' if rows[-1].misses else '    '} demo model {kind}: {error:.3%} from float32 (at most {bound:.1%})"
        )
    return rows


def measure(run: Callable[[], Tensor]) -> tuple[float, float, float]:
    """Median milliseconds of a forward, of the host's part in it, and the bytes at its worst moment."""
    torch.cuda.reset_peak_memory_stats()
    launched, again = run(), run()  # the second makes a graph, where there is one
    assert launched.isfinite().all() and relative_l2(again, launched) < 2**-8, "a graph's output is not the network's"
    times, host = [], []
    for _ in range(FORWARDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        run()
        end.record()
        host.append(1e3 * (time.perf_counter() - begin))
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), statistics.median(host), torch.cuda.max_memory_allocated()


def print_profile(run: Callable[[], Tensor], rows: int = 25) -> None:
    """The kernels of one forward that take longest, all calls of each together."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    ran = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events = sorted(ran, key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    for event in events[:rows]:
        share = event.self_device_time_total / total
        print(f"     {event.self_device_time_total / 1e3:9.3f} ms {share:6.1%} {event.count:>6} x {event.key[:100]}")
    print(f"     {total / 1e3:9.3f} ms in {sum(event.count for event in events)} kernels", flush=True)


def time_mode(name: str, mode: Mode, base: WanConfig, at: str, sizes: Sequence[str], profiled: bool) -> list[Row]:
    """One network at each size; `at` is its name in the rows, and they say where it was cut."""
    rows = []
    began = time.perf_counter()
    model = build(mode.config(base, mode.kernels))
    if mode.kernels != REFERENCE:
        model.prepare()
    torch.cuda.empty_cache()
    print(f"     {name} built in {time.perf_counter() - began:.1f} s", flush=True)
    for size in sizes:
        x_BCTHW, t_B, text_BSE = inputs(model.config, LATENTS[size])
        context: Context = model.encode_context(text_BSE)
        graphs = CudaGraphCache()  # of this size alone

        def run(
            x: Tensor = x_BCTHW, t: Tensor = t_B, context: Context = context, graphs: CudaGraphCache = graphs
        ) -> Tensor:
            if mode.kernels != REFERENCE:
                return graphs("velocity", model, x, t, context)
            with by_cudnn(name):
                return model(x, t, context)

        ms, host, peak = measure(run)
        row = mode.row.format(f"{at}.{size}")
        print(f"     {row:<40} {ms:9.2f} ms  (host {host:.2f} ms, peak {peak / GIB:.2f} GiB)", flush=True)
        how = f"{mode.attention}, {mode.linear}, {base.num_layers} layers, 81 frames, median of {FORWARDS} forwards"
        graphed = f"; the host needs {host:.1f} ms" if mode.kernels == REFERENCE else " around a CUDA graph"
        rows.append(Row(row, ms, "ms", "lower", target(row), f"{how}, CUDA events{graphed}"))
        peak_row = f"peak.forward.{name}.{at}.{size}.gib"
        rows.append(
            Row(peak_row, peak / GIB, "GiB", "lower", None, "weights, a forward and its capture, allocated by PyTorch")
        )
        if profiled:
            print_profile(run)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1_3b", help=f"by comma, of {', '.join(PRESETS)}")
    parser.add_argument("--sizes", default="480p", help=f"by comma, of {', '.join(LATENTS)}")
    parser.add_argument("--modes", default="original,tuned,fast", help=f"by comma, of {', '.join(MODES)}")
    parser.add_argument("--layers", type=int, help="cut the network to so many layers")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one forward by their time")
    parser.add_argument("--out", type=Path, help="a result file; rows that are in it and not measured now stay")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("an NVIDIA GPU is needed")
    with torch.inference_mode():
        rows = demo_errors()
        right = not any(row.misses for row in rows)
        for model in chosen.models.split(","):
            base = MODELS[PRESETS[model]].transformer
            at = model
            if chosen.layers is not None:
                base, at = replace(base, num_layers=chosen.layers), f"{model}_{chosen.layers}_layers"
            for name in chosen.modes.split(","):
                mode = MODES[name]
                good, row = check(name, mode, base)
                rows.append(row)
                right = right and good
                torch.cuda.empty_cache()
                if good:
                    rows += time_mode(name, mode, base, at, chosen.sizes.split(","), chosen.profile)
                torch.cuda.empty_cache()
    if chosen.out:
        write_results(chosen.out, rows, "python " + " ".join(sys.argv), keep=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
