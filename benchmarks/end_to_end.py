"""From a prompt to the closed mp4, Wan2.1 T2V 1.3B at 480p with random weights of the real sizes, on one GPU.

python benchmarks/end_to_end.py --weights FOLDER [--out FILE.json] [--text full] [--runs 3] [--skip-cold]
    [--skip-resident] [--max-memory 8]

FOLDER is made once: a transformer in 8-bit blocks, as it is published, the VAE, and umT5-XXL ("full", 11 GB) or two
layers of it ("small", to try this script). The GPU's speed does not depend on the values; what they paint is noise of
little contrast, about as hard on the mp4 encoder as a video. Warm: `Pipeline.generate` and `Result.save` in a process
that has made a video of the same shape, every prompt and seed new. Cold: `turbodiffusion generate` in a fresh process,
the files in the page cache and the compiled caches filled by one that is not counted. Medians.

Warm videos are made twice: with every part on the GPU, and in the memory of a small card (`--max-memory`), where the
text encoder rests in CPU memory. PyTorch is held to that memory, less the CUDA context, from the load on: a plan that
was too small would fail. The two must show the same video but for rounding.
"""

import argparse
import gc
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.targets import target
from turbodiffusion.checkpoint.folder import Stored, in_blocks, read_folder, write_folder
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.evaluation.result_file import Row, read_results, write_results
from turbodiffusion.inference.model_source import DEMO_FOLDER
from turbodiffusion.inference.pipeline import Pipeline
from turbodiffusion.media.video import read_frames
from turbodiffusion.memory import plan as memory
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import MODELS
from turbodiffusion.request import Request

ROOT = Path(__file__).parents[1]
MODEL = "1_3b.480p"
PEAK = f"peak.{MODEL}.gib"
SIZE = (81, 480, 832, 3)
CLOSE = 1.0  # level of 255, on average, between two ways to the same video: rounding of a bfloat16 VAE
TEXT_LAYERS = {"full": TextConfig().num_layers, "small": 2}
STARTS = {"import": "import turbodiffusion.inference.pipeline", "cuda": "import torch; torch.zeros(1, device='cuda')"}
PROMPT = (
    "Number {}: an orange cat in a yellow raincoat runs along a pier at dusk while waves break on the stones below, "
    "the camera follows it from the side, lamps light up one after the other, and far away a lighthouse turns."
)


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which activations keep their size: matrices of 1 / sqrt(inputs), gains 1, biases 0."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for name, x in module.named_parameters():
        if id(x) in embeddings:
            x.normal_(generator=generator)
        elif name.endswith("modulation"):
            x.normal_(generator=generator).mul_(x.shape[-1] ** -0.5)
        elif x.ndim == 1 or x[0].numel() == 1:  # a bias, or a gain for each channel
            x.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            x.normal_(generator=generator).mul_(x[0].numel() ** -0.5)
    return module


def make_weights(
    folder: Path, transformer: WanConfig, vae: VAEConfig, text: TextConfig, device: str, sampling: Mapping[str, object]
) -> None:
    """Write a model folder of random weights: bfloat16, the VAE float32, the transformer's linears in int8 blocks."""
    sizes = {"transformer": replace(transformer, quant_linear="off"), "vae": vae, "text": text}
    kinds = {"transformer": WanTransformer, "vae": WanVAE, "text": TextEncoder}
    parts = {}
    for seed, (part, config) in enumerate(sizes.items()):
        dtype = torch.float32 if part == "vae" else torch.bfloat16
        torch.manual_seed(seed)
        module = kinds[part](config, device=device, dtype=dtype)
        if part != "text":  # its own are spread so that its unscaled attention does not saturate
            fill(module, seed)
        if part == "vae":
            # Not flat, and of little contrast: noise at full contrast takes the mp4 encoder twice a video's time.
            module.decoder.head.get_submodule("2").weight.data.mul_(0.05)
        stored = Stored(module.state_dict())
        parts[part] = config, in_blocks(stored, part) if part == "transformer" else stored
    write_folder(folder, parts, DEMO_FOLDER / "spiece.model", {"sampling": sampling, "about": {"file_name": "Bench"}})


def request(number: int, steps: int) -> Request:
    return Request(PROMPT.format(number), seed=number, num_steps=steps, num_frames=SIZE[0], resolution="480p")


