"""Help that reads well at any width and in either language: two columns, or one in a narrow terminal.

Typer's own help has English headings and a table of four columns, which hides the options' names at 40 characters.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Line
from typer.core import TyperArgument, TyperCommand, TyperGroup

from turbodiffusion.cli.console import StdoutConsole
from turbodiffusion.cli.failures import past_click
from turbodiffusion.cli.options import OPTIONS
from turbodiffusion.errors import UserError
from turbodiffusion.texts import catalogue, language, text

NARROW = 60  # columns: below, a help sentence stands under its option
Rows = list[tuple[str, str]]


class Command(TyperCommand):
    """A command whose help is ours; its `help` is a code of the catalogue, or a sentence."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _leave_words(self)

    def get_help_option(self, ctx: Any) -> Any:
        return _lazy_help(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show(self, ctx)


class Group(TyperGroup):
    """Commands whose help is ours. An unknown command is told with the nearest."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _leave_words(self)

    def get_help_option(self, ctx: Any) -> Any:
        return _lazy_help(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show(self, ctx)

    def invoke(self, ctx: Any) -> Any:
        with past_click():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            near = get_close_matches(args[0], known, n=1)
            hint = text("preset.did_you_mean", name=near[0]) if near else ""
            raise UserError("cli.no_command", name=args[0], hint=hint, known=known)
        return super().resolve_command(ctx, args)


def _leave_words(command: Any) -> None:
    """Leave our options' words as they were typed: `Option.read` reads them.

    Typer would convert each with a validator of pydantic's, whose import takes longer than all else that `models` does.
    """
    for parameter in command.params:
        if parameter.name in OPTIONS and not parameter.help:
            parameter.process_value = partial(_word, parameter, parameter.process_value)


def _word(parameter: Any, convert: Any, context: Any, value: Any) -> Any:
    missing = value is None and parameter.required
    return convert(context, value) if missing else value  # Typer tells what is missing


def _lazy_help(option: Any) -> Any:
    """The option --help, converted (for its callback's sake) only where it is given."""
    convert = type(option).process_value
    option.process_value = lambda context, value: convert(option, context, value) if value else value
    return option


def _show(command: Any, context: Any) -> None:
    console = StdoutConsole()
    pieces = " ".join(command.collect_usage_pieces(context))
    console.print(Line(str(text("help.usage", command=context.command_path, pieces=pieces)), style="bold"))
    for paragraph in _sentence(command.help).split("\n\n"):
        console.print()
        console.print(Padding(Line(paragraph.strip()), (0, 0, 0, 2), expand=False))
    for title, rows in _panels(command, context):
        if rows:
            console.print()
            console.print(Line(title, style="bold"))
            _print_rows(console, rows)


def _sentence(help: str | None) -> str:
    """The catalogue's sentence of a code; what is no code is a sentence already."""
    return catalogue(language()).get(help or "", help or "")


def _panels(command: Any, context: Any) -> Iterator[tuple[str, Rows]]:
    """Yield titles and rows: arguments, then options by their groups, then the commands of a group."""
    panels: dict[str, Rows] = {name: [] for name in ("arguments", "what", "how", "run", "options")}
    for parameter in command.get_params(context):
        option = OPTIONS.get(parameter.name)
        ours = option is not None and not parameter.help  # the commands of training have their own sentences
        help = option.describe() if option and ours else parameter.help or ""
        if isinstance(parameter, TyperArgument):
            panels["arguments"].append((parameter.metavar or parameter.name.upper(), help))
        elif parameter.name != "help":
            flags = " / ".join((*parameter.opts, *parameter.secondary_opts))
            place = option.placeholder if option and ours else parameter.metavar or ""
            panels[option.spec.group if option and ours else "options"].append((f"{flags} {place}".strip(), help))
    language_option = OPTIONS["lang"]
    panels["options"].append((f"{language_option.flags} {language_option.placeholder}", str(language_option.spec.help)))
    panels["options"].append(("-h, --help", str(text("help.help"))))
    for name, rows in panels.items():
        yield str(text(f"help.{name}")), rows
    if isinstance(command, TyperGroup):
        members = ((name, command.get_command(context, name)) for name in command.list_commands(context))
        yield str(text("help.commands")), [(name, _first_line(one.help)) for name, one in members if one is not None]


def _first_line(help: str | None) -> str:
    return _sentence(help).split("\n\n")[0].replace("\n", " ").strip()


def _print_rows(console: Console, rows: Rows) -> None:
    if console.width < NARROW:
        for name, help in rows:
            console.print(Padding(Line(name, style="cyan"), (0, 0, 0, 2), expand=False))
            console.print(Padding(Line(help), (0, 0, 0, 6), expand=False))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, help in rows:
        table.add_row(Line(f"  {name}"), Line(help))
    console.print(table)
