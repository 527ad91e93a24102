"""`turbodiffusion train ...`: the demo model, its judge and its distillation, one command each.

vae, text, flow and pack make the model from nothing, probe its judge; rcm, sla and merge make of a model a fast one.

Every command goes on with the run in its folder. `torchrun --nproc-per-node N -m turbodiffusion.cli.train ...`
uses N GPUs. What each took on which GPU stands in docs/training.md. PyTorch is imported inside the commands, so that
`--help` is quick.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Train the demo model: vae, text, then flow (the teacher), then pack; probe is its judge. "
    "Make it fast: rcm, sla, then merge.",
    no_args_is_help=True,
)

# torchrun reads abbreviations of its own options: none of ours may begin one of them (--run, --start).
Run = Annotated[Path, typer.Option("--folder", help="Folder of this run: state, losses, sheets. A run in it goes on.")]
Atlas = Annotated[Path, typer.Option(help="The baked demo world (python -m turbodiffusion.demo.bake).")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps in all; without it the run fits into --minutes.")]
Minutes = Annotated[float | None, typer.Option(help="Stop this leg after so many minutes; the run can be resumed.")]
Start = Annotated[Path | None, typer.Option("--from", help="Begin from the weights file that an earlier run left.")]
Compile = Annotated[bool, typer.Option(help="torch.compile the loss: a minute at first, then twice to thrice as fast.")]
Batch = Annotated[int, typer.Option(help="Clips a step on each GPU.")]
Clips = Annotated[int, typer.Option(help="Clips held encoded on each GPU.")]
Fresh = Annotated[int, typer.Option(help="Clips replaced by new ones every 8 steps.")]
VAERun = Annotated[Path, typer.Option(help="Folder of the finished VAE run.")]

RESULTS = Path("benchmarks/results/demo.json")
DEFAULT_ATLAS = Path(".cache/demo-world/atlas.npz")


@app.command("vae")
def train_vae(
    run: Run = Path("runs/vae"),
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; it falls to zero over the whole run.")] = 4e-3,
    batch: Annotated[int, typer.Option(help="Crops a step on each GPU.")] = 8,
    clips: Annotated[int, typer.Option(help="Clips rendered on each GPU (6.5 MB each).")] = 2048,
    start: Start = None,
    compile: Compile = True,
) -> None:
    """Train the VAE; writes vae.safetensors and vae.json (configuration, latent statistics, PSNR) in its folder."""
    from turbodiffusion.presets import MODELS
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.recipes import vae
    from turbodiffusion.training.trainer import Schedule

    scenes = runs.demo_world(atlas, runs.prepare())
    recipe = vae.VAERecipe(clips=clips, batch=batch, compile=compile)
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, warmup=100, decay=1.0, muon=True)
    weights = runs.read_weights(start, "vae.") if start else None
    trainer, model, quality = vae.train_vae(scenes, MODELS["demo"].vae, recipe, schedule, run, start=weights)
    if trainer.rank == 0:
        runs.write_vae(run, model, quality)


@app.command("text")
def train_text(
    run: Run = Path("runs/text"),
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 1500,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; over the last 30% it falls to zero.")] = 2e-3,
    batch: Annotated[int, typer.Option(help="Captions a step.")] = 128,
) -> None:
    """Teach the text encoder to tell a caption's factors; writes text.safetensors and spiece.model, for flow --from."""
    from turbodiffusion.presets import MODELS
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.recipes import text
    from turbodiffusion.training.trainer import Schedule

    demo, device = MODELS["demo"], runs.prepare()
    subjects = runs.atlas_subjects(atlas)
    tokenizer = runs.vocabulary(run, None, subjects, demo.text)
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, warmup=50, muon=True)
    encoder = text.train_text(subjects, tokenizer, demo.text, schedule, run, device, batch=batch)
    runs.write_weights(run / "text.safetensors", {f"text.{k}": value for k, value in encoder.state_dict().items()})


