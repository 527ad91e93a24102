"""Where the parts of a model lie in a folder: at the places where published models have them, else by what files hold.

Anybody's folder is understood: one that this package wrote, diffusers', the original Wan's, ComfyUI's, or files that
somebody put side by side. Only names and shapes are read.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from turbodiffusion.checkpoint.experts import find_partner, noise_level
from turbodiffusion.checkpoint.files import open_tensors, shard_of, some
from turbodiffusion.checkpoint.formats import VOCABULARY, Checkpoint, interpret, part_of, parts_of
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.texts import Text, text

# The first that exists is taken. Names that more than one part has are left to what the file holds.
_SHARDED = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
PLACES = {
    "transformer": (
        "transformer.safetensors",
        *(f"{folder}/{name}" for folder in ("transformer", "high_noise_model") for name in _SHARDED),
    ),
    "transformer_low": (
        "transformer_low.safetensors",
        *(f"{folder}/{name}" for folder in ("transformer_2", "low_noise_model") for name in _SHARDED),
    ),
    "vae": ("vae.safetensors", f"vae/{_SHARDED[1]}", "Wan2.1_VAE.pth"),
    "text": (
        "text_encoder.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
    ),
    "tokenizer": ("spiece.model", "tokenizer/spiece.model", "google/umt5-xxl/spiece.model"),
}
SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin")
# Folders that hold transformers, with those of the other parts beside them: diffusers', Wan's, ComfyUI's.
TRANSFORMER_FOLDERS = (
    *("transformer", "transformer_2", "high_noise_model", "low_noise_model"),
    *("diffusion_models", "unet", "checkpoints"),
)
MAX_FILES = 500  # of a folder that are looked into
MAX_FOLDERS = 100


def find(path: str | Path, part: str) -> Path | None:
    """Find the file of `part` (a key of PLACES) under the folder `path`; None where there is none.

    Raises MissingFilesError where several files hold that part.
    """
    path = Path(path)
    at_place = next((path / place for place in PLACES[part] if (path / place).is_file()), None)
    if part == "transformer_low":
        high = find(path, "transformer")
        low = at_place if at_place or high is None else find_partner(high)
        return low if low != high else None
    if at_place is not None:
        return at_place
    if part == "tokenizer":
        return _find_tokenizer(path)
    found = _of_one_model([file for file in _weight_files(path) if holds(file, part)])
    if part == "transformer":
        found = [file for file in found if noise_level(file) != "low" or find_partner(file) not in found]
    if len(found) > 1:
        files = [file.relative_to(path).as_posix() for file in found]
        raise MissingFilesError("place.several", path=path, part=text(f"part.{part}"), files=some(files))
    return found[0] if found else None


def locate(path: str | Path, part: str) -> Path:
    """Return `path` itself where it is a file, else the file of `part` under it.

    Raises MissingFilesError for none, and of a folder without any part CheckpointError for what its first file is.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise MissingFilesError("checkpoint.absent", path=path)
    except OSError as error:  # a name too long for a file, a folder that cannot be entered
        raise MissingFilesError("checkpoint.unreadable", path=path, reason=error.strerror) from None
    found = find(path, part)
    if found is None:
        files = list(_weight_files(path))
        if files and not any(map(_parts_in, files)):
            part_of(files[0])  # which tells what it is instead: a LoRA, a Git LFS pointer, one shard of several
        raise absent(path, [part])
    return found


def absent(folder: Path, parts: list[str]) -> MissingFilesError:
    """Return the error of parts that a folder lacks: what was looked for, and what was seen instead."""
    seen: list[Text | str] = [_described(file, folder) for file in _weight_files(folder)]
    seen += [path.relative_to(folder).as_posix() for each in _folders(folder) for path in each.glob("tokenizer.json")]
    options = [OPTION_OF[part] for part in parts if part in OPTION_OF]
    return MissingFilesError(
        "place.absent",
        path=folder,
        parts=[text(f"part.{part}") for part in parts],
        looked=[place for part in parts for place in PLACES[part]],
        seen=some(seen) if seen else text("place.nothing"),
        way=text("place.name_it", options=options) if options else text("place.name_file"),
    )


OPTION_OF = {"vae": "--vae", "text": "--text-encoder", "tokenizer": "--tokenizer"}


def open_checkpoint(path: str | Path, part: str) -> Checkpoint:
    """Open the weights of `part` ("transformer", "transformer_low", "vae" or "text") under `path`, of any family.

    Raises CheckpointError when the file belongs to no family of that part, or contradicts itself.
    """
    return interpret(open_tensors(locate(path, part)), part)


