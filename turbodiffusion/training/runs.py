"""What the training runs leave on disk, read back, and packed into the folder that ships as the demo model."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from turbodiffusion.checkpoint.folder import config_from, save_folder
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.subjects import Subject, named
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.models.text import TextConfig, TextEncoder, Tokenizer, train_tokenizer
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.models.wan import WanConfig, WanTransformer
from turbodiffusion.presets import MODELS
from turbodiffusion.training.data import caption_sample
from turbodiffusion.training.trainer import start_distributed, world

VOCABULARY_CAPTIONS = 20_000


def prepare() -> torch.device:
    """The device of this process, with the fast number formats for training switched on."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return start_distributed()


def demo_world(atlas: Path, device: torch.device, side: int | None = None) -> World:
    """The demo world at the demo model's size, or in squares of `side` pixels."""
    demo = MODELS["demo"]
    return World(atlas, device, size=(side or demo.height, side or demo.width), frames=demo.num_frames)


def atlas_subjects(atlas: Path) -> tuple[Subject, ...]:
    """The subjects that an atlas holds. Raises MissingFilesError where there is none."""
    if not atlas.is_file():
        raise MissingFilesError(
            f"no atlas at {atlas}: bake it with `python -m turbodiffusion.demo.bake --out {atlas.parent}`"
        )
    with np.load(atlas) as file:
        return named([key.removeprefix("sheet/") for key in file if key.startswith("sheet/")])


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """The tensors as bfloat16 safetensors; beside, then renamed."""
    beside = path.with_name(f"{path.name}.part")
    save_file({name: t.detach().to(torch.bfloat16).contiguous() for name, t in state.items()}, beside)
    os.replace(beside, path)


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of `write_weights`, float32 on the CPU, their names behind `prefix`."""
    if not path.exists():
        raise CheckpointError(f"there are no trained weights at {path}: run the command that writes them first")
    return {f"{prefix}{name}": t.float() for name, t in load_file(path).items()}


def write_vae(run: Path, vae: WanVAE, quality: float) -> None:
    """RUN/vae.safetensors and RUN/vae.json."""
    write_weights(run / "vae.safetensors", vae.state_dict())
    (run / "vae.json").write_text(json.dumps({"config": dataclasses.asdict(vae.config), "psnr": quality}, indent=1))


def read_vae(run: Path, device: torch.device) -> WanVAE:
    """The VAE that `train vae` left in `run`, float32 on `device`."""
    state = read_weights(run / "vae.safetensors")
    vae = WanVAE(config_from("vae", json.loads((run / "vae.json").read_text())["config"]), device=device)
    vae.load_state_dict(state)
    return vae.requires_grad_(False)


def read_flow(
    run: Path, config: WanConfig, text_config: TextConfig, device: torch.device
) -> tuple[WanTransformer, TextEncoder]:
    """Transformer and text encoder that `train flow` left in `run`, float32 on `device`."""
    parts = nn.ModuleDict(
        {"transformer": WanTransformer(config, device=device), "text": TextEncoder(text_config, device=device)}
    )
    try:
        parts.load_state_dict(read_weights(run / "flow.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"{run} was trained at other sizes than the demo preset's: {error}") from None
    parts.requires_grad_(False)
    return parts["transformer"], parts["text"]  # type: ignore[return-value]


def vocabulary(run: Path, start: Path | None, subjects: Sequence[Subject], config: TextConfig) -> Tokenizer:
    """The run's spiece.model; that of the run it starts from, or trained on captions, when it has none yet."""
    path = run / "spiece.model"
    rank, ranks = world()
    if not path.exists() and rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        if start:
            path.write_bytes((start.parent / "spiece.model").read_bytes())
        else:
            train_tokenizer(caption_sample(subjects, VOCABULARY_CAPTIONS), path, config.vocab_size)
    if ranks > 1:
        torch.distributed.barrier()
    return Tokenizer(path, config.text_len)


def pack(vae_run: Path, flow_run: Path, atlas: Path, target: Path) -> int:
    """Write the model folder of a VAE and a teacher; returns its bytes.

    Large weights are stored in int8 blocks, the rest in bfloat16; they are computed with in float32 where Wan does so.
    """
    demo = MODELS["demo"]
    cpu = torch.device("cpu")
    transformer, encoder = read_flow(flow_run, demo.transformer, demo.text, cpu)
    fields = ("sampler", "num_steps", "resolution", "aspect_ratio", "num_frames", "fps", "shift", "guidance")
    subjects = [subject.name for subject in atlas_subjects(atlas)]
    config: dict[str, Any] = {
        "sampling": {name: getattr(demo, name) for name in fields},
        "about": {"title": demo.title, "file_name": demo.file_name, "subjects": subjects},
    }
    save_folder(
        target,
        config=config,
        transformer=transformer.to(torch.bfloat16),
        vae=read_vae(vae_run, cpu).to(torch.bfloat16),
        text=encoder.to(torch.bfloat16),
        tokenizer=flow_run / "spiece.model",
        store="int8_block",
    )
    return sum(path.stat().st_size for path in target.iterdir())
