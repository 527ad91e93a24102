"""The command line: words become a `Request`, the one `Pipeline.generate` makes the video, people see how far it is.

Results go to stdout (the path of a video is alone on its line, for scripts), everything else to stderr. A user's error
is one line and exit code 2, an unexpected one keeps its traceback; docs/errors.md has the table. PyTorch is imported
inside the commands that need it, so that help, a list and a refusal come at once.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from turbodiffusion import __version__
from turbodiffusion.cli import signals
from turbodiffusion.cli.bench import bench, warmup
from turbodiffusion.cli.console import (
    StderrConsole,
    StdoutConsole,
    drop_stdout,
    error_line,
    flush_stdout,
    json_safe,
    line,
    prepare_streams,
    printable,
)
from turbodiffusion.cli.doctor import doctor
from turbodiffusion.cli.failures import StdoutGoneError, check_memory_limit, explain
from turbodiffusion.cli.help import NARROW, Command, Group
from turbodiffusion.cli.making import make_videos
from turbodiffusion.cli.model_page import print_model
from turbodiffusion.cli.options import FIELDS, MACHINE, MAKING, OPTIONS, PARTS, takes
from turbodiffusion.cli.progress import size
from turbodiffusion.cli.prompts_file import Item, read_items
from turbodiffusion.cli.train import app as train
from turbodiffusion.cli.train import evaluate
from turbodiffusion.errors import RequestError, UserError
from turbodiffusion.presets import MODELS, find_recipe
from turbodiffusion.request import Request
from turbodiffusion.texts import Text, set_language, text

if TYPE_CHECKING:
    from turbodiffusion.presets import HubFile

_EXTRA_ARGUMENTS = {"allow_extra_args": True}
app = typer.Typer(
    cls=Group,
    help="cli.program",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# typer has no name for its usage errors' class, which is click's or its own by version
_UsageError: Any = typer.BadParameter.__base__
_STOPPED = {signals.INTERRUPTED: "cli.interrupted", signals.TERMINATED: "cli.terminated"}


@app.command("generate", cls=Command, help="cli.generate", context_settings=_EXTRA_ARGUMENTS)
@takes("prompt", "prompts_file", "redo", *MAKING)
def generate(
    context: typer.Context, *, prompt: str | None, prompts_file: Path | None, redo: bool, **options: Any
) -> None:
    """Make a video from a prompt, or several from a file of prompts."""
    if context.args:
        raise RequestError("cli.unquoted_prompt", prompt=" ".join([prompt or "", *context.args]))
    if prompt is not None and prompts_file is not None:
        raise RequestError("cli.two_prompts")
    fields = _given_fields(options)
    if prompt is not None:
        items = [Item(Request(prompt, **fields))]
    elif prompts_file is not None:
        items = read_items(prompts_file, fields)
    else:
        raise RequestError("cli.no_prompt")
    make_videos(items, options, redo=redo)


@app.command("again", cls=Command, help="cli.again")
@takes("file", "prompt_option", *MAKING)
def again(context: typer.Context, *, file: Path, prompt_option: str | None, **options: Any) -> None:
    """Repeat a video from the request inside it, bit for bit on the same device; options change what they name."""
    fields = _given_fields({**options, "prompt": prompt_option})
    if "x" in fields.get("resolution", "").lower():
        fields.setdefault("aspect_ratio", None)  # the stored one goes with the stored name, not with a size
    make_videos([Item(replace(_stored_request(file), **fields))], options)


@app.command("info", cls=Command, help="cli.info")
@takes("file", "json")
def info(context: typer.Context, *, file: Path, json: bool) -> None:
    """Show the request that a video was made from."""
    request = _stored_request(file)
    if json:
        print(json_safe(request.to_json()))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in vars(request).items():
        if value is not None:
            shown = text("cli.dense", value=value) if (name, value) == ("attention_type", "original") else value
            table.add_row(f"[bold]{name}[/]", escape(printable(shown)))
    StdoutConsole().print(table)


@app.command("convert", cls=Command, help="cli.convert")
@takes("source", "target", "quantize", "sampler", *PARTS)
def convert(
    context: typer.Context, *, source: Path, target: Path, quantize: str | None, sampler: str | None, **parts: Any
) -> None:
    """Write a checkpoint as safetensors that load by themselves."""
    check_memory_limit()
    from turbodiffusion.checkpoint.convert import convert

    start = time.perf_counter()
    named = {"vae": parts["vae"], "text": parts["text_encoder"], "tokenizer": parts["tokenizer"]}
    with StderrConsole().status(escape(printable(text("cli.converting", path=source)))):
        convert(source, target, quantize=quantize, sampler=sampler, parts=named)
    count = sum(path.stat().st_size for path in (target.rglob("*") if target.is_dir() else [target]))
    written = text("cli.written", size=size(count), seconds=time.perf_counter() - start)
    StderrConsole().print(f"[green]{text('progress.done')}[/] {written}", soft_wrap=True)
    print(target)


@app.command("models", cls=Command, help="cli.models")
@takes("model_name")
def models(context: typer.Context, *, model_name: str | None) -> None:
    """List the models that have a name, and whether their files are on this machine."""
    if model_name is not None:
        print_model(model_name)
        return
    console = StdoutConsole()
    titles = ("name", "makes", "frames", "steps", "files", "here", "title")
    rows = []
    for preset in MODELS.values():
        files = preset.files()
        made = text(
            "models.from_image" if preset.task == "i2v" else "models.from_text",
            size=f"{preset.width}x{preset.height}",
        )
        bytes_ = size(sum(file.bytes for file in files)) if files else text("models.inside")
        cells = (made, preset.num_frames, preset.num_steps, bytes_, _here(files), preset.title)
        rows.append([preset.name, *map(str, cells)])
    if console.width < NARROW:
        for row in rows:
            console.print(f"[bold]{row[0]}[/]")
            console.print("  " + str(text("models.line", **dict(zip(titles, row, strict=True)))))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown = titles if console.width >= 110 else titles[:-1]
    for title in shown:
        folds = title in ("makes", "title")
        table.add_column(str(text(f"models.{title}")), no_wrap=not folds, overflow="fold", min_width=8 if folds else 0)
    for row in rows:
        table.add_row(f"[bold]{row[0]}[/]", *row[1 : len(shown)])
    console.print(table)


def _here(files: Sequence["HubFile"]) -> Text:
    """Whether files are in the hub's cache: yes, no, or how many of them."""
    there = sum(_in_cache(file.repo, file.path) for file in files)
    if there in (0, len(files)):
        return text("models.yes") if there == len(files) else text("models.no")
    return text("models.some", there=there, total=len(files))


