"""A file of prompts: one a line, or a request in JSON a line; what it holds, and what of it is done already.

A line that begins with # is a comment, one that begins with { is a request in JSON, whose fields go before the
options; lines end where \\n says so and nowhere else. What was made is remembered in the output folder, by a digest of
what was asked for, so that the same command goes on where it stopped.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.errors import RequestError, UserError
from turbodiffusion.files import append_line, read_file
from turbodiffusion.request import Request

LIMIT = 64_000_000  # bytes of a file of prompts
DONE = ".turbodiffusion-done.jsonl"


@dataclass(frozen=True)
class Item:
    """One video that a command is going to make, or what is wrong with its line."""

    request: Request | None
    error: UserError | None = None
    line: int | None = None  # of a prompts file
    digest: str = ""

    @property
    def words(self) -> str:
        """What a person recognizes it by."""
        return self.request.prompt if self.request else ""


def read_items(path: Path, fields: Mapping[str, Any]) -> list[Item]:
    """Read the items of a prompts file. fields: of each request that does not name them itself.

    Raises RequestError for a file that cannot be read, that is no text in UTF-8, or that holds no prompt. A line that
    is wrong becomes an item with its error.
    """
    items, seen = [], Counter[str]()
    for number, words in enumerate(_text(path).split("\n"), 1):
        words = words.strip()
        if not words or words.startswith("#"):
            continue
        try:
            request = Request.from_json(_merged(words, fields)) if words.startswith("{") else Request(words, **fields)
        except UserError as error:
            items.append(Item(None, error, number))
            continue
        digest = digest_of(request)
        seen[digest] += 1  # a prompt that stands there twice is two videos
        items.append(Item(request, None, number, f"{digest}-{seen[digest]}"))
    if not items:
        raise RequestError("cli.prompts_empty", path=path)
    return items


def _merged(words: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        own = json.loads(words)
    except (ValueError, RecursionError) as error:
        raise RequestError("request.not_json", reason=str(error) or type(error).__name__) from None
    return {**fields, **own}  # a line that begins with { and is JSON is an object


def _text(path: Path) -> str:
    try:
        data = read_file(path, LIMIT)
    except OSError as error:
        raise RequestError("cli.prompts_unreadable", path=path, reason=error.strerror) from None
    try:
        words = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        words = "\0"
    if "\0" not in words:
        return words
    encoding = _encoding(data)
    if encoding is None:
        raise RequestError("cli.prompts_not_utf8", path=path)
    raise RequestError("cli.prompts_encoding", path=path, encoding=encoding, new=path.with_suffix(".utf8.txt"))


def _encoding(data: bytes) -> str | None:
    """What a text that is not UTF-8 seems to be: UTF-16 by its first bytes or its NULs, GBK by its Chinese."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if b"\0" in data:
        halves = data[0:4000:2].count(0), data[1:4000:2].count(0)
        return ("UTF-16LE", "UTF-16BE")[halves[0] > halves[1]] if max(halves) * 4 > len(data[:4000]) else None
    try:
        words = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    # Latin letters with accents are pairs in GBK too, but rare characters, and seldom two in a row
    common = sum("\u4e00" <= character <= "\u9fff" and character.encode("gb18030")[0] < 0xD8 for character in words)
    other = sum(character > "\x7f" for character in words)
    return "GBK" if common * 2 > other and common >= 2 else None


def digest_of(request: Request) -> str:
    """Return a digest of what is asked for, the content of its image with it."""
    asked = asdict(request)
    if request.image is not None:
        with contextlib.suppress(OSError, UserError):  # to be told by who reads it
            asked["image"] = hashlib.sha256(read_file(request.image, 1 << 30)).hexdigest()
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


# ---- what is done ----


def split_done(items: Sequence[Item], folder: Path) -> tuple[list[Item], int]:
    """Return the items whose video is not in the folder yet, and how many are."""
    made = _made(folder)
    left = [item for item in items if not item.digest or not (folder / made.get(item.digest, "")).is_file()]
    return left, len(items) - len(left)


def remember(item: Item, path: Path) -> None:
    """Write down that an item's video is `path`. Raises OutputError."""
    append_line(path.parent / DONE, json.dumps({"request": item.digest, "file": path.name}))


def _made(folder: Path) -> dict[str, str]:
    """File names by digest; lines that are damaged count as none."""
    made = {}
    try:
        lines = read_file(folder / DONE, LIMIT).decode(errors="replace").split("\n")
    except (OSError, UserError):
        return {}
    for words in lines:
        try:
            entry = json.loads(words)
            made[entry["request"]] = Path(entry["file"]).name
        except (ValueError, RecursionError, TypeError, KeyError):
            continue
    return made
