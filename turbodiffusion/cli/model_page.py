"""`turbodiffusion models NAME`: one model by itself, and of the demo what its prompts may be made of."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from turbodiffusion.cli.console import StdoutConsole
from turbodiffusion.cli.progress import size
from turbodiffusion.demo import words
from turbodiffusion.demo.subjects import Subject, named
from turbodiffusion.presets import ModelPreset, find_model
from turbodiffusion.texts import language, text

DEMO = Path(__file__).parents[1] / "demo" / "model" / "model.json"


def print_model(name: str) -> None:
    """Print what a named model makes, and of the demo the words that it was trained on. RequestError: no such name."""
    preset = find_model(name.lower())
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in (*_facts(preset), *(_words() if preset.name == "demo" else ())):
        table.add_row(f"[bold]{text(f'models.{title}')}[/]", escape(value))
    StdoutConsole().print(table)


def _facts(preset: ModelPreset) -> Iterator[tuple[str, str]]:
    yield "name", preset.name
    yield "title", preset.title
    made = "models.from_image" if preset.task == "i2v" else "models.from_text"
    yield "makes", str(text(made, size=f"{preset.width}x{preset.height}"))
    yield "frames", str(preset.num_frames)
    yield "steps", str(preset.num_steps)
    files = preset.files()
    yield "files", size(sum(file.bytes for file in files)) if files else str(text("models.inside"))
    for file in files:
        yield "file", f"{file.repo} {file.path}"


def shipped_subjects() -> tuple[Subject, ...]:
    """Return the subjects that the shipped demo model was trained on."""
    return named(json.loads(DEMO.read_text(encoding="utf-8"))["about"]["subjects"])


def _words() -> Iterator[tuple[str, str]]:
    """What a prompt for the demo may be made of, in the language of the moment."""
    chinese = language() == "zh"
    comma = "、" if chinese else ", "
    verbs = {(zh if chinese else pairs[0])[0]: None for pairs, zh in words.VERBS.values()}
    styles = [(zh if chinese else en)[0] for en, zh in words.STYLES.values()]
    yield "subjects", comma.join(row.chinese if chinese else row.name for row in shipped_subjects())
    yield "verbs", comma.join(verbs)
    yield "places", comma.join(row[4] if chinese else f"{row[0]} {row[1]}".strip() for row in words.PLACES.values())
    yield "lights", comma.join(zh[0] if chinese else en[0] for _, en, _, zh in words.LIGHTS.values())
    yield "colours", comma.join(words.COLOURS.values() if chinese else words.COLOURS)
    yield "cameras", comma.join((zh if chinese else en)[0] for en, zh in words.CAMERAS.values())
    yield "styles", comma.join(styles)
