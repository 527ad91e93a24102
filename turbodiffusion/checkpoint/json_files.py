"""JSON from files that anybody may have written: what cannot be read as such is one kind of error, ValueError."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # the index of the largest sharded model is a few MiB


def parse_json(source: str) -> Any:
    """Return what a JSON text says.

    Raises ValueError for anything else, numbers of thousands of digits, nests too deep for the parser and NaN included.
    """
    try:
        return json.loads(source, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file says. Raises OSError, or ValueError as `parse_json` and for a file of over 64 MiB."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES >> 20} MiB")
    return parse_json(content.decode("utf-8"))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")
