"""What a model's name means: a preset, one of our folders, another project's folder, or a single weight file.

`resolve_model` reads names and shapes only, so a request can be checked before anything is fetched; `fetch_files` then
says where each part is, fetching from the hub what is not on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.checkpoint.convert import read_config
from turbodiffusion.checkpoint.files import find, locate
from turbodiffusion.checkpoint.folder import FILES, read_folder
from turbodiffusion.checkpoint.formats import part_of
from turbodiffusion.checkpoint.hub import OnProgress, fetch
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.files import check_ends, home
from turbodiffusion.presets import MODELS, HubFile, ModelPreset, find_model

DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"
SHARED_PARTS = ("vae", "text", "tokenizer")  # the same files for every Wan model
# What a folder's `sampling` may set, by ModelPreset's names.
SAMPLING_FIELDS = (
    "sampler",
    "num_steps",
    "resolution",
    "aspect_ratio",
    "num_frames",
    "fps",
    "sigma_max",
    "shift",
    "guidance",
    "boundary",
)


@dataclass(frozen=True)
class ModelSource:
    """A model that was asked for: how to run it, and the folder or file that it is in; None: the hub."""

    preset: ModelPreset
    path: Path | None


def resolve_model(model: str) -> ModelSource:
    """The model of a name, folder or file. Raises RequestError, MissingFilesError or CheckpointError in one line."""
    if model.lower() == "demo":
        return ModelSource(_folder_preset(DEMO_FOLDER, "demo"), DEMO_FOLDER)
    if model.lower() in MODELS:
        return ModelSource(find_model(model), None)
    path = home(model)
    check_ends(path)
    if (path / "model.json").is_file():
        return ModelSource(_folder_preset(path, model), path)
    if path.is_dir():
        return ModelSource(_inferred_preset(path, model), path)
    if path.is_file():
        if part_of(path) != "transformer":
            raise CheckpointError(f"{path} holds a {part_of(path)}; a model is a transformer's file, or a folder")
        return ModelSource(_inferred_preset(path, model), path)
    if len(path.parts) > 1 or path.suffix in (".pth", ".safetensors"):
        raise MissingFilesError(f"there is no model file or folder {model}; `turbodiffusion models` lists the names")
    return ModelSource(find_model(model), None)  # raises, naming the nearest


def fetch_files(
    source: ModelSource, *, resolution: str | None = None, quantized: bool = False, on_fetch: OnProgress | None = None
) -> dict[str, Path]:
    """A file for each part: transformer, transformer_low (of two experts), vae, text, tokenizer.

    resolution, quantized: which of a published model's files. Raises MissingFilesError when they are neither here nor
    can be fetched.
    """
    preset, path = source.preset, source.path
    paths: dict[str, Path] = {}
    wanted: tuple[HubFile, ...] = preset.files(resolution, quantized=quantized)
    if path is not None:
        parts = ("transformer", "transformer_low")[: preset.experts]
        paths = {part: locate(path, part) for part in parts} if path.is_dir() else _experts(path, preset)
        folder = path if path.is_dir() else path.parent
        paths |= {part: found for part in SHARED_PARTS if (found := _part_in(folder, part)) is not None}
        wanted = tuple(f for f in MODELS["wan2.1-t2v-1.3b"].files() if f.role in SHARED_PARTS and f.role not in paths)
    if wanted and preset.text != TextConfig():
        absent = ", ".join(file.role for file in wanted)
        raise MissingFilesError(f"{path} has no {absent}, and what it was made with is none of Wan's own parts")
    fetched = fetch(wanted, on_progress=on_fetch) if wanted else {}
    return paths | {file.role: fetched[file.path] for file in wanted}


def _part_in(folder: Path, part: str) -> Path | None:
    """A part in a folder, but not a lone transformer that stands for every part."""
    found = find(folder, part)
    if found is None or part == "tokenizer":
        return found
    return found if found.suffix == ".json" or part_of(found) == part else None


def _experts(path: Path, preset: ModelPreset) -> dict[str, Path]:
    """The transformer's file and, for two experts, the other one beside it: high and low in the names."""
    if preset.experts == 1:
        return {"transformer": path}
    high, low = (path.with_name(path.name.replace(a, b)) for a, b in (("low", "high"), ("high", "low")))
    if high == low or not (high.is_file() and low.is_file()):
        raise MissingFilesError(
            f"{path} is one of a model's two networks: the other must lie beside it, with high and low in the names"
        )
    return {"transformer": high, "transformer_low": low}


