"""Judges demo models: what they draw, read by the probe (probe.py), beside controls that must come out bad.

Every variant of a model gets the same held-out prompts, half of them Chinese, and the same seeds, so that differences
are paired. Clips are made in batches, straight with the transformer: thousands of them fit into minutes of a GPU. What
each row means stands in docs/evaluation.md, which names the bounds too.
"""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbodiffusion.demo.captions import caption
from turbodiffusion.demo.factors import Factors, sample_factors
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.scenes import SCENES
from turbodiffusion.demo.subjects import Subject, named
from turbodiffusion.errors import MachineError, RequestError, UserError
from turbodiffusion.evaluation.judge import (
    Probe,
    grade,
    label_indices,
    load_probe,
    preprocess,
    through_vae,
    train_probe,
)
from turbodiffusion.evaluation.metrics import (
    diversity,
    frechet_distance,
    frechet_interval,
    paired_difference,
    proportion,
    psnr,
    ssim,
)
from turbodiffusion.evaluation.result_file import VARIANTS, Row, command_line, cpu_name, write_results
from turbodiffusion.evaluation.targets import CEILING, OLD, SHIPPED, SHIPPED_SECONDS, chances, target_of
from turbodiffusion.inference.batch import Variant, load_variant, make_clips, parse_variant
from turbodiffusion.inference.loaded_model import LoadedModel
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.training.artifacts import demo_world, prepare, read_vae
from turbodiffusion.training.trainer import Schedule

VAE_PSNR = 30.0  # dB
CPU_SECONDS, CPU_GB, CPU_CORES = 150.0, 4.0, 2
FULL = 2048  # clips a side from which a Frechet distance counts; below, every row says that it is a quick check
PROMPT_SEED, RENDER_SEED, NOISE_SEED = 71_001, 71_002, 1  # of no training run
EXAMPLE = "an orange cat runs to the right through a sunny garden"


@dataclass(frozen=True)
class Predictions:
    """What the probe read from N clips: answers [N, questions] and features [N, features]."""

    answers: NDArray[np.int64]
    features: Tensor

    @staticmethod
    def of(parts: Sequence[tuple[NDArray[np.int64], Tensor]]) -> "Predictions":
        return Predictions(np.concatenate([answers for answers, _ in parts]), torch.cat([x for _, x in parts]))


def predict_model(
    model: LoadedModel, probe: Probe, prompts: Sequence[str], seeds: Sequence[int], *, batch: int, label: str
) -> Predictions:
    """The probe's predictions of a clip for each prompt and seed; says how far it is."""
    pieces = _batches(len(prompts), batch, label)
    return Predictions.of([probe.read(make_clips(model, prompts[k:m], seeds[k:m])) for k, m in pieces])


def _batches(count: int, batch: int, label: str) -> Iterator[tuple[int, int]]:
    """(first, last) of each batch, with a line about the time left every ten seconds."""
    began = said = time.monotonic()
    for first in range(0, count, batch):
        yield first, min(count, first + batch)
        done, now = min(count, first + batch), time.monotonic()
        if now - said > 10:
            said = now
            print(f"{label}: {done}/{count} clips, {(now - began) * (count / done - 1):.0f} s left", flush=True)


def render_views(
    world: World, probe: Probe, clips: Sequence[Factors], *, vae: WanVAE | None = None, batch: int = 64, label: str
) -> Tensor:
    """Return what the probe sees of rendered clips (`probe.look`), through the VAE if there is one."""
    views = []
    for k, m in _batches(len(clips), batch, label):
        video = world.render(clips[k:m])
        views.append(preprocess(video if vae is None else through_vae(vae, video), probe.config))
    return torch.cat(views)


@dataclass(frozen=True)
class Questions:
    """Held-out clips in words and prompts; prompts of even number are English, of odd number Chinese."""

    clips: list[Factors]
    prompts: list[str]
    labels: NDArray[np.int64]


