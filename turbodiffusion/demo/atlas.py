"""The baked art of the demo world: a file of sheets, one a subject. `turbodiffusion.demo.bake` writes it."""

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from turbodiffusion.demo.subjects import BY_NAME
from turbodiffusion.errors import MissingFilesError

SHEET = "sheet/"  # before a subject's name


@contextmanager
def open_atlas(path: str | Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an atlas, whose arrays are read when they are asked for.

    Raises MissingFilesError for a file that is not there, that is none or that is cut short, also while it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFilesError("demo.no_atlas", path=path, folder=path.parent)
    try:
        file = np.load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError
        with file:
            yield file
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise MissingFilesError("demo.bad_atlas", path=path, folder=path.parent) from None


def subjects_in(atlas: Mapping[str, np.ndarray], path: str | Path) -> list[str]:
    """Return the names of the table that an open atlas has a sheet of, in the table's order.

    Raises MissingFilesError where there is none.
    """
    names = [name for name in BY_NAME if f"{SHEET}{name}" in atlas]
    if not names:
        raise MissingFilesError("demo.empty_atlas", path=path, folder=Path(path).parent)
    return names


def sheet_of(atlas: Mapping[str, np.ndarray], key: str) -> Image.Image:
    """Return the picture of a sheet."""
    return Image.open(io.BytesIO(atlas[key].tobytes()))