def _folder_preset(folder: Path, name: str) -> ModelPreset:
    """One of our folders: model.json has the configurations and the defaults."""
    config = read_folder(folder)
    unknown = [key for key in config.sampling if key not in SAMPLING_FIELDS]
    if unknown:
        raise CheckpointError(f"{folder}/model.json: sampling has {', '.join(SAMPLING_FIELDS)}, not {unknown[0]}")
    absent = [part for part in FILES if part != "transformer_low" and not (folder / FILES[part]).is_file()]
    if absent:
        raise MissingFilesError(f"{folder} lacks {', '.join(FILES[part] for part in absent)}")
    return _preset(
        folder,
        name,
        config.transformer,
        config.vae,
        config.text,
        experts=2 if config.two_experts else 1,
        sampling=config.sampling,
        about=config.about,
    )


def _inferred_preset(path: Path, name: str) -> ModelPreset:
    """Another project's weights: shapes tell the network, and Wan's defaults for such a network are taken."""
    transformer = read_config(path, "transformer")
    folder = path if path.is_dir() else path.parent
    vae: VAEConfig = read_config(folder, "vae") if _part_in(folder, "vae") else VAEConfig()
    text: TextConfig = read_config(folder, "text") if _part_in(folder, "text") else TextConfig()
    if path.is_dir():
        experts = 2 if find(path, "transformer_low") else 1
    else:
        experts = 2 if transformer.in_dim > vae.z_dim else 1  # Wan 2.2's image to video has no file that stands alone
    return _preset(path, name, transformer, vae, text, experts=experts, sampling={}, about={})


def _preset(
    path: Path,
    name: str,
    transformer: WanConfig,
    vae: VAEConfig,
    text: TextConfig,
    *,
    experts: int,
    sampling: Mapping[str, Any],
    about: Mapping[str, Any],
) -> ModelPreset:
    if transformer.image_dim is not None:
        raise CheckpointError(
            f"{path} is Wan 2.1's image to video, which needs CLIP's image encoder; wan2.2-i2v-a14b does without"
        )
    task = "i2v" if transformer.in_dim > vae.z_dim else "t2v"
    defaults = {"resolution": "480p", **({} if "sampler" in sampling else _wan_sampling(transformer, task, experts))}
    try:
        return ModelPreset(
            name=name,
            title=str(about.get("title", name)),
            file_name=str(about.get("file_name", path.stem if path.is_file() else path.name)),
            task=task,
            transformer=transformer,
            vae=vae,
            text=text,
            experts=experts,
            subjects=tuple(about.get("subjects", ())),
            **(defaults | dict(sampling)),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no usable sampling defaults: {error}") from None


def _wan_sampling(transformer: WanConfig, task: str, experts: int) -> dict[str, Any]:
    """The defaults of Wan's own release, or of TurboDiffusion's for a network that it distilled."""
    boundary = {"boundary": 0.9} if experts == 2 else {}
    if transformer.round_time_to_bf16:
        return {"sampler": "rcm", "num_steps": 4, "sigma_max": 200.0 if task == "i2v" else 80.0, **boundary}
    if experts == 2:
        return {"sampler": "flow", "num_steps": 40, "shift": 5.0, "guidance": 3.5, **boundary}
    small = transformer.dim <= 1536
    return {"sampler": "flow", "num_steps": 50, "shift": 8.0 if small else 5.0, "guidance": 6.0 if small else 5.0}
