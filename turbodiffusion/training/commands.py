"""`turbodiffusion train vae | flow | pack`: the demo model from nothing, one command each.

Every command resumes the run in its folder. `torchrun --nproc-per-node N -m turbodiffusion.training.commands ...` uses
N GPUs. What each took on which GPU stands in docs/training.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from turbodiffusion.demo.renderer import World
from turbodiffusion.errors import CheckpointError
from turbodiffusion.models.text import TextConfig, TextEncoder, Tokenizer, train_tokenizer
from turbodiffusion.models.vae import VAEConfig, WanVAE
from turbodiffusion.models.wan import WanConfig, WanTransformer
from turbodiffusion.presets import MODELS
from turbodiffusion.training import flow, vae
from turbodiffusion.training.data import LatentBank, caption_sample
from turbodiffusion.training.sheet import draw_sheet
from turbodiffusion.training.trainer import Schedule, count_parameters, start_distributed, world

app = typer.Typer(help="Train the demo model: vae, then flow (the teacher), then pack.", no_args_is_help=True)

Run = Annotated[Path, typer.Option("--folder", help="Folder of this run: state, losses, sheets. A run in it goes on.")]
Atlas = Annotated[Path, typer.Option(help="The baked demo world (python -m turbodiffusion.demo.bake).")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps in all; without it the run is fitted into --minutes.")]
Minutes = Annotated[float | None, typer.Option(help="Stop this leg after so many minutes; the run can be resumed.")]


def _prepare() -> torch.device:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return start_distributed()


def _atlas_world(atlas: Path, device: torch.device) -> World:
    preset = MODELS["demo"]
    return World(atlas, device, size=(preset.height, preset.width), frames=preset.num_frames)


@app.command("vae")
def train_vae(
    run: Run = Path("runs/vae"),
    atlas: Atlas = Path(".cache/demo-world/atlas.npz"),
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; it falls to zero over the whole run.")] = 1e-3,
    batch: Annotated[int, typer.Option(help="Crops a step on each GPU.")] = 8,
    clips: Annotated[int, typer.Option(help="Clips rendered on each GPU (6.5 MB each).")] = 2048,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin from the vae.safetensors of an earlier run.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the loss.")] = True,
) -> None:
    """Train the VAE; writes RUN/vae.safetensors and RUN/vae.json (configuration, latent statistics, PSNR)."""
    device = _prepare()
    recipe = vae.VAERecipe(clips=clips, batch=batch, compile=compile)
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes, warmup=100, decay=1.0)
    weights = {f"vae.{name}": t.float() for name, t in load_file(start).items()} if start else None
    scenes = _atlas_world(atlas, device)
    trainer, model, psnr = vae.train_vae(scenes, MODELS["demo"].vae, recipe, schedule, run, start=weights)
    if trainer.rank == 0:
        save_file(_bf16(model.state_dict()), run / "vae.safetensors")
        (run / "vae.json").write_text(json.dumps({"config": dataclasses.asdict(model.config), "psnr": psnr}, indent=1))


def read_vae(run: Path, device: torch.device) -> WanVAE:
    """The VAE that `train vae` left in `run`, float32 on `device`."""
    if not (run / "vae.json").exists():
        raise CheckpointError(f"{run} holds no trained VAE: run `turbodiffusion train vae --folder {run}` first")
    fields: dict[str, Any] = json.loads((run / "vae.json").read_text())["config"]
    config = VAEConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})  # type: ignore[arg-type]
    model = WanVAE(config, device=device)
    model.load_state_dict({name: t.float() for name, t in load_file(run / "vae.safetensors").items()})
    return model.requires_grad_(False)


@app.command("flow")
def train_flow(
    run: Run = Path("runs/flow"),
    vae_run: Annotated[Path, typer.Option(help="Folder of the finished VAE run.")] = Path("runs/vae"),
    atlas: Atlas = Path(".cache/demo-world/atlas.npz"),
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch: Annotated[int, typer.Option(help="Clips a step on each GPU.")] = 64,
    clips: Annotated[int, typer.Option(help="Clips held encoded on each GPU.")] = 3072,
    fresh: Annotated[int, typer.Option(help="Clips replaced by new ones every 8 steps.")] = 8,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin from the flow.safetensors of an earlier run.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the loss.")] = True,
) -> None:
    """Train transformer and text encoder by flow matching; writes RUN/flow.safetensors (EMA) and RUN/spiece.model."""
    device = _prepare()
    demo = MODELS["demo"]
    rank, _ = world()
    scenes = _atlas_world(atlas, device)
    tokenizer = _tokenizer(run, start, scenes, demo.text)
    bank = LatentBank(scenes, read_vae(vae_run, device), tokenizer, size=clips, fresh=fresh, seed=100 + rank)
    recipe = flow.FlowRecipe(batch=batch, compile=compile, shift=demo.shift or 1.0)
    schedule = Schedule(lr=lr, steps=steps, minutes=minutes)
    weights = {n: t.float() for n, t in load_file(start).items()} if start else None
    trainer = flow.train_flow(bank, demo.transformer, demo.text, recipe, schedule, run, start=weights)
    if rank == 0:
        save_file(_bf16(trainer.ema_state()), run / "flow.safetensors")
        transformer, text = read_flow(run, demo.transformer, demo.text, device)
        draw_sheet(transformer, text, bank.vae, tokenizer, demo, run / f"sheet-{trainer.step}.png")
        print(
            f"{count_parameters([transformer]) / 1e6:.1f} M parameters in the transformer, {run / 'flow.safetensors'}"
        )


def _tokenizer(run: Path, start: Path | None, scenes: World, config: TextConfig) -> Tokenizer:
    """The run's vocabulary; of the run that it starts from, or trained on captions, when it has none yet."""
    path = run / "spiece.model"
    rank, ranks = world()
    if not path.exists() and rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        if start:
            path.write_bytes((start.parent / "spiece.model").read_bytes())
        else:
            train_tokenizer(caption_sample(scenes, 40_000), path, config.vocab_size)
    if ranks > 1:
        torch.distributed.barrier()
    return Tokenizer(path, config.text_len)


def read_flow(
    run: Path, config: WanConfig, text_config: TextConfig, device: torch.device
) -> tuple[WanTransformer, TextEncoder]:
    """Transformer and text encoder that `train flow` left in `run`, float32 on `device`."""
    path = run / "flow.safetensors"
    if not path.exists():
        raise CheckpointError(f"{run} holds no trained teacher: run `turbodiffusion train flow --folder {run}` first")
    state = {name: t.float() for name, t in load_file(path).items()}
    transformer, text = WanTransformer(config, device=device), TextEncoder(text_config, device=device)
    transformer.load_state_dict(_part(state, "transformer."))
    text.load_state_dict(_part(state, "text."))
    return transformer.requires_grad_(False), text.requires_grad_(False)


def _bf16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(torch.bfloat16).contiguous() for name, t in state.items()}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


if __name__ == "__main__":
    app()