def warm_rows(pipeline: Pipeline, steps: int, runs: int, outputs: Path, weights: str, way: str = "") -> list[Row]:
    """Seconds of the whole and of its stages. way: an end for the rows' names."""
    whole: list[float] = []
    stages: list[Mapping[str, float]] = []
    for number in range(runs + 1):
        start = time.perf_counter()
        result = pipeline.generate(request(100 * steps + number, steps))
        path = result.save(outputs)
        seconds = time.perf_counter() - start
        if number == 0:
            frames = read_frames(path)
            assert frames.shape == SIZE, f"{path} holds {frames.shape}"
            continue
        whole.append(seconds)
        stages.append(result.seconds)
        print(f"{steps} steps: {seconds:.3f} s, {', '.join(f'{k} {v:.3f}' for k, v in result.seconds.items())}")
    name = f"e2e.{MODEL}.{steps}steps{way}"
    method = f"{weights}; median of {runs} prompts and seeds, {min(whole):.3f} to {max(whole):.3f}"
    rows = [Row(f"{name}.warm_s", statistics.median(whole), "s", "lower", target(f"{name}.warm_s"), method)]
    for stage in stages[0]:
        median = statistics.median(seconds.get(stage, 0.0) for seconds in stages)
        rows.append(Row(f"{name}.{stage}_s", median, "s", "lower", None, f"stage of the warm run; {method}"))
    return rows


def resident_rows(folder: Path, rows: list[Row], runs: int, outputs: Path, weights: str) -> NDArray[np.uint8]:
    """Add the rows of a GPU that holds every part; returns the frames of the first video."""
    first = request(1, 4)
    pipeline = Pipeline.load(str(folder), device="cuda", quant_linear="on", offload_text="off", requests=[first])
    frames = pipeline.generate(first).frames
    torch.cuda.reset_peak_memory_stats()
    rows += warm_rows(pipeline, 4, runs, outputs, weights)
    peak = torch.cuda.max_memory_allocated() / memory.GIB
    method = f"{weights}; PyTorch's tensors at their most while warm videos are made; {pipeline.model.memory_plan}"
    rows.append(Row(f"peak.{MODEL}.resident.gib", peak, "GiB", "lower", None, method))
    rows += warm_rows(pipeline, 2, runs, outputs, weights)
    return frames


def offload_rows(
    chosen: argparse.Namespace, expected: NDArray[np.uint8] | None, outputs: Path, weights: str
) -> list[Row]:
    """The rows of a GPU of `chosen.max_memory` GiB. Raises AssertionError unless the first video is as expected."""
    limit = chosen.max_memory * memory.GIB - memory.CUDA_CONTEXT
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties("cuda").total_memory)
    torch.cuda.reset_peak_memory_stats()
    first = request(1, 4)
    pipeline = Pipeline.load(
        str(chosen.weights),
        device="cuda",
        quant_linear="on",
        offload_text="on",
        max_memory=chosen.max_memory,
        requests=[first],
    )
    frames = pipeline.generate(first).frames
    compared = "not compared"
    if expected is not None:
        off = float(np.abs(frames.astype(np.int16) - expected).mean())
        assert off < CLOSE, f"another video than with every part on the GPU: {off:.2f} levels on average"
        compared = f"{off:.3f} levels of 255 from the resident video"
    weights = f"{weights}; {pipeline.model.memory_plan}; {compared}"
    rows = warm_rows(pipeline, 4, chosen.runs, outputs, weights, way=".offload")
    peak, reserved = (
        count() / memory.GIB for count in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    )
    method = f"{weights}; PyTorch's tensors at their most, load and first video included; reserved {reserved:.2f} GiB"
    rows.append(Row(PEAK, peak, "GiB", "lower", target(PEAK), method))
    return rows


def speedup_rows(rows: Sequence[Row], out: Path | None) -> list[Row]:
    """Of the diffusion alone, over 50 steps of two forwards each, where `benchmarks/forward.py` wrote them to `out`."""
    earlier = {row.name: row.value for row in read_results(out)} if out is not None and out.exists() else {}
    here = {row.name: row.value for row in rows}
    found = []
    for slow, steps in (("original", 4), ("original", 2), ("tuned", 4)):
        forward, seconds = earlier.get(f"{slow}.{MODEL}.forward_ms"), here.get(f"e2e.{MODEL}.{steps}steps.denoise_s")
        if forward and seconds:
            method = f"100 forwards of {forward:.1f} ms over {seconds:.3f} s; run benchmarks/forward.py just before"
            name = f"speedup.{slow}.{steps}steps"
            found.append(Row(name, forward / 10 / seconds, "x", "higher", target(name), method))
    return found