def held_out_questions(probe: Probe, count: int, subjects: Sequence[Subject]) -> Questions:
    """`count` held-out combinations of `subjects`, told in full. Raises UserError for one that the probe never saw."""
    rng = np.random.default_rng(PROMPT_SEED)
    clips = sample_factors(rng, count, held_out=True, subjects=subjects)
    prompts = [caption(clip, rng, ("en", "zh")[k % 2], full=True) for k, clip in enumerate(clips)]
    return Questions(clips, prompts, label_indices(clips, probe.config))


# ---- rows ----


def _said(count: int, what: str, error: float) -> str:
    quick = "" if count >= FULL else f"; quick check, +-{max(2, round(100 * error))} points"
    return f"{what}, {count} clips; standard error {error:.4f}{quick}"


def probe_rows(probe: Probe, world: World, subjects: Sequence[Subject], count: int) -> tuple[list[Row], dict]:
    """The probe's accuracy on fresh renders, and question -> accuracy: the ceiling of all that it judges."""
    clips = sample_factors(np.random.default_rng(RENDER_SEED), count, subjects=subjects)
    answers, _ = probe.read_views(render_views(world, probe, clips, label="fresh renders"))
    right = label_indices(clips, probe.config)
    rows, ceiling = [], {}
    strict = grade(answers, right, probe.config, strict=True)
    for factor, marked in grade(answers, right, probe.config).items():
        ceiling[factor], error = proportion(marked)
        what = "share of fresh renders that the probe reads right"
        if factor in ("motion", "camera"):
            what += f" (look-alikes as one; {strict[factor].mean():.4f} without)"
        target = CEILING.get(factor)
        name = f"probe.{factor}.accuracy"
        rows.append(Row(name, ceiling[factor], "share", "higher", target, _said(len(marked), what, error)))
    return rows, ceiling


