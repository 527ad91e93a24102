"""What the training runs leave on disk, read back, and packed into the folder that ships as the demo model."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from turbodiffusion.checkpoint.files import write_tensors
from turbodiffusion.checkpoint.folder import config_from, save_folder
from turbodiffusion.config import REFERENCE, Kernels, TextConfig, WanConfig
from turbodiffusion.demo.atlas import open_atlas, subjects_in
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.subjects import Subject, named
from turbodiffusion.errors import CheckpointError, RequestError
from turbodiffusion.files import write_file
from turbodiffusion.inference import model_source as source
from turbodiffusion.inference.auto import ComputeConfig
from turbodiffusion.inference.load_options import LoadOptions
from turbodiffusion.inference.loaded_model import LoadedModel, Placement
from turbodiffusion.inference.model_source import SAMPLING_FIELDS
from turbodiffusion.inference.stage_timer import StageTimer
from turbodiffusion.models.text import TextEncoder, Tokenizer, train_tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.parallel.groups import rank_and_size, start_distributed
from turbodiffusion.presets import MODELS, ModelPreset
from turbodiffusion.schedules import RCM_MID_ANGLES
from turbodiffusion.training.data import LatentBank, caption_sample

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
    with open_atlas(atlas) as file:
        return named(subjects_in(file, atlas))


def write_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write the tensors as bfloat16 safetensors, `about` in the header."""
    write_tensors(path, {name: t.to(torch.bfloat16) for name, t in state.items()}, about or {})


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of `write_weights`, float32 on the CPU, their names behind `prefix`. Raises CheckpointError."""
    with _told(path):
        return {f"{prefix}{name}": t.float() for name, t in load_file(path).items()}


def read_about(path: Path) -> dict[str, str]:
    """What `write_weights` was told about the tensors."""
    with _told(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell in one line what is no file of weights."""
    if not path.is_file():
        raise CheckpointError(f"there are no trained weights at {path}: run the command that writes them first")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is empty, cut short or no file of trained weights: {reason}") from None


def read_part(path: Path, part: str, teacher: str) -> dict[str, Tensor]:
    """Return the weights that `train rcm` left of its "student" or "fake" score, float32 on the CPU.

    Raises CheckpointError for another file, and for one whose teacher has another digest than `teacher`.
    """
    weights, about = read_weights(path), read_about(path)
    if about.get("part") != part:
        raise CheckpointError(f"{path} holds no {part} of `train rcm`: give the {part}.safetensors that it wrote")
    if about.get("teacher") != teacher:
        raise CheckpointError(f"{path} was distilled from another teacher: name that one as --teacher")
    return weights


def write_vae(run: Path, vae: WanVAE, quality: float) -> None:
    """RUN/vae.safetensors and RUN/vae.json."""
    write_weights(run / "vae.safetensors", vae.state_dict())
    about = {"config": dataclasses.asdict(vae.config), "psnr": quality}
    write_file(run / "vae.json", json.dumps(about, indent=1).encode())


def read_vae(run: Path, device: torch.device) -> WanVAE:
    """The VAE that `train vae` left in `run`, float32 on `device`."""
    state = read_weights(run / "vae.safetensors")
    try:
        config = json.loads((run / "vae.json").read_text())["config"]
        vae = WanVAE(config_from("vae", config), device=device)
        vae.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{run} holds no VAE of `train vae`: vae.json and vae.safetensors ({reason})") from None
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


def new_like(network: WanTransformer, **changes: Any) -> WanTransformer:
    """A network beside this one, with other fields of WanConfig; its weights are not set."""
    return WanTransformer(replace(network.config, **changes), device=network.head.head.weight.device)


def make_bank(model: LoadedModel, atlas: Path, *, size: int, refresh: int, seed: int) -> LatentBank:
    """Clips of the demo world at the model's size; `seed` is the first rank's, each has clips of its own.

    Raises RequestError for subjects that the model was not trained on.
    """
    preset = model.preset
    unknown = sorted({subject.name for subject in atlas_subjects(atlas)} - set(preset.subjects))
    if unknown and preset.subjects:
        raise RequestError(
            f"{atlas} has subjects that the model was not trained on, as {unknown[0]}: bake another world with "
            f"--subjects '{','.join(preset.subjects)}'"
        )
    scenes = World(atlas, model.device, size=(preset.height, preset.width), frames=preset.num_frames)
    return LatentBank(
        scenes, model.vae, model.prompt_encoder.tokenizer, size=size, refresh=refresh, seed=seed + rank_and_size()[0]
    )