@app.command("flow")
def train_flow(
    run: Run = Path("runs/flow"),
    vae_run: VAERun = Path("runs/vae"),
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; over the last 30% it falls to zero.")] = 2e-3,
    side: Annotated[int | None, typer.Option(help="Pixels of a side, for a first run on smaller clips.")] = None,
    batch: Batch = 64,
    clips: Clips = 3072,
    fresh: Fresh = 8,
    start: Start = None,
    compile: Compile = True,
) -> None:
    """Train transformer and text encoder by flow matching; writes flow.safetensors (EMA), spiece.model and a sheet."""
    from turbodiffusion.inference.batch import DemoModel
    from turbodiffusion.parallel.groups import rank_and_size
    from turbodiffusion.presets import MODELS
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.data import LatentBank
    from turbodiffusion.training.recipes import flow
    from turbodiffusion.training.sample_grid import draw_sheet
    from turbodiffusion.training.trainer import Schedule

    demo, device = MODELS["demo"], runs.prepare()
    rank, _ = rank_and_size()
    scenes = runs.demo_world(atlas, device, side)
    tokenizer = runs.vocabulary(run, start, scenes.subjects, demo.text)
    bank = LatentBank(scenes, runs.read_vae(vae_run, device), tokenizer, size=clips, fresh=fresh, seed=100 + rank)
    recipe = flow.FlowRecipe(batch=batch, compile=compile, shifts=(1.0, demo.shift or 1.0, 16.0))
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, muon=True)
    weights = runs.read_weights(start) if start else None
    trainer = flow.train_flow(bank, demo.transformer, demo.text, recipe, schedule, run, start=weights)
    if rank == 0:
        runs.write_weights(run / "flow.safetensors", trainer.ema_state())
        transformer, text = runs.read_flow(run, demo.transformer, demo.text, device)
        shown = replace(demo, resolution=f"{side}x{side}") if side else demo
        draw_sheet(DemoModel(shown, transformer, text, bank.vae, tokenizer), run / f"sheet-{trainer.step}.png")


@app.command("pack")
def pack(
    target: Annotated[Path, typer.Argument(help="Model folder to write; it loads with --model FOLDER.")],
    vae_run: VAERun = Path("runs/vae"),
    flow_run: Annotated[Path, typer.Option(help="Folder of the teacher's run.")] = Path("runs/flow"),
    atlas: Atlas = DEFAULT_ATLAS,
) -> None:
    """Make a model folder of a trained VAE and teacher, its large weights in 8 bits (int8 blocks)."""
    from turbodiffusion.training import artifacts as runs

    print(f"{target}: {runs.pack(vae_run, flow_run, atlas, target) / 1e6:.1f} MB")


@app.command("probe")
def train_probe(
    run: Run = Path("runs/probe"),
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Steps = None,
    minutes: Minutes = 5.0,
    lr: Annotated[float, typer.Option(help="Peak learning rate; it falls to zero over the whole run.")] = 3e-3,
    vae_run: Annotated[Path | None, typer.Option(help="A quarter of the clips go through this run's VAE.")] = None,
) -> None:
    """Train the judge that reads subject, colour, motion, scene, light and camera from a clip."""
    from turbodiffusion.evaluation.evaluate import train_probe_command

    train_probe_command(run, atlas, steps=steps, minutes=minutes, lr=lr, vae_run=vae_run)


Teacher = Annotated[str, typer.Option(help="The model that is made fast: demo, or a folder that `pack` wrote.")]


@app.command("rcm")
def train_rcm(
    run: Run = Path("runs/rcm"),
    teacher: Teacher = "demo",
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all, of both networks.")] = 5000,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="The student's learning rate; over the last 30% it falls to zero.")] = 1e-4,
    batch: Batch = 64,
    clips: Clips = 3072,
    fresh: Fresh = 8,
    guidance: Annotated[float | None, typer.Option(help="Of the teacher; its own by default.")] = None,
    consistency: Annotated[
        Literal["continuous", "discrete"], typer.Option(help="discrete: without a derivative in time.")
    ] = "continuous",
    warmup: Annotated[int, typer.Option(help="Steps in which the consistency loss grows, alone.")] = 1000,
    compile: Annotated[bool, typer.Option(help="torch.compile the networks: a minute or two at first.")] = True,
) -> None:
    """Distil a model to 1 to 4 steps without guidance; writes rcm.safetensors (EMA) and a sheet of four steps."""
    from turbodiffusion.errors import RequestError
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.recipes import rcm
    from turbodiffusion.training.sample_grid import draw_sheet
    from turbodiffusion.training.trainer import Schedule

    if steps <= warmup:
        raise RequestError(f"--steps {steps} end within --warmup {warmup}, before the scores take part: give more")
    known = runs.read_teacher(teacher, runs.prepare())
    bank = runs.bank_of(known, atlas, size=clips, fresh=fresh, seed=700)
    student, fake = (runs.another(known.transformer) for _ in range(2))
    recipe = rcm.RCMRecipe(
        batch=batch,
        guidance=(known.preset.guidance or 1.0) if guidance is None else guidance,
        consistency=consistency,
        warmup=warmup,
        compile=compile,
    )
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, betas=(0.0, 0.999))
    networks = rcm.Networks(student, fake, known.transformer, known.text)
    trainer = rcm.train_rcm(networks, bank, recipe, schedule, run)
    if trainer.rank == 0:
        student.load_state_dict(trainer.average("student"))
        about = {"teacher": runs.digest(known.transformer), "sigma_max": str(recipe.sigma_max)}
        runs.write_weights(run / "rcm.safetensors", student.state_dict(), about)
        few = replace(known, preset=runs.distilled(known.preset, recipe.sigma_max), transformer=student)
        draw_sheet(few, run / f"sheet-{trainer.step}.png")