def control_rows(probe: Probe, world: World, questions: Questions, views: Tensor) -> list[Row]:
    """What must come out bad, on renders of the questions (`views`): nothing is read where nothing is to be read."""
    config, right, rng = probe.config, questions.labels, np.random.default_rng(RENDER_SEED + 1)
    answers, _ = probe.read_views(views)
    rows = []

    def add(name: str, marked: NDArray[np.bool_], target: float | None, what: str, better: str = "lower") -> None:
        value, error = proportion(marked)
        rows.append(Row(f"control.{name}", value, "share", better, target, _said(len(marked), what, error)))

    for factor, marked in grade(answers, right, config).items():
        add(f"none.{factor}", marked, None, "renders of the held-out prompts themselves, read right", "higher")
    order = rng.permutation(len(right))
    by_chance = chances(answers, right, probe.config)
    for factor, marked in grade(answers, right[order], config).items():
        chance, target = by_chance[factor]
        add(f"shuffled.{factor}", marked, target, f"marked with other prompts' factors; chance is {chance:.4f}")
    motion = config.questions.index("motion")
    still = config.answers("motion").index("still")
    frozen, _ = probe.read_views(views[:, :, views.shape[2] // 2, None].expand_as(views))
    moving = right[:, motion] != still
    add("frozen.still", frozen[:, motion] == still, 0.9, "one frame for all: read as still", "higher")
    as_asked = grade(frozen[moving], right[moving], config, strict=True)["motion"]
    add("frozen.motion", as_asked, 0.1, "the same, where the prompt moves: its motion read")
    generator = torch.Generator(views.device).manual_seed(0)
    static = torch.randint(256, views.shape, generator=generator, device=views.device, dtype=torch.uint8)
    of_noise, _ = probe.read_views(static)
    by_chance = chances(of_noise, right, config)
    for factor, marked in grade(of_noise, right, config).items():
        if factor in CEILING:
            chance, target = by_chance[factor]
            told = f"clips of noise, marked with the prompts' factors; chance is {chance:.4f}"
            add(f"noise.{factor}", marked, target, told)
    moved = [(k, _elsewhere(clip, rng)) for k, clip in enumerate(questions.clips) if len(set(clip.row.habitat)) > 1]
    if moved:
        kept = [k for k, _ in moved]
        other, _ = probe.read_views(render_views(world, probe, [clip for _, clip in moved], label="other scenes"))
        result = grade(other, right[kept], config)
        add("other_scene.scene", result["scene"], 0.05, "renders in another scene: the prompt's scene read")
        add("other_scene.subject", result["subject"], None, "the same: its subject read, as it should", "higher")
    return rows


def _elsewhere(clip: Factors, rng: np.random.Generator) -> Factors:
    """The clip in another of its subject's scenes."""
    scenes = sorted(set(clip.row.habitat) - {clip.scene})
    scene = scenes[int(rng.integers(len(scenes)))]
    return replace(clip, scene=scene, light=(clip.light or "sunny") if SCENES[scene].lights else "")


def variant_rows(
    name: str,
    predictions: Predictions,
    probe: Probe,
    questions: Questions,
    reference: Tensor,
    known: Mapping[str, float],
) -> list[Row]:
    """Adherence of a variant's clips to their prompts, and their Frechet distance from renders of the same prompts.

    known: values of the rows that are there: probe.*.accuracy and control.none.*, of which the adherence is a share,
    and the teacher's, which targets of students are shares of.
    """
    rows = []
    for factor, marked in grade(predictions.answers, questions.labels, probe.config).items():
        value, error = proportion(marked)
        wholes = {"the probe's own accuracy": f"probe.{factor}.accuracy", "renders'": f"control.none.{factor}"}
        if name != "teacher":
            wholes["the teacher's"] = f"teacher.{factor}.adherence"
        parts = [f"{value / known[row]:.3f} of {whole}" for whole, row in wholes.items() if known.get(row)]
        what = "share of held-out prompts (half Chinese) whose clip the probe reads right, " + ", ".join(parts)
        label = f"{name}.{factor}.adherence"
        target = target_of(label, known) if factor in CEILING else None
        rows.append(Row(label, value, "share", "higher", target, _said(len(marked), what, error)))
    row = frechet_row(f"{name}.frechet", predictions.features, reference, "renders of the same prompts")
    rows.append(replace(row, target=target_of(row.name, known)))
    return rows


def frechet_row(name: str, a_ND: Tensor, b_ND: Tensor, against: str) -> Row:
    """A Frechet distance with its bootstrap interval, in the probe's layer."""
    low, high = frechet_interval(a_ND, b_ND)
    few = "" if min(len(a_ND), len(b_ND)) >= FULL else f"; quick check, biased upwards below {FULL} a side"
    method = f"squared Frechet distance on the probe's {a_ND.shape[1]} hidden features (deviation 1 over renders), "
    method += f"{len(a_ND)} clips against {len(b_ND)} {against}; 95% bootstrap interval {low:.3f} to {high:.3f}{few}"
    return Row(name, frechet_distance(a_ND, b_ND), "squared deviations", "lower", None, method)


def vae_frechet_row(
    name: str, vae: WanVAE, world: World, probe: Probe, again: Sequence[Factors], reference: Tensor
) -> Row:
    """The distance of renders that went through the VAE: the part of a model's that no training of it can remove."""
    _, decoded = probe.read_views(render_views(world, probe, again, vae=vae, label="renders through the VAE"))
    return frechet_row(name, decoded, reference, "renders of the same prompts, other seeds, not through it")


def difference_rows(
    name: str, predictions: Predictions, first: str, base: Predictions, probe: Probe, asked: Questions
) -> list[Row]:
    """How much worse or better than the first variant, prompt by prompt."""
    mine, theirs = (grade(r.answers, asked.labels, probe.config) for r in (predictions, base))
    rows = []
    for factor in CEILING:
        value, error = paired_difference(mine[factor], theirs[factor])
        method = _said(len(mine[factor]), f"adherence minus {first}'s, same prompts and seeds, paired", error)
        rows.append(Row(f"{name}.{factor}.difference", value, "share", "higher", None, method))
    return rows


def diversity_row(
    name: str, predictions: Predictions, labels_NQ: NDArray[np.int64], probe: Probe, seeds: int, what: str
) -> Row:
    """Of clips [prompts x seeds], the seeds of a prompt beside each other; a clip of another subject counts nothing."""
    right = grade(predictions.answers, labels_NQ, probe.config)["subject"].reshape(-1, seeds)
    features = predictions.features.unflatten(0, (-1, seeds))
    value, error, prompts = diversity(features, right)
    method = f"mean distance of two {what} of one prompt in the probe's hidden layer, both with the prompt's subject, "
    method += f"{seeds} seeds of {len(right)} prompts, {prompts} of them with such a pair; standard error {error:.4f}; "
    method += f"{diversity(features)[0]:.4f} with clips of any subject"
    return Row(name, value, "deviations", "higher", None, method)


def vae_rows(vae: WanVAE, world: World, count: int) -> list[Row]:
    """PSNR and SSIM of unseen renders through the VAE."""
    clips = world.sample_factors(np.random.default_rng(RENDER_SEED + 2), count)
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    for first, last in _batches(count, 16, "VAE"):
        video = world.render(clips[first:last])
        made = through_vae(vae, video)
        found["psnr"].append(psnr(made, video))
        found["ssim"].append(ssim(made, video))
    rows = []
    for name, unit, target in (("psnr", "dB", VAE_PSNR), ("ssim", "1", None)):
        value = torch.cat(found[name])
        error = float(value.std() / math.sqrt(count)) if count > 1 else 0.0
        method = f"mean over {count} unseen renders, encoded and decoded, without sampling; standard error {error:.4f}"
        rows.append(Row(f"vae.{name}", float(value.mean()), unit, "higher", target, method))
    return rows


def cpu_rows(variant: Variant, prefix: str = "demo") -> list[Row]:
    """Seconds and memory of one `turbodiffusion generate` on two CPU cores, from the command to the closed mp4.

    Raises MachineError when the command fails.
    """
    command = [sys.executable, "-m", "turbodiffusion", "generate", EXAMPLE, "--model", variant.model]
    for option in ("num_steps", "guidance", "attention_type", "sla_topk", "quant_linear"):
        if getattr(variant, option) is not None:
            command += [f"--{option.replace('_', '-')}", str(getattr(variant, option))]
    cores = sorted(os.sched_getaffinity(0))[:CPU_CORES]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command += ["--device", "cpu", "--seed", "1", "--output", folder, "--quiet"]
        began = time.monotonic()
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        seconds = time.monotonic() - began
    if done.returncode:
        raise MachineError(f"`turbodiffusion generate` failed on the CPU: {done.stderr.strip().splitlines()[-1:]}")
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    limit = SHIPPED_SECONDS if prefix == SHIPPED else CPU_SECONDS
    where = f"one video of {variant.model} on {len(cores)} cores of {cpu_name()}, process start to closed mp4"
    return [
        Row(f"{prefix}.cpu.seconds", seconds, "s", "lower", limit, where),
        Row(f"{prefix}.cpu.peak_gb", gigabytes, "GB", "lower", CPU_GB, f"largest resident memory: {where}"),
    ]


# ---- the whole ----


@torch.no_grad()
def evaluate(
    world: World,
    probe: Probe,
    variants: Sequence[Variant],
    *,
    prompts: int = 4096,
    batch: int = 64,
    diverse: int = 128,
    seeds: int = 8,
    vae_clips: int = 256,
    compile: bool = False,
) -> Iterator[list[Row]]:
    """All rows but the CPU's, as they are found: the probe, its controls, the VAE, every variant's clips.

    The subjects asked for are those that the first variant's model draws (all of the world's where it names none), and
    the probe is measured on these too. A variant named old_teacher is compared with the first on its own subjects
    (`old_rows`). Raises UserError for variants of other sizes than the probe's.
    """
    old = next((variant for variant in variants if variant.name == OLD), None)
    variants = [variant for variant in variants if variant is not old]
    models = [load_variant(variant, world.device, compile=compile) for variant in variants]
    for variant, model in zip(variants, models, strict=True):
        _check_size(variant, model, probe)
    subjects = named(models[0].preset.subjects) or world.subjects
    absent = [row.name for row in subjects if row not in world.subjects]
    if absent:
        raise UserError(
            f"{variants[0].model} draws {absent[0]}, which is not in this atlas: bake one with all it draws"
        )
    known: dict[str, float] = {}

    def noted(rows: list[Row]) -> list[Row]:
        known.update((row.name, row.value) for row in rows if row.value is not None)
        return rows

    yield noted(probe_rows(probe, world, subjects, prompts)[0])
    asked = held_out_questions(probe, prompts, subjects)
    views = render_views(world, probe, asked.clips, label="held-out renders")
    yield noted(control_rows(probe, world, asked, views))
    _, reference = probe.read_views(views)
    del views
    rng = np.random.default_rng(RENDER_SEED + 3)
    again = [replace(clip, seed=int(rng.integers(2**31))) for clip in asked.clips]
    _, other = probe.read_views(render_views(world, probe, again, label="held-out renders, other seeds"))
    yield [frechet_row("render.frechet", other, reference, "renders of the same prompts, other seeds")]
    yield [vae_frechet_row("vae.frechet", models[0].vae, world, probe, again, reference)]
    yield vae_rows(models[0].vae, world, min(vae_clips, prompts))
    diverse = min(diverse, prompts)
    kinds = [replace(clip, seed=int(rng.integers(2**31))) for clip in asked.clips[:diverse] for _ in range(seeds)]
    drawn = Predictions(*probe.read_views(render_views(world, probe, kinds, label="renders for diversity")))
    repeated_labels = asked.labels[:diverse].repeat(seeds, axis=0)
    yield [diversity_row("render.diversity", drawn, repeated_labels, probe, seeds, "renders")]
    base: Predictions | None = None
    for variant, model in zip(variants, models, strict=True):
        noises = range(NOISE_SEED, NOISE_SEED + prompts)
        predictions = predict_model(model, probe, asked.prompts, noises, batch=batch, label=variant.name)
        yield noted(variant_rows(variant.name, predictions, probe, asked, reference, known))
        if base is None:
            base = predictions
        else:
            yield difference_rows(variant.name, predictions, variants[0].name, base, probe, asked)
        repeated = [prompt for prompt in asked.prompts[:diverse] for _ in range(seeds)]
        noises = range(NOISE_SEED + prompts, NOISE_SEED + prompts + len(repeated))
        spread = predict_model(model, probe, repeated, noises, batch=batch, label=f"{variant.name}, diversity")
        row = diversity_row(f"{variant.name}.diversity", spread, repeated_labels, probe, seeds, "videos")
        yield noted([replace(row, target=target_of(row.name, known))])
    if old is not None:
        before = load_variant(old, world.device, compile=compile)
        _check_size(old, before, probe)
        yield old_rows(world, probe, before, models[0], prompts, batch=batch)


def old_rows(
    world: World, probe: Probe, old: LoadedModel, teacher: LoadedModel, count: int, *, batch: int
) -> list[Row]:
    """Frechet distances of an older teacher and the new one (to be half, VAEs' shares apart) on the old subjects."""
    asked = held_out_questions(probe, count, named(old.preset.subjects) or world.subjects)
    _, reference = probe.read_views(render_views(world, probe, asked.clips, label="renders of the old subjects"))
    rng = np.random.default_rng(RENDER_SEED + 5)
    again = [replace(clip, seed=int(rng.integers(2**31))) for clip in asked.clips]
    found = []
    for name, model in ((OLD, old), ("teacher.old_subjects", teacher)):
        found.append(vae_frechet_row(f"{name}.vae.frechet", model.vae, world, probe, again, reference))
        noises = range(NOISE_SEED, NOISE_SEED + count)
        predictions = predict_model(model, probe, asked.prompts, noises, batch=batch, label=name)
        found.append(frechet_row(f"{name}.frechet", predictions.features, reference, "renders of the same prompts"))
    old_vae, old_frechet, new_vae, _ = (float(row.value or 0) for row in found)
    return [*found[:3], replace(found[3], target=new_vae + (old_frechet - old_vae) / 2)]


def _check_size(variant: Variant, model: LoadedModel, probe: Probe) -> None:
    preset, config = model.preset, probe.config
    made, seen = (preset.height, preset.width, preset.num_frames), (*config.size, config.clip_frames)
    if made != seen:
        raise UserError(
            f"{variant.name} makes {made[2]} frames at {made[1]}x{made[0]}, the probe was trained on {seen[2]} at "
            f"{seen[1]}x{seen[0]}: train one for it"
        )


# ---- commands: training/commands.py gives them their options ----


def train_probe_command(
    folder: Path = Path("runs/probe"),
    atlas: Path = Path(".cache/demo-world/atlas.npz"),
    vae_run: Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = 3e-3,
) -> None:
    """Train the judge; writes FOLDER/probe.safetensors and prints its accuracy on fresh renders.

    Without steps the run fits into `minutes`, by default 5. vae_run: folder of a VAE's run; a quarter of the clips
    then go through that VAE.
    """
    device = prepare()
    world = demo_world(atlas, device)
    minutes_left = 5.0 if steps is None and minutes is None else minutes
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes_left, warmup=50, decay=1.0, weight_decay=0.05, muon=True)
    vae = read_vae(vae_run, device) if vae_run else None
    probe = train_probe(world, schedule, folder, vae=vae)
    rows, _ = probe_rows(probe, world, world.subjects, 4096)
    _show(rows)


def evaluate_command(
    variants: list[str],
    probe: Path = Path("runs/probe"),
    atlas: Path = Path(".cache/demo-world/atlas.npz"),
    output: Path | None = None,
    prompts: int = 4096,
    batch: int = 64,
    cpu: bool = False,
    quality: bool = False,
    compile: bool = False,
) -> None:
    """Judge variants (NAME=MODEL[,FIELD=VALUE...]) and write or renew their rows in a result file.

    cpu: measure only what the first variant costs on two CPU cores; its rows are demo.cpu.* for the teacher, else named
    by the variant. quality: the report on the distilled variants, in benchmarks/results/quality.json unless `output`
    says another (else demo.json); the first variant is the teacher then, the names are those of results.VARIANTS and
    old_teacher, and `cpu` measures each of them. compile: torch.compile the transformers, which costs a minute each and
    pays from 1,000 prompts on. Raises RequestError for a report with other names.
    """
    chosen = [parse_variant(text) for text in variants]
    output = output or Path("benchmarks/results") / ("quality.json" if quality else "demo.json")
    unknown = [variant.name for variant in chosen if variant.name not in (*VARIANTS, OLD)]
    if quality and (unknown or chosen[0].name != "teacher"):
        raise RequestError(
            f"--quality compares the teacher, given first, with {', '.join(VARIANTS[1:])} and {OLD}, not "
            f"{(unknown or [chosen[0].name])[0]}"
        )
    found: Iterable[list[Row]]
    if cpu and quality:
        found = (cpu_rows(variant, variant.name)[:1] for variant in chosen if variant.name != OLD)
    elif cpu:
        found = [cpu_rows(chosen[0], "demo" if chosen[0].name == "teacher" else chosen[0].name)]
    else:
        device = prepare()
        judge = load_probe(probe, device)
        world = World(atlas, device, size=judge.config.size, frames=judge.config.clip_frames)
        found = evaluate(world, judge, chosen, prompts=prompts, batch=batch, compile=compile)
    rows: list[Row] = []
    for more in found:
        rows += more
        write_results(output, rows, command_line(), keep=True)  # at once: the whole takes minutes
    _show(rows)


def _show(rows: Sequence[Row]) -> None:
    for row in rows:
        target = "" if row.target is None else f"  {'MISSES' if row.misses else 'reaches'} {row.target:.4g}"
        print(f"{row.name:32} {row.value:10.4f} {row.unit}{target}")