def cold_rows(folder: Path, runs: int, outputs: Path, weights: str) -> list[Row]:
    """Seconds from the start of the process to its end; the first fills the caches and is told in the method.

    The stages are those that the process prints, in tenths of a second. What they leave, start_s, is imports,
    CUDA's start, planning, writing the mp4 and the process's end; the first two by themselves, in processes that do
    nothing else, are import_s and cuda_s (with PyTorch's import, which both have).
    """
    for file in folder.iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 26):
                pass
    seconds, stages = [], []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # Bytecode is kept where it can be: without, a process compiles PyTorch's sources, which no usual installation does.
    environment |= {"PYTHONPYCACHEPREFIX": str(outputs.resolve() / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    environment["LC_ALL"] = "C.UTF-8"  # what the process prints is read, in English
    for number in range(runs + 1):
        command = [sys.executable, "-m", "turbodiffusion", "generate", PROMPT.format(9000 + number)]
        command += ["--model", str(folder), "--seed", str(9000 + number), "--num-steps", "4", "--quant-linear", "on"]
        command += ["--num-frames", str(SIZE[0]), "--resolution", "480p", "--output", str(outputs)]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
        print(done.stderr, end="")  # a warning that kernels are compiled or checked again would explain much
        stages.append(printed_stages(done.stderr))
        stages[-1]["start"] = seconds[-1] - sum(stages[-1].values())
        for part, code in STARTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            stages[-1][part] = time.perf_counter() - start
        print(f"a process: {seconds[-1]:.2f} s, {', '.join(f'{k} {v:.1f}' for k, v in stages[-1].items())}", flush=True)
    first, *counted = seconds
    name = f"e2e.{MODEL}.4steps.cold"
    method = f"{weights}; median of {runs} processes after one of {first:.1f} s, files in the page cache"
    rows = [Row(f"{name}_s", statistics.median(counted), "s", "lower", target(f"{name}_s"), method)]
    for stage in stages[0]:
        median = statistics.median(of_one[stage] for of_one in stages[1:])
        rows.append(Row(f"{name}.{stage}_s", median, "s", "lower", None, f"part of a cold process; {method}"))
    return rows


def printed_stages(log: str) -> dict[str, float]:
    """Seconds by stage, from the line that `turbodiffusion generate` ends with: done ... in 9 s (load 1.2, text 0.3)"""
    done = next(line for line in reversed(log.splitlines()) if line.startswith("done "))
    return {stage: float(spent) for stage, spent in re.findall(r"(\w+) (\d+\.\d+)[,)]", done)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a folder, made if it is not there")
    parser.add_argument("--text", choices=TEXT_LAYERS, default="full", help="the text encoder that is made (full)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip-cold", action="store_true", help="no fresh processes")
    parser.add_argument("--skip-resident", action="store_true", help="no videos with every part on the GPU")
    parser.add_argument("--max-memory", type=float, default=target(PEAK), help="GiB of the small card (8)")
    parser.add_argument("--out", type=Path, help="a result file; rows that are in it and not measured now stay")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("an NVIDIA GPU is needed")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    preset = MODELS["wan2.1-t2v-1.3b"]
    if not (chosen.weights / "model.json").is_file():
        start = time.perf_counter()
        text = replace(preset.text, num_layers=TEXT_LAYERS[chosen.text])
        sampling = {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0, "resolution": "480p"}
        make_weights(chosen.weights, preset.transformer, preset.vae, text, "cuda", sampling)
        torch.cuda.empty_cache()
        print(f"wrote {chosen.weights} in {time.perf_counter() - start:.0f} s", flush=True)
    layers = read_folder(chosen.weights).text.num_layers
    weights = f"random weights, {SIZE[0]} frames at {SIZE[2]}x{SIZE[1]}, text encoder of {layers} layers"

    rows: list[Row] = []

    def keep() -> None:
        """At once: what comes next may be cut short."""
        if chosen.out:
            write_results(chosen.out, rows, "python " + " ".join(sys.argv), keep=True)

    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        expected = None
        if not chosen.skip_resident:
            expected = resident_rows(chosen.weights, rows, chosen.runs, outputs, weights)
            gc.collect()
            torch.cuda.empty_cache()
            rows += speedup_rows(rows, chosen.out)
            keep()
        if not chosen.skip_cold:
            rows += cold_rows(chosen.weights, chosen.runs, outputs, weights)
            keep()
        rows += offload_rows(chosen, expected, outputs, weights)
        keep()
    for row in rows:
        goal = "" if row.target is None else f"{'<=' if row.better == 'lower' else '>='} {row.target:g}"
        print(f"{'MISS' if row.misses else '    '} {row.name:<36} {row.value:8.3f} {row.unit:<4} {goal}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
