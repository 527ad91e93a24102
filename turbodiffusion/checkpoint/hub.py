"""Files on a hub: what a model needs, fetched through huggingface_hub, checked, and named when they are missing.

huggingface_hub resumes a cut transfer, compares sizes and keeps the cache; HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and
HF_TOKEN are its own. Over plain HTTP it does not compare checksums: that is done here, once, after the download. A file
that is in the cache is used as it is, without asking the hub.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.presets import HubFile
from turbodiffusion.texts import Text, text

OnProgress = Callable[["HubFile", int, int], None]  # the file, its bytes so far, its bytes in all


def fetch(
    files: Sequence[HubFile], *, endpoint: str | None = None, on_progress: OnProgress | None = None
) -> dict[str, Path]:
    """Download what is not in the cache and return the local paths of the files by their `path`.

    endpoint: the hub's address, by default HF_ENDPOINT's or the public one.
    Raises MissingFilesError, which tells the files, their sizes, the reason and the command that fetches them;
    CheckpointError when what came has another SHA-256 than the hub states (it is removed from the cache).
    """
    # Not at the top: half a second, for a module that every command imports through the presets.
    from huggingface_hub import constants, try_to_load_from_cache

    assert len({file.path for file in files}) == len(files), "two files of one path cannot be told apart"
    found = {}
    for file in files:
        cached = try_to_load_from_cache(file.repo, file.path)
        if isinstance(cached, str):
            found[file.path] = Path(cached)
    missing = [file for file in files if file.path not in found]
    if missing and constants.HF_HUB_OFFLINE:
        raise _missing(missing, text("hub.offline"), endpoint)
    for index, file in enumerate(missing):
        try:
            found[file.path] = _download(file, endpoint, on_progress)
        except CheckpointError:
            raise
        except Exception as error:  # errors of the HTTP client come through, and the library has changed its client
            raise _missing(missing[index:], _reason(file, error), endpoint) from None
    return found


def _download(file: HubFile, endpoint: str | None, on_progress: OnProgress | None) -> Path:
    from huggingface_hub import hf_hub_download

    bar: dict[str, Any] = {"tqdm_class": _progress_bar(file, on_progress)} if on_progress else {}
    path = Path(hf_hub_download(file.repo, file.path, endpoint=endpoint, **bar))
    blob = path.resolve()
    # The cache names a blob by the hub's ETag: the SHA-256 of a large (LFS) file, the git hash of a small one.
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        with blob.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != blob.name:
            path.unlink()
            blob.unlink()
            raise CheckpointError(
                "hub.damaged", path=file.path, repo=file.repo, actual=actual[:12], expected=blob.name[:12]
            )
    return path


def _progress_bar(file: HubFile, on_progress: OnProgress) -> type:
    """Make a tqdm class that prints nothing and calls `on_progress`."""
    from tqdm.auto import tqdm

    class Report(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))
            self._done, self._total = options.get("initial") or 0, options.get("total") or file.bytes

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            on_progress(file, self._done, self._total)

    return Report


def _reason(file: HubFile, error: Exception) -> Text | str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return text("hub.gated", repo=file.repo)
    if isinstance(error, errors.RepositoryNotFoundError):
        return text("hub.no_repo", repo=file.repo)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return text("hub.unreachable")
    if isinstance(error, errors.EntryNotFoundError):
        return text("hub.no_file", repo=file.repo, path=file.path)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _missing(files: Sequence[HubFile], reason: Text | str, endpoint: str | None) -> MissingFilesError:
    """Return the error that names the missing files and the command that fetches them."""
    from huggingface_hub import constants

    by_repo: dict[str, list[str]] = {}
    for file in files:
        by_repo.setdefault(file.repo, []).append(file.path)
    address = endpoint or constants.ENDPOINT
    setting = f"HF_ENDPOINT={endpoint} " if endpoint else ""
    setting += "HF_HUB_OFFLINE=0 " if constants.HF_HUB_OFFLINE else ""
    commands = [f"{setting}hf download {repo} {' '.join(paths)}" for repo, paths in by_repo.items()]
    listed = [
        text("hub.file", path=file.path, role=file.role, size=_size(file.bytes), repo=file.repo) for file in files
    ]
    return MissingFilesError(
        "hub.missing",
        number=text("hub.one") if len(files) == 1 else text("hub.many", count=len(files)),
        total=_size(sum(file.bytes for file in files)),
        address=address,
        files=listed,
        reason=reason,
        commands=" && ".join(commands),
    )


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