def distilled(teacher: ModelPreset, sigma_max: float, **attention: Any) -> ModelPreset:
    """The teacher's preset with a student's sampler, and the kind of attention that it was tuned for."""
    return replace(
        teacher,
        transformer=replace(teacher.transformer, **attention),
        sampler="rcm",
        num_steps=len(RCM_MID_ANGLES) + 1,
        sigma_max=sigma_max,
        shift=None,
        guidance=None,
    )


def digest(network: nn.Module) -> str:
    """Of the weights, to tell whether two trainings began from the same."""
    found = hashlib.sha256()
    for name, x in sorted(network.state_dict().items()):
        found.update(name.encode() + x.float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def read_teacher(model: str, device: torch.device) -> LoadedModel:
    """The demo model or a folder of its kind, in float32, frozen, with dense attention: what training makes faster.

    Raises RequestError for a model that is distilled, or of two experts.
    """
    origin = source.resolve_model(model)
    preset, paths = origin.preset, source.fetch_files(origin)
    if preset.sampler != "flow" or preset.experts != 1 or preset.task != "t2v":
        raise RequestError(f"{model} is no teacher: that is a model that samples its flow, as demo or a packed folder")
    # Dense attention by cuDNN on a GPU, and its derivative by a kernel; nothing in 8 bits, which has no gradient.
    kernels = Kernels(attention="triton" if device.type == "cuda" else "reference")
    compute = ComputeConfig("original", preset.transformer.sla_topk, "off")
    placement = Placement(device, "float32", kernels, compute, fuse=False)
    return LoadedModel.read(preset, placement, LoadOptions(model), paths, StageTimer(None, device))


def vocabulary(run: Path, start: Path | None, subjects: Sequence[Subject], config: TextConfig) -> Tokenizer:
    """The run's spiece.model; that of the run it starts from, or trained on captions, when it has none yet."""
    path = run / "spiece.model"
    rank, ranks = rank_and_size()
    if not path.exists() and rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        if start:
            write_file(path, (start.parent / "spiece.model").read_bytes())
        else:
            train_tokenizer(caption_sample(subjects, VOCABULARY_CAPTIONS), path, config.vocab_size)
    if ranks > 1:
        torch.distributed.barrier()
    return Tokenizer(path, config.text_len)


def pack(vae_run: Path, flow_run: Path, atlas: Path, target: Path, *, store: str | None = "int8_block") -> int:
    """Write the model folder of a VAE and a teacher; returns its bytes. store: as `write_model`."""
    demo = MODELS["demo"]
    cpu = torch.device("cpu")
    transformer, text = read_flow(flow_run, demo.transformer, demo.text, cpu)
    preset = replace(demo, subjects=tuple(subject.name for subject in atlas_subjects(atlas)))
    tokenizer = Tokenizer(flow_run / "spiece.model", demo.text.text_len)
    model = LoadedModel.of_networks(preset, transformer, read_vae(vae_run, cpu), text, tokenizer)
    return write_model(target, model, store=store)


def pack_distilled(
    target: Path,
    teacher: LoadedModel,
    preset: ModelPreset,
    student: Mapping[str, Tensor],
    *,
    store: str | None = "int8_block",
) -> int:
    """Write the model folder of a student's weights, with its teacher's text encoder and VAE; returns its bytes.

    store: as `write_model`. Raises CheckpointError for weights of another network.
    """
    transformer = WanTransformer(replace(preset.transformer, kernels=REFERENCE, quant_linear="off"))
    try:
        transformer.load_state_dict(dict(student))
    except RuntimeError as error:
        raise CheckpointError(f"these weights are not of a student of this teacher: {error}") from None
    return write_model(target, teacher.with_network(preset, transformer), store=store)


def write_model(target: Path, model: LoadedModel, *, store: str | None = "int8_block") -> int:
    """Write a model folder, whose parts are bfloat16 afterwards; returns its bytes.

    store: "int8_block" keeps large weights in int8 blocks, the rest in bfloat16; None keeps all in bfloat16, for a
    model that is trained on: eight bits lose half of a change of 1e-3. They are computed with in float32 where Wan
    does so.
    """
    preset = model.preset
    sampling = {name: getattr(preset, name) for name in SAMPLING_FIELDS}
    config: dict[str, Any] = {
        "sampling": {name: value for name, value in sampling.items() if value is not None},
        "about": {"title": preset.title, "file_name": preset.file_name, "subjects": list(preset.subjects)},
    }
    save_folder(
        target,
        config=config,
        transformer=model.transformer.to(torch.bfloat16),
        vae=model.vae.to(torch.bfloat16),
        text=model.prompt_encoder.encoder.to(torch.bfloat16),
        tokenizer=model.prompt_encoder.tokenizer.path,
        store=store,
    )
    return sum(path.stat().st_size for path in target.iterdir())
