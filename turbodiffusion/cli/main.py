"""The command line: words become a `Request`, the one `Pipeline.generate` makes the video, people see how far it is.

Results go to stdout (the path of a video is alone on its line, for scripts), everything else to stderr. A user's error
is one line and exit code 2, Ctrl-C is exit code 130; an unexpected error keeps its traceback. PyTorch is imported
inside the commands that need it, so that help, a list and a refusal come at once.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turbodiffusion import __version__
from turbodiffusion.cli.bench import bench, warmup
from turbodiffusion.cli.doctor import doctor
from turbodiffusion.cli.help import NARROW, Command, Group
from turbodiffusion.cli.options import FIELDS, MACHINE, MAKING, OPTIONS, check_device, takes
from turbodiffusion.cli.progress import Display, size, summary
from turbodiffusion.cli.train import app as train
from turbodiffusion.cli.train import evaluate
from turbodiffusion.errors import OutputError, RequestError, UserError
from turbodiffusion.files import check_folder, reason
from turbodiffusion.presets import MODELS, find_recipe
from turbodiffusion.request import Request
from turbodiffusion.texts import Text, set_language, text

if TYPE_CHECKING:
    from turbodiffusion.inference.pipeline import Pipeline
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


@app.command("generate", cls=Command, help="cli.generate", context_settings=_EXTRA_ARGUMENTS)
@takes("prompt", "prompts_file", *MAKING)
def generate(context: typer.Context, *, prompt: str | None, prompts_file: Path | None, **options: Any) -> None:
    """Make a video from a prompt, or several from a file of prompts."""
    if context.args:
        raise RequestError("cli.unquoted_prompt", prompt=" ".join([prompt or "", *context.args]))
    if prompt is not None and prompts_file is not None:
        raise RequestError("cli.two_prompts")
    if prompt is not None:
        prompts = [prompt]
    elif prompts_file is not None:
        prompts = _read_prompts(prompts_file)
    else:
        raise RequestError("cli.no_prompt")
    fields = _given_fields(options)
    _make([Request(prompt=each, **fields) for each in prompts], options)


@app.command("again", cls=Command, help="cli.again")
@takes("file", "prompt_option", *MAKING)
def again(context: typer.Context, *, file: Path, prompt_option: str | None, **options: Any) -> None:
    """Repeat a video from the request inside it, bit for bit on the same device; options change what they name."""
    fields = _given_fields({**options, "prompt": prompt_option})
    if "x" in fields.get("resolution", "").lower():
        fields.setdefault("aspect_ratio", None)  # the stored one goes with the stored name, not with a size
    _make([replace(_stored_request(file), **fields)], options)


@app.command("info", cls=Command, help="cli.info")
@takes("file", "json")
def info(context: typer.Context, *, file: Path, json: bool) -> None:
    """Show the request that a video was made from."""
    request = _stored_request(file)
    if json:
        print(request.to_json())
        return
    table = Table.grid(padding=(0, 2))
    for name, value in vars(request).items():
        if value is not None:
            shown = text("cli.dense", value=value) if (name, value) == ("attention_type", "original") else value
            table.add_row(f"[bold]{name}[/]", escape(str(shown)))
    Console(highlight=False).print(table)


@app.command("convert", cls=Command, help="cli.convert")
@takes("source", "target", "quantize")
def convert(context: typer.Context, *, source: Path, target: Path, quantize: str | None) -> None:
    """Write a checkpoint as safetensors that load by themselves."""
    from turbodiffusion.checkpoint.convert import convert

    start = time.perf_counter()
    try:
        with Console(stderr=True).status(escape(str(text("cli.converting", path=source)))):
            convert(source, target, quantize=quantize)
    except OSError as error:
        raise OutputError("files.cannot_write", path=target, reason=reason(error, target.parent, 0)) from error
    count = sum(path.stat().st_size for path in (target.rglob("*") if target.is_dir() else [target]))
    written = text("cli.written", size=size(count), seconds=time.perf_counter() - start)
    Console(stderr=True, highlight=False).print(f"[green]{text('progress.done')}[/] {written}", soft_wrap=True)
    print(target)


@app.command("models", cls=Command, help="cli.models")
@takes()
def models(context: typer.Context) -> None:
    """List the models that have a name, and whether their files are on this machine."""
    console = Console(highlight=False)
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


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError("cli.prompts_unreadable", path=path, reason=error.strerror) from None
    except UnicodeDecodeError:
        raise RequestError("cli.prompts_not_utf8", path=path) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise RequestError("cli.prompts_empty", path=path)
    return prompts


def _stored_request(file: Path) -> Request:
    from turbodiffusion.media.metadata import read_metadata

    metadata = read_metadata(file)
    if "request" not in metadata:
        raise UserError("cli.no_request", path=file)
    return Request.from_json(metadata["request"])


# ---- making videos ----


def _make(requests: Sequence[Request], options: Mapping[str, Any]) -> None:
    """Load the model once, make the videos one after the other, print each path on stdout."""
    check_device(options["device"])
    folder, name = _output(options["output"], len(requests))
    from turbodiffusion.media import video

    stderr = Console(stderr=True, quiet=options["quiet"], highlight=False)
    with Display(stderr, "load") as display:
        pipeline = _load(requests, options, folder, display)
    if pipeline.model.device.type == "cuda":
        stderr.print(escape(str(text("cli.memory", plan=pipeline.model.memory_plan))), soft_wrap=True)
    for number, request in enumerate(requests, 1):
        if len(requests) > 1:
            stderr.print(f"[bold]{number}/{len(requests)}[/] {escape(request.prompt)}", soft_wrap=True)
        start = time.perf_counter()
        with Display(stderr) as display:
            result = pipeline.generate(request, on_progress=display, on_notice=lambda notice: _note(stderr, notice))
        path = video.save(result.mp4, folder, name or result.name)
        if options["contact_sheet"]:
            sheet = result.contact_sheet(path.with_suffix(".png"))
            stderr.print(escape(str(text("cli.contact_sheet", path=sheet))), soft_wrap=True)
        stderr.print(summary(result, time.perf_counter() - start), soft_wrap=True)
        print(path, flush=True)


def _note(console: Console, notice: Text | str) -> None:
    console.print(f"[yellow]{text('cli.note')}[/] {escape(str(notice))}", soft_wrap=True)


def _output(output: Path, videos: int) -> tuple[Path, str | None]:
    """Return the folder to write into, and the file's name where one was given: FOLDER/NAME.mp4."""
    if output.suffix.lower() != ".mp4" or output.is_dir():
        return output, None
    if videos > 1:
        raise RequestError("cli.one_file", path=output, videos=videos, folder=output.with_suffix(""))
    return output.parent, output.name