@app.command("sla")
def train_sla(
    run: Run = Path("runs/sla"),
    teacher: Teacher = "demo",
    atlas: Atlas = DEFAULT_ATLAS,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 2000,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; over the last 30% it falls to zero.")] = 1e-4,
    batch: Batch = 64,
    clips: Clips = 3072,
    fresh: Fresh = 8,
    topk: Annotated[float, typer.Option(help="Share of the key blocks that are attended to exactly.")] = 0.1,
    compile: Annotated[bool, typer.Option(help="torch.compile the loss: a minute or two at first.")] = False,
) -> None:
    """Fine-tune a model for sparse-linear attention against its own dense self; writes sla.safetensors (EMA)."""
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.recipes import sla
    from turbodiffusion.training.trainer import Schedule

    known = runs.read_teacher(teacher, runs.prepare())
    bank = runs.bank_of(known, atlas, size=clips, fresh=fresh, seed=800)
    sparse = runs.another(known.transformer, attention_type="sla", sla_topk=topk)
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes)
    recipe = sla.SLARecipe(batch=batch, compile=compile)
    trainer = sla.train_sla(known.transformer, sparse, known.text, bank, recipe, schedule, run)
    if trainer.rank == 0:
        sparse.load_state_dict(trainer.average("transformer"))
        about = {"teacher": runs.digest(known.transformer), "sla_topk": str(topk)}
        runs.write_weights(run / "sla.safetensors", sparse.state_dict(), about)


@app.command("merge")
def merge(
    target: Annotated[Path, typer.Argument(help="Model folder to write; it loads with --model FOLDER.")],
    rcm: Annotated[Path, typer.Option(help="The student's weights, from `train rcm`.")] = Path(
        "runs/rcm/rcm.safetensors"
    ),
    sla: Annotated[
        Path | None, typer.Option(help="Weights for sparse attention, from `train sla`.", show_default=False)
    ] = None,
    teacher: Teacher = "demo",
) -> None:
    """Make a model folder of a distilled student, with sparse attention's fine-tuning added if given."""
    import torch

    from turbodiffusion.checkpoint.merge import merge_finetunes
    from turbodiffusion.errors import CheckpointError
    from turbodiffusion.training import artifacts as runs

    known = runs.read_teacher(teacher, torch.device("cpu"))
    weights = {path: runs.read_weights(path) for path in (rcm, sla) if path is not None}
    about = {path: runs.read_about(path) for path in weights}
    for path, field in ((rcm, "sigma_max"), (sla, "sla_topk")):
        if path is not None and field not in about[path]:
            raise CheckpointError(f"{path} is no file of `train {'rcm' if field == 'sigma_max' else 'sla'}`")
        if path is not None and about[path]["teacher"] != runs.digest(known.transformer):
            raise CheckpointError(f"{path} was trained from another model than {teacher}: name that one as --teacher")
    student, attention = weights[rcm], {}
    if sla is not None:
        student = merge_finetunes(student, weights[sla], known.transformer.state_dict())
        attention = {"attention_type": "sla", "sla_topk": float(about[sla]["sla_topk"])}
    preset = runs.distilled(known.preset, float(about[rcm]["sigma_max"]), **attention)
    print(f"{target}: {runs.pack_distilled(target, known, preset, student) / 1e6:.1f} MB")


def evaluate(
    variants: Annotated[list[str], typer.Argument(help="NAME=MODEL[,FIELD=VALUE...], the first is the reference.")],
    probe: Annotated[Path, typer.Option(help="The judge that `train probe` wrote.")] = Path(
        "runs/probe/probe.safetensors"
    ),
    atlas: Atlas = DEFAULT_ATLAS,
    output: Annotated[Path, typer.Option(help="Result file; its other rows stay.")] = RESULTS,
    prompts: Annotated[int, typer.Option(help="Held-out prompts, half of them Chinese; 256 for a quick look.")] = 4096,
    batch: Annotated[int, typer.Option(help="Videos made at a time.")] = 64,
    cpu: Annotated[bool, typer.Option(help="Only what a video costs on two CPU cores.")] = False,
    compile: Annotated[bool, typer.Option(help="torch.compile the transformers, as references.")] = False,
) -> None:
    """Judge demo models: adherence to held-out prompts, Frechet distance, diversity, and the judge's own controls.

    As in: turbodiffusion evaluate teacher=demo,num_steps=50
    """
    from turbodiffusion.evaluation.evaluate import evaluate_command

    evaluate_command(variants, probe, atlas, output, prompts=prompts, batch=batch, cpu=cpu, compile=compile)


if __name__ == "__main__":
    app()
