"""The two networks of Wan 2.2 A14B, found by the words high and low in the names of their files and folders.

The shape of a network does not tell: an expert of T2V A14B has that of Wan 2.1 14B. So words decide, whole and in any
case, and half a pair is refused, because it would run as a whole model and make grey noise.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from turbodiffusion.config import WanConfig
from turbodiffusion.errors import MissingFilesError
from turbodiffusion.texts import text

# "high", "HIGH_noise", "HighNoise", "low-noise"; not "highway", "slow", "flow"
_WORD = re.compile(r"(?<![a-z])(high|low)([ _.\-]*noise)?(?![a-z])", re.IGNORECASE)
_FOLDERS = {"transformer": "high", "transformer_2": "low"}  # diffusers'
_PAIRED = re.compile(r"(?<![a-z0-9])a14b(?![a-z0-9])", re.IGNORECASE)
_WAN_22 = re.compile(r"(?<![a-z0-9])(wan[ _\-]?)?2[._]2(?![0-9])|wan22(?![0-9])", re.IGNORECASE)
LARGE = 5120  # dim of the 14B networks, the only ones that were published in pairs


def noise_level(path: Path) -> str | None:
    """Return "high" or "low" where the file's name says it, or that of a folder made for one expert; None else."""
    if word := _WORD.search(path.name):
        return word[1].lower()
    if path.parent.name in _FOLDERS and (path.parent.name == "transformer_2" or _other_folder(path.parent)):
        return _FOLDERS[path.parent.name]
    word = _WORD.search(path.parent.name)
    return word[1].lower() if word and word[2] else None


def find_partner(path: Path) -> Path | None:
    """Return the file of the other expert: the same name with the other word, beside it or in the other's folder."""
    level = noise_level(path)
    if level is None:
        return None
    if _WORD.search(path.name):
        beside = _files(path.parent)
    elif path.parent.name in _FOLDERS:
        beside = _files(path.parent.with_name("transformer" if level == "low" else "transformer_2"))
    else:
        folders = [each for each in _folders(path.parent.parent) if _pattern(each.name) == _pattern(path.parent.name)]
        beside = [file for folder in folders if folder != path.parent for file in _files(folder)]
    same = [other for other in beside if other != path and _pattern(other.name) == _pattern(path.name)]
    return next((other for other in same if noise_level(other) not in (None, level)), None)


def says_pair(path: Path, config: WanConfig) -> bool:
    """Say whether a transformer is one of two: by a noise level or A14B in its name, or as Wan 2.2's image to video."""
    name = _WORD.search(path.name)
    explicit = (name and name[2]) or (noise_level(path) and not name)
    large_word = name is not None and (config.dim >= LARGE or _WAN_22.search(path.name))
    image = config.in_dim > config.out_dim and config.image_dim is None
    return bool(explicit or large_word or _PAIRED.search(path.name) or image)


def may_be_pair(path: Path) -> bool:
    """Say whether the name has Wan 2.2 in it, most of whose networks come in pairs."""
    return bool(_WAN_22.search(path.name) or _WAN_22.search(path.parent.name))


def half_pair(path: Path) -> MissingFilesError:
    """Return the error of an expert whose other one is not there; it names the file that was looked for."""
    level = noise_level(path) or _FOLDERS.get(path.parent.name)
    if level is None:
        return MissingFilesError("experts.no_words", path=path)
    if _WORD.search(path.name):
        wanted = _swapped(path.name)
    elif path.parent.name in _FOLDERS:
        wanted = f"{'transformer' if level == 'low' else 'transformer_2'}/{path.name}"
    else:
        wanted = f"{_swapped(path.parent.name)}/{path.name}"
    levels = [text("experts.high"), text("experts.low")]
    mine, other = levels if level == "high" else levels[::-1]
    return MissingFilesError("experts.half", path=path, level=mine, wanted=wanted, other=other)


def _swapped(name: str) -> str:
    """The name with the other word, written as this one is."""

    def other(word: re.Match[str]) -> str:
        new = "low" if word[1].lower() == "high" else "high"
        new = new.upper() if word[1].isupper() else new.title() if word[1][0].isupper() else new
        return new + (word[2] or "")

    return _WORD.sub(other, name)


def _pattern(name: str) -> str:
    """The name without which expert it is, case apart."""
    return _WORD.sub("\0", name).casefold()


def _other_folder(folder: Path) -> bool:
    return folder.with_name("transformer_2").is_dir()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _folders(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