def _load(requests: Sequence[Request], options: Mapping[str, Any], folder: Path, on_progress: Display) -> "Pipeline":
    """The model, after refusing what cannot be made or written: before the minutes that it takes, not after."""
    from turbodiffusion.inference import model_source as source
    from turbodiffusion.inference.pipeline import Pipeline

    first = requests[0]
    model = first.model or "demo"
    preset = source.resolve_model(model).preset
    if options["recipe"] is not None and preset.sampler != "rcm":
        raise RequestError("cli.recipe", recipe=options["recipe"], model=preset.name, steps=preset.num_steps)
    check_folder(folder)
    return Pipeline.load(
        model,
        **{name: options[name] for name in MACHINE},
        attention_type=first.attention_type,
        sla_topk=first.sla_topk,
        quant_linear=first.quant_linear,
        requests=requests,
        on_progress=on_progress,
    )


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
    """Run the command line and return its exit code: 0, 2 for a user's error, 130 for Ctrl-C."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return copy_context().run(_run, words)  # the language is this call's


def _run(words: list[str]) -> int:
    try:
        code = app(args=_without_language(words), prog_name="turbodiffusion", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except _UsageError as error:
        return _refuse(_usage_error(error))
    except UserError as error:
        return _refuse(error)
    if code == 130:
        Console(stderr=True).print(str(text("cli.interrupted")))
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
    Console(stderr=True, highlight=False).print(
        f"[bold red]{text('cli.error')}[/] {escape(str(message))}", soft_wrap=True
    )
    return 2
