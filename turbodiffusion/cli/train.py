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

Format = Annotated[Literal["int8", "bf16"], typer.Option(help="bf16: twice as large, for a model that is trained on.")]

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
    from turbodiffusion.inference.loaded_model import LoadedModel
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
        draw_sheet(
            LoadedModel.of_networks(shown, transformer, bank.vae, text, tokenizer), run / f"sheet-{trainer.step}.png"
        )


@app.command("pack")
def pack(
    target: Annotated[Path, typer.Argument(help="Model folder to write; it loads with --model FOLDER.")],
    vae_run: VAERun = Path("runs/vae"),
    flow_run: Annotated[Path, typer.Option(help="Folder of the teacher's run.")] = Path("runs/flow"),
    atlas: Atlas = DEFAULT_ATLAS,
    format: Format = "int8",
) -> None:
    """Make a model folder of a trained VAE and teacher, its large weights in 8 bits (int8 blocks) or all in bf16."""
    from turbodiffusion.training import artifacts as runs

    store = "int8_block" if format == "int8" else None
    print(f"{target}: {runs.pack(vae_run, flow_run, atlas, target, store=store) / 1e6:.1f} MB")


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
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps in all, of both networks; without it they fit into --minutes.")
    ] = None,
    minutes: Minutes = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin from this student, which an earlier run left.")
    ] = None,
    start_fake: Annotated[
        Path | None, typer.Option("--from-fake", help="And from its fake score, fake.safetensors.")
    ] = None,
    lr: Annotated[float, typer.Option(help="The student's learning rate; over the last 30% it falls to zero.")] = 1e-4,
    fake_rate: Annotated[float, typer.Option(help="The fake score's, as a share of it.")] = 0.2,
    student_every: Annotated[int, typer.Option(help="One step in so many trains the student.")] = 5,
    dmd_weight: Annotated[float, typer.Option(help="Weight of distribution matching; 0 is without.")] = 1.0,
    one_step_share: Annotated[float, typer.Option(help="Share of the samples made in one step, not in 2 to 4.")] = 0.25,
    sigma_mean: Annotated[float, typer.Option(help="Mean of log tan(t) of the consistency loss's times.")] = 1.0,
    sigma_max: Annotated[float, typer.Option(help="tan(t) where the student begins.")] = 80.0,
    clip: Annotated[
        float, typer.Option(help="Largest norm of a gradient; theirs are 1e4 to 1e6, so 1 makes all steps equal.")
    ] = 1.0,
    batch: Batch = 64,
    clips: Clips = 3072,
    fresh: Fresh = 8,
    guidance: Annotated[float | None, typer.Option(help="Of the teacher; its own by default.")] = None,
    consistency: Annotated[
        Literal["continuous", "discrete"], typer.Option(help="discrete: without a derivative in time.")
    ] = "continuous",
    warmup: Annotated[
        int | None, typer.Option(help="Steps in which the consistency loss grows, alone; 1000, or 0 with --from.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the networks: a minute or two at first.")] = True,
) -> None:
    """Distil a model to 1 to 4 steps without guidance.

    Writes rcm.safetensors (the student's EMA), student.safetensors and fake.safetensors (to go on from elsewhere) and
    sheets of 4, 2 and 1 steps.
    """
    from turbodiffusion.errors import RequestError
    from turbodiffusion.training import artifacts as runs
    from turbodiffusion.training.recipes import rcm
    from turbodiffusion.training.sample_grid import draw_sheet
    from turbodiffusion.training.trainer import Schedule, Trainer

    if (start is None) != (start_fake is None):
        raise RequestError("--from and --from-fake go together: a distillation goes on with both networks")
    if warmup is None:
        warmup = 0 if start else 1000
    if steps is None and minutes is None:
        steps = 5000
    if steps is not None and steps <= warmup:
        raise RequestError(f"--steps {steps} end within --warmup {warmup}, before the scores take part: give more")
    known = runs.read_teacher(teacher, runs.prepare())
    origin = runs.digest(known.transformer)
    begin = None
    if start and start_fake:
        begin = rcm.Start(runs.read_part(start, "student", origin), runs.read_part(start_fake, "fake", origin))
    bank = runs.bank_of(known, atlas, size=clips, fresh=fresh, seed=700)
    student, fake = (runs.another(known.transformer) for _ in range(2))
    recipe = rcm.RCMRecipe(
        batch=batch,
        guidance=(known.preset.guidance or 1.0) if guidance is None else guidance,
        consistency=consistency,
        sigma_mean=sigma_mean,
        warmup=warmup,
        student_every=student_every,
        one_step_share=one_step_share,
        fake_rate=fake_rate,
        sigma_max=sigma_max,
        dmd_weight=dmd_weight,
        compile=compile,
    )
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, betas=(0.0, 0.999), clip=clip)
    networks = rcm.Networks(student, fake, known.transformer, known.prompt_encoder.encoder)

    def write(trainer: Trainer) -> None:
        about = {"teacher": origin, "sigma_max": str(sigma_max), "step": str(trainer.step)}
        runs.write_weights(run / "rcm.safetensors", trainer.average("student"), about | {"part": "student"})
        for name, network in (("student", student), ("fake", fake)):
            runs.write_weights(run / f"{name}.safetensors", network.state_dict(), about | {"part": name})

    trainer = rcm.train_rcm(networks, bank, recipe, schedule, run, start=begin, teacher=origin, saved=write)
    if trainer.rank == 0:
        student.load_state_dict(trainer.average("student"))
        preset = runs.distilled(known.preset, sigma_max)
        for count in (4, 2, 1):
            few = known.with_network(replace(preset, num_steps=count), student)
            draw_sheet(few, run / f"sheet-{trainer.step}-in-{count}.png")


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
    trainer = sla.train_sla(known.transformer, sparse, known.prompt_encoder.encoder, bank, recipe, schedule, run)
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
    format: Format = "int8",
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
        if path is not None and about[path].get("part") == "fake":
            raise CheckpointError(f"{path} is a fake score: give rcm.safetensors or student.safetensors of that run")
        if path is not None and about[path]["teacher"] != runs.digest(known.transformer):
            raise CheckpointError(f"{path} was trained from another model than {teacher}: name that one as --teacher")
    student, attention = weights[rcm], {}
    if sla is not None:
        student = merge_finetunes(student, weights[sla], known.transformer.state_dict())
        attention = {"attention_type": "sla", "sla_topk": float(about[sla]["sla_topk"])}
    preset = runs.distilled(known.preset, float(about[rcm]["sigma_max"]), **attention)
    store = "int8_block" if format == "int8" else None
    print(f"{target}: {runs.pack_distilled(target, known, preset, student, store=store) / 1e6:.1f} MB")