def find_shared(
    source: Path, named: Mapping[str, str | Path | None], *, only_named: bool = False
) -> tuple[dict[str, Path], MissingFilesError | None]:
    """Find the parts that models share ("vae", "text", "tokenizer") in a folder or beside a file.

    named: those that the user names, each a file or a folder; only_named: look for no other. Returns with them the
    error of those that are absent. Raises CheckpointError for a named file that does not hold its part.
    """
    folder = source if source.is_dir() else source.parent
    found = {part: _named_part(Path(path), part) for part, path in named.items() if path is not None}
    for part in OPTION_OF:
        if only_named:
            break
        if part == "tokenizer" and part not in found and "text" in found and holds(found["text"], part):
            found[part] = found["text"]
        elif part not in found and (path := find(folder, part) or _find_around(folder, part)) is not None:
            found[part] = path
    missing = [part for part in OPTION_OF if part not in found]
    return found, absent(folder, missing) if missing and not only_named else None


def _find_around(folder: Path, part: str) -> Path | None:
    """A part beside the folder that a transformer's file is in, where that is one of several of a model."""
    if folder.name not in TRANSFORMER_FOLDERS:
        return None
    try:
        return find(folder.resolve().parent, part)
    except MissingFilesError:  # several: those of other models are there too
        return None


def _named_part(path: Path, part: str) -> Path:
    """A file that the user names for a part, or the one in a folder that the user names."""
    with contextlib.suppress(RuntimeError):  # ~ of no user: then it is told as a path that does not exist
        path = path.expanduser()
    file = locate(path, part)
    if not holds(file, part):
        if part != "tokenizer":
            open_checkpoint(file, part)  # which tells what it is instead
        raise CheckpointError("place.not_a_vocabulary", path=file)
    return file


def holds(path: Path, part: str) -> bool:
    """Say whether a file holds a part: weights of it, or a vocabulary."""
    if part == "tokenizer":
        return path.suffix == ".model" or VOCABULARY in _names_in(path)
    return part.removesuffix("_low") in _parts_in(path)


def read_vocabulary(path: Path) -> bytes:
    """Return the SentencePiece model that a file is, or that a text encoder of ComfyUI's has inside."""
    if path.suffix in SUFFIXES:
        file = open_tensors(path)
        if VOCABULARY not in file.shapes:
            raise CheckpointError("place.no_vocabulary", path=path)
        return file.read(VOCABULARY).cpu().numpy().tobytes()
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFilesError("checkpoint.unreadable", path=path, reason=error.strerror) from None


def _find_tokenizer(folder: Path) -> Path | None:
    found = [file for each in _folders(folder) for file in sorted(each.glob("*.model")) if file.is_file()]
    found += [file for file in _weight_files(folder) if VOCABULARY in _names_in(file)]
    return found[0] if found else None


def _weight_files(folder: Path) -> Iterator[Path]:
    """Files that may hold weights, in a folder and those inside it; of shards the index, else the first."""
    count = 0
    for each in _folders(folder):
        files = sorted(path for path in each.iterdir() if path.is_file() and not path.name.startswith("."))
        indices = {path for path in files if path.name.endswith(".json") and ".index." in path.name}
        whole = {index.name.partition(".")[0] for index in indices}
        seen: set[tuple[str, str]] = set()  # stems of shards
        for path in files:
            stem = shard_of(path)
            weights = path.suffix in SUFFIXES and (stem is None or stem.partition(".")[0] not in whole)
            if stem is not None and weights:
                weights = (stem, path.suffix) not in seen
                seen.add((stem, path.suffix))
            if (path in indices or weights) and count < MAX_FILES:
                count += 1
                yield path


def _folders(folder: Path) -> list[Path]:
    """A folder and those in it that can be entered."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise MissingFilesError("checkpoint.unreadable", path=folder, reason=error.strerror) from None
    return [folder, *(path for path in inside[:MAX_FOLDERS] if _can_enter(path))]


def _can_enter(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except OSError:
        return False
    return True


def _parts_in(path: Path) -> frozenset[str]:
    """The parts that a file holds; none for what is damaged or foreign: whoever opens it is told."""
    status = path.stat()
    return _parts_of(path, status.st_mtime_ns, status.st_size)[0]


def _names_in(path: Path) -> frozenset[str]:
    status = path.stat()
    return _parts_of(path, status.st_mtime_ns, status.st_size)[1]


@lru_cache(maxsize=1000)
def _parts_of(path: Path, changed: int, size: int) -> tuple[frozenset[str], frozenset[str]]:
    """The parts of a file, and which of the marks that are looked for are among its names."""
    try:
        file = open_tensors(path)
    except CheckpointError:
        return frozenset(), frozenset()
    return frozenset(parts_of(file)), frozenset({VOCABULARY} & set(file.shapes))


def _of_one_model(found: list[Path]) -> list[Path]:
    """Of files that hold the same part: safetensors where there are also pickles of the same stem."""
    safe = {(path.parent, path.name.partition(".")[0]) for path in found if ".safetensors" in path.name}
    return [
        path for path in found if ".safetensors" in path.name or (path.parent, path.name.partition(".")[0]) not in safe
    ]


def _described(file: Path, folder: Path) -> Text | str:
    name = file.relative_to(folder).as_posix()
    parts = sorted(_parts_in(file))
    if parts:
        return text("place.file", name=name, holds=[text(f"part.{part}") for part in parts])
    return name
