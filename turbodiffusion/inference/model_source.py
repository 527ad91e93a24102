"""What a model's name means: a preset, one of our folders, another project's folder, or a single weight file.

`resolve_model` reads names and shapes only, so a request can be checked before anything is fetched, and parts that do
not belong together are told before a byte of weights is read; `fetch_files` then says where each part is, fetching from
the hub what is not on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turbodiffusion.checkpoint.folder import FILES, FolderConfig, PartConfig, read_folder
from turbodiffusion.checkpoint.formats import part_of
from turbodiffusion.checkpoint.hub import OnProgress, fetch
from turbodiffusion.checkpoint.infer import check_config, read_config, read_header
from turbodiffusion.checkpoint.pair import find_transformers
from turbodiffusion.checkpoint.places import absent, find_shared, open_checkpoint, read_vocabulary
from turbodiffusion.checkpoint.sampling import SAMPLING_FIELDS, Sampling, check_sampling, file_name, infer_sampling
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import CheckpointError, MissingFilesError, UserError
from turbodiffusion.files import check_ends, home
from turbodiffusion.models.text import Tokenizer
from turbodiffusion.presets import MODELS, HubFile, ModelPreset, find_model
from turbodiffusion.request import Request
from turbodiffusion.texts import Text, text

__all__ = ["DEMO_FOLDER", "SAMPLING_FIELDS", "ModelSource", "check_vocabulary", "fetch_files", "resolve_model"]

DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"
SHARED_PARTS = ("vae", "text", "tokenizer")  # the same files for every Wan model
INDEX_NAMES = ("model.json", "model_index.json")  # files that stand for the folder that they are in


@dataclass(frozen=True)
class ModelSource:
    """A model that was asked for: how to run it, and the folder or file that it is in; None: the hub.

    `parts` are the files that are on this machine, by part.
    """

    preset: ModelPreset
    path: Path | None
    parts: Mapping[str, Path] = field(default_factory=dict)


def resolve_model(
    model: str, *, vae: str | None = None, text_encoder: str | None = None, tokenizer: str | None = None
) -> ModelSource:
    """Find the model of a name, folder or file, with own files for its shared parts where they are named.

    Raises RequestError, MissingFilesError or CheckpointError in one line.
    """
    named = {"vae": vae, "text": text_encoder, "tokenizer": tokenizer}
    if model.lower() == "demo":
        return _of_folder(DEMO_FOLDER, "demo", named)
    if model.lower() in MODELS:
        return _of_preset(find_model(model), named)
    path = home(model)
    check_ends(path)
    if path.is_file() and path.name in INDEX_NAMES:
        path = path.parent
    if (path / "model.json").is_file():
        return _of_folder(path, model, named)
    if path.is_dir():
        return _of_foreign(path, model, named)
    if path.is_file():
        part = part_of(path) if path.suffix != ".model" else "tokenizer"
        if part != "transformer":
            raise CheckpointError("model.not_a_transformer", path=path, part=text(f"part.{part}"))
        return _of_foreign(path, model, named)
    if len(path.parts) > 1 or path.suffix in (".pth", ".pt", ".safetensors", ".gguf"):
        raise MissingFilesError("model.no_path", path=model)
    return _of_preset(find_model(model), named)  # raises, naming the nearest


def fetch_files(
    source: ModelSource, *, resolution: str | None = None, quantized: bool = False, on_fetch: OnProgress | None = None
) -> dict[str, Path]:
    """Return a file for each part: transformer, transformer_low (of two experts), vae, text, tokenizer.

    resolution, quantized: which of a published model's files. Raises MissingFilesError when they are neither here nor
    can be fetched.
    """
    preset, here = source.preset, dict(source.parts)
    wanted: tuple[HubFile, ...] = preset.files(resolution, quantized=quantized)
    if source.path is not None:
        wanted = MODELS["wan2.1-t2v-1.3b"].files()
        wanted = tuple(file for file in wanted if file.role in SHARED_PARTS)
    wanted = tuple(file for file in wanted if file.role not in here)
    if wanted and preset.text != TextConfig():
        assert source.path is not None
        folder = source.path if source.path.is_dir() else source.path.parent
        raise absent(folder, [file.role for file in wanted])
    fetched = fetch(wanted, on_progress=on_fetch) if wanted else {}
    return here | {file.role: fetched[file.path] for file in wanted}


def check_vocabulary(preset: ModelPreset, paths: Mapping[str, Path]) -> None:
    """Raise CheckpointError for a tokenizer with more pieces than the text encoder has embeddings."""
    if "tokenizer" not in paths:
        return
    path = paths["tokenizer"]
    pieces = Tokenizer(path, preset.text.text_len, model=read_vocabulary(path)).vocab_size
    if pieces > preset.text.vocab_size:
        told = _told(paths, "text")
        raise CheckpointError("part.vocabulary", path=path, pieces=pieces, text=told, embeddings=preset.text.vocab_size)


# ---- of each kind of source ----


def _of_preset(preset: ModelPreset, named: Mapping[str, str | None]) -> ModelSource:
    """A published model, with a user's own files in the place of the hub's."""
    if not any(named.values()):
        return ModelSource(preset, None)
    parts, _ = find_shared(Path(), named, only_named=True)
    preset = _with_own_parts(preset, parts)
    _check_parts(preset, parts)
    return ModelSource(preset, None, parts)


def _of_folder(folder: Path, name: str, named: Mapping[str, str | None]) -> ModelSource:
    """One of our folders: model.json has the configurations and the defaults, and the files must be as it says."""
    config = read_folder(folder)
    own, _ = find_shared(folder, named, only_named=True)
    expected = ["transformer", *(["transformer_low"] if config.two_experts else []), "vae", "text"]
    files = {part: folder / FILES[part] for part in expected} | {"tokenizer": folder / "spiece.model"}
    lacking = [path.name for part, path in files.items() if part not in own and not path.is_file()]
    if lacking:
        raise MissingFilesError("model.folder_lacks", path=folder, files=lacking)
    paths = files | own
    _check_headers(config, {part: path for part, path in paths.items() if part not in own})
    preset = _preset(folder, name, config.transformer, config.vae, config.text, config, Sampling(config.sampling))
    preset = _with_own_parts(preset, own)
    _check_parts(preset, paths)
    return ModelSource(preset, folder, paths)


def _of_foreign(path: Path, name: str, named: Mapping[str, str | None]) -> ModelSource:
    """Another project's weights: shapes tell the network, and Wan's defaults for such a network are taken."""
    transformers = find_transformers(path)
    parts, _ = find_shared(path, named)
    vae: VAEConfig = read_config(parts["vae"], "vae") if "vae" in parts else VAEConfig()
    text_config: TextConfig = read_config(parts["text"], "text") if "text" in parts else TextConfig()
    parts["transformer"] = transformers.high
    if transformers.low is not None:
        parts["transformer_low"] = transformers.low
    header = read_header(open_checkpoint(transformers.high, "transformer"))
    stored = check_sampling((header or {}).get("sampling") or {}, transformers.high)
    sampling = Sampling(stored, transformers.assumed)
    preset = _preset(path, name, transformers.config, vae, text_config, None, sampling, transformers.low)
    _check_parts(preset, parts, path)
    return ModelSource(preset, path, parts)


def _preset(
    path: Path,
    name: str,
    transformer: WanConfig,
    vae: VAEConfig,
    text_config: TextConfig,
    folder: FolderConfig | None,
    sampling: Sampling,
    low: Path | None = None,
) -> ModelPreset:
    if transformer.image_dim is not None:
        raise CheckpointError("model.clip", path=path)
    about: Mapping[str, Any] = folder.about if folder is not None else {}
    experts = 2 if low is not None or (folder is not None and folder.two_experts) else 1
    task = "i2v" if transformer.in_dim > vae.z_dim else "t2v"
    values, assumed = {"resolution": "480p", **sampling.values}, sampling.assumed
    if "sampler" not in sampling.values:
        inferred = infer_sampling(path, transformer, task, experts)
        values, assumed = {**inferred.values, **values}, (*assumed, *inferred.assumed)
    try:
        preset = ModelPreset(
            name=name,
            title=about.get("title") or name,
            file_name=about.get("file_name") or file_name(path),
            task=task,
            transformer=transformer,
            vae=vae,
            text=text_config,
            experts=experts,
            subjects=tuple(about.get("subjects") or ()),
            assumed=assumed,
            **values,
        )
        Request("a video", image="image" if task == "i2v" else None).resolve(preset)
    except UserError as error:
        raise CheckpointError("model.sampling", path=path, reason=error.text) from None
    except (TypeError, ValueError) as error:
        raise CheckpointError("model.sampling", path=path, reason=str(error)) from None
    return preset


def _with_own_parts(preset: ModelPreset, own: Mapping[str, Path]) -> ModelPreset:
    """A model with the configurations of the files that a user named for its parts."""
    if "vae" in own:
        preset = replace(preset, vae=read_config(own["vae"], "vae"))
    if "text" in own:
        preset = replace(preset, text=read_config(own["text"], "text"))
    return preset


# ---- whether the parts belong together ----


def _check_headers(config: FolderConfig, paths: Mapping[str, Path]) -> None:
    """The files of one of our folders against its model.json, by names and shapes."""
    configs: dict[str, PartConfig] = {"transformer": config.transformer, "transformer_low": config.transformer}
    configs |= {"vae": config.vae, "text": config.text}
    for part, expected in configs.items():
        if part in paths:
            check_config(open_checkpoint(paths[part], part), expected, config.folder / "model.json")


def _check_parts(preset: ModelPreset, paths: Mapping[str, Path], path: Path | None = None) -> None:
    """Raise CheckpointError where two parts have been made for other ones; the line names both and both numbers."""
    transformer, vae, text_config = preset.transformer, preset.vae, preset.text
    pairs = (
        ("part.text_width", transformer.text_dim, "text", text_config.d_model),
        ("part.text_len", transformer.text_len, "text", text_config.text_len),
        ("part.latent_channels", transformer.out_dim, "vae", vae.z_dim),
    )
    for code, mine, part, theirs in pairs:
        if mine != theirs:
            if part not in paths and path is not None:
                missing = [each for each in SHARED_PARTS if each not in paths]
                raise absent(path if path.is_dir() else path.parent, missing)
            one, other = _told(paths, "transformer"), _told(paths, part)
            raise CheckpointError("part.differs", one=one, other=other, what=text(code), first=mine, second=theirs)
    if transformer.in_dim not in (vae.z_dim, 2 * vae.z_dim + 4):
        one, other = _told(paths, "transformer"), _told(paths, "vae")
        needed = f"{vae.z_dim}, {2 * vae.z_dim + 4}"
        raise CheckpointError("part.input_channels", one=one, other=other, channels=transformer.in_dim, needed=needed)
    check_vocabulary(preset, paths)


def _told(paths: Mapping[str, Path], part: str) -> Text:
    """A part as an error names it: by its file, or as Wan's own."""
    name = text(f"part.{part}")
    if part in paths:
        return text("part.of_file", part=name, path=paths[part])
    return text("part.of_wan", part=name)