def _in_cache(repo: str, path: str) -> bool:
    """huggingface_hub's try_to_load_from_cache of the branch main, without the import of its HTTP client (0.2 s)."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    branch = folder / "refs" / "main"
    return branch.is_file() and (folder / "snapshots" / branch.read_text().strip() / path).is_file()


def _given_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options given that are fields of a request, with a recipe's values under those given by name."""
    given = {name: options[name] for name in FIELDS if options.get(name) is not None}
    if options["recipe"] is None:
        return given
    recipe = find_recipe(options["recipe"])
    return {"num_steps": recipe.num_steps, "sla_topk": recipe.sla_topk, **given}


def _stored_request(file: Path) -> Request:
    from turbodiffusion.media.metadata import read_metadata

    metadata = read_metadata(file)
    if "request" not in metadata:
        raise UserError("cli.no_request", path=file)
    return Request.from_json(metadata["request"])


# ---- the program ----

app.command("doctor", cls=Command, help="cli.doctor")(takes("full", "report")(doctor))
app.command(
    "bench",
    cls=Command,
    help="cli.bench",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(takes("group", "check")(bench))
app.command("warmup", cls=Command, help="cli.warmup")(
    takes("model", "image", "resolution", "num_frames", *MACHINE)(warmup)
)
app.add_typer(train, name="train", cls=Group)
app.command(cls=Command)(evaluate)


@app.callback(invoke_without_command=True)
@takes("version")
def _program(context: typer.Context, *, version: bool) -> None:
    if version:
        print(f"turbodiffusion {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (docs/errors.md has them)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    with signals.stoppable():
        return copy_context().run(_run, words)  # the language is this call's


def _run(words: list[str]) -> int:
    prepare_streams()
    try:
        code = app(args=_without_language(words), prog_name="turbodiffusion", standalone_mode=False)
        flush_stdout()
    except (KeyboardInterrupt, typer.Abort):
        code = signals.INTERRUPTED
    except signals.Terminated:
        code = signals.TERMINATED
    except (StdoutGoneError, BrokenPipeError):
        drop_stdout()
        code = signals.BROKEN_PIPE
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group by itself: its help, as for the program by itself
            return 0
        return _refuse(_usage_error(error))
    except Exception as error:
        if (told := explain(error)) is None:
            raise
        with suppress(OSError):  # what it is told of may be standard output itself
            flush_stdout()
        return _refuse(told)
    if code in _STOPPED:
        line(StderrConsole(), "", text(_STOPPED[code]))
    return code or 0


def _without_language(words: list[str]) -> list[str]:
    """Choose the language of `--lang`, which may stand before or after the command, and return the other words."""
    rest = words.copy()
    end = rest.index("--") if "--" in rest else len(rest)
    for place in [place for place, word in enumerate(rest[:end]) if word.split("=")[0] == "--lang"][::-1]:
        _, equals, value = rest[place].partition("=")
        taken = rest[place : place + (1 if equals else 2)]
        if not equals:
            value = taken[1] if len(taken) > 1 else ""
        set_language(OPTIONS["lang"].read(value.lower().replace("_", "-").split("-")[0]))
        del rest[place : place + len(taken)]
    return rest


def _usage_error(error: Any) -> Text:
    """A mistyped command line in one line; in English where Typer alone knows what is wrong."""
    place = error.ctx.command_path if error.ctx else "turbodiffusion"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        near = [word for word in error.possibilities or () if word.startswith("--")]
        hint = text("preset.did_you_mean", name=near[0]) if near else ""
        return text("cli.no_option", name=error.option_name, hint=hint, command=place)
    if kind == "MissingParameter" and error.param is not None:
        return text("cli.missing", name=error.param.name, command=place)
    if kind == "BadOptionUsage":
        return text("cli.no_value", name=error.option_name, command=place)
    return text("cli.usage", message=error.format_message().rstrip("."), command=place)


def _refuse(message: Text | UserError) -> int:
    error_line(message)
    return 2