def evaluate(
    variants: Annotated[list[str], typer.Argument(help="NAME=MODEL[,FIELD=VALUE...], the first is the reference.")],
    probe: Annotated[Path, typer.Option(help="The judge that `train probe` wrote.")] = Path(
        "runs/probe/probe.safetensors"
    ),
    atlas: Atlas = DEFAULT_ATLAS,
    output: Annotated[
        Path | None, typer.Option(help="Result file; its other rows stay. demo.json or quality.json by default.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts, half of them Chinese; 256 for a quick look.")] = 4096,
    batch: Annotated[int, typer.Option(help="Videos made at a time.")] = 64,
    cpu: Annotated[bool, typer.Option(help="Only what a video costs on two CPU cores.")] = False,
    quality: Annotated[
        bool, typer.Option(help="The report on distilled variants: quality.json, with targets.")
    ] = False,
    compile: Annotated[bool, typer.Option(help="torch.compile the transformers, as references.")] = False,
) -> None:
    """Judge demo models: adherence to held-out prompts, Frechet distance, diversity, and the judge's own controls.

    As in: turbodiffusion evaluate teacher=demo,num_steps=50
    or: turbodiffusion evaluate --quality teacher=demo,num_steps=50 rcm4=models/rcm rcm1=models/rcm,num_steps=1
    """
    from turbodiffusion.evaluation.evaluate import evaluate_command

    evaluate_command(
        variants, probe, atlas, output, prompts=prompts, batch=batch, cpu=cpu, quality=quality, compile=compile
    )


if __name__ == "__main__":
    app()
