"""The command line: words become a `Request`, the one `Pipeline.generate` makes the video, people see how far it is.

Results go to stdout (the path of a video is alone on its line, for scripts), everything else to stderr. A user's error
is one line and exit code 2, Ctrl-C is exit code 130; an unexpected error keeps its traceback. PyTorch is imported
inside the commands that need it, so that `--help` answers at once.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from turbodiffusion import __version__
from turbodiffusion.cli.doctor import bench, doctor, warmup
from turbodiffusion.cli.train import app as train
from turbodiffusion.cli.train import evaluate
from turbodiffusion.errors import OutputError, RequestError, UserError

if TYPE_CHECKING:
    from turbodiffusion.inference.pipeline import Pipeline
    from turbodiffusion.inference.result import Result
    from turbodiffusion.presets import HubFile
    from turbodiffusion.request import Progress, Request

app = typer.Typer(
    help="Make videos from text or a picture with the Wan models, in a few steps.\n\n"
    'Start with:  turbodiffusion generate "an orange cat runs to the right through a sunny garden"',
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train, name="train")
app.command()(evaluate)
app.command()(doctor)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)
app.command()(warmup)
# typer has no name for its usage errors' class, which is click's or its own by version
_UsageError: Any = typer.BadParameter.__base__

# ---- the words of a request; help texts name the defaults, first Wan's, which fill what is not given ----

_WHAT, _HOW, _RUN = "What to make", "How to make it", "Where and what to write"


def _option(name: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


Negative = Annotated[str | None, _option("--negative-prompt", "What to avoid; undistilled models.", _WHAT, "TEXT")]
Image = Annotated[Path | None, _option("--image", "First frame; image-to-video models.", _WHAT, "FILE")]
Model = Annotated[str | None, _option("--model", "Name, folder or file (demo).", _WHAT, "NAME")]
Resolution = Annotated[str | None, _option("--resolution", "480p, 720p or WxH (demo: 256x256).", _WHAT, "SIZE")]
Aspect = Annotated[str | None, _option("--aspect-ratio", "16:9 (Wan), 9:16, 4:3, 3:4, 1:1 (demo).", _WHAT, "W:H")]
Adaptive = Annotated[bool | None, _option("--adaptive-resolution", "Take the image's shape.", _WHAT, "")]
Frames = Annotated[int | None, _option("--num-frames", "4k+1 to 161, 16 a second (81; demo: 33).", _WHAT, "N")]
Seed = Annotated[int | None, _option("--seed", "Same seed, same video; 0 draws one (0).", _WHAT, "N")]
Recipe = Annotated[str | None, _option("--recipe", "draft, refine, final: steps and topk.", _HOW, "NAME")]
Steps = Annotated[int | None, _option("--num-steps", "1 to 4 (4); undistilled: more (demo: 30).", _HOW, "N")]
SigmaMax = Annotated[float | None, _option("--sigma-max", "First noise (80; from an image 200).", _HOW, "X")]
Guidance = Annotated[float | None, _option("--guidance", "Pull to prompt; undistilled (demo: 4).", _HOW, "X")]
Shift = Annotated[float | None, _option("--shift", "Of the time steps; undistilled (demo: 3).", _HOW, "X")]
Boundary = Annotated[float | None, _option("--boundary", "Time of the second expert (0.9).", _HOW, "X")]
Ode = Annotated[bool | None, _option("--ode/--sde", "Sharper or more robust (--sde).", _HOW, "")]
Attention = Annotated[str | None, _option("--attention-type", "auto, original, sla, sage, sagesla.", _HOW, "KIND")]
Topk = Annotated[float | None, _option("--sla-topk", "Part of the blocks kept (0.1).", _HOW, "X")]
Quant = Annotated[str | None, _option("--quant-linear", "auto, off, on, int8_block, ...", _HOW, "KIND")]
Device = Annotated[str, _option("--device", "auto, cpu, cuda or cuda:1 (auto).", _RUN, "NAME")]
OffloadText = Annotated[str, _option("--offload-text", "Text encoder in CPU memory: auto, on, off.", _RUN, "WHEN")]
MaxMemory = Annotated[float | None, _option("--max-memory", "GiB of the GPU to use, where it is shared.", _RUN, "N")]
Output = Annotated[Path, _option("--output", "Folder for the video (outputs).", _RUN, "FOLDER")]
Sheet = Annotated[bool, _option("--contact-sheet", "Also write a PNG of some frames.", _RUN, "")]
Quiet = Annotated[bool, _option("--quiet", "Print nothing but the path.", _RUN, "")]


@app.command(context_settings={"allow_extra_args": True})
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to see; English or Chinese.", show_default=False)] = None,
    negative_prompt: Negative = None,
    prompts_file: Annotated[
        Path | None, _option("--prompts-file", "Several prompts, one a line.", _WHAT, "FILE")
    ] = None,
    image: Image = None,
    model: Model = None,
    resolution: Resolution = None,
    aspect_ratio: Aspect = None,
    adaptive_resolution: Adaptive = None,
    num_frames: Frames = None,
    seed: Seed = None,
    recipe: Recipe = None,
    num_steps: Steps = None,
    sigma_max: SigmaMax = None,
    guidance: Guidance = None,
    shift: Shift = None,
    boundary: Boundary = None,
    ode: Ode = None,
    attention_type: Attention = None,
    sla_topk: Topk = None,
    quant_linear: Quant = None,
    device: Device = "auto",
    offload_text: OffloadText = "auto",
    max_memory: MaxMemory = None,
    output: Output = Path("outputs"),
    contact_sheet: Sheet = False,
    quiet: Quiet = False,
) -> None:
    """Make a video from a prompt.

    turbodiffusion generate "a red balloon rises over a green meadow" --seed 42

    turbodiffusion generate "一只橙色的猫向右奔跑" --contact-sheet

    turbodiffusion generate "a cat surfs" --model wan2.1-t2v-1.3b --recipe draft

    turbodiffusion generate --prompts-file prompts.txt --output outputs/monday
    """
    from turbodiffusion.request import Request

    if context.args:
        raise RequestError(f'put the prompt in quotes: turbodiffusion generate "{prompt} {" ".join(context.args)}"')
    if prompt is not None and prompts_file is None:
        prompts = [prompt]
    elif prompts_file is not None and prompt is None:
        prompts = _read_prompts(prompts_file)
    else:
        both = "" if prompt is None else ", not both"
        raise RequestError(f'give one prompt, turbodiffusion generate "a red balloon rises", or a --prompts-file{both}')
    words = _request_words(context.params)
    requests = [Request(**{**words, "prompt": text}) for text in prompts]
    machine = {"device": device, "offload_text": offload_text, "max_memory": max_memory}
    _make(requests, recipe, machine, output, contact_sheet, quiet)


@app.command()
def again(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A video that turbodiffusion made.", metavar="FILE.mp4")],
    prompt: Annotated[str | None, _option("--prompt", "Another prompt.", _WHAT, "TEXT")] = None,
    negative_prompt: Negative = None,
    image: Image = None,
    model: Model = None,
    resolution: Resolution = None,
    aspect_ratio: Aspect = None,
    adaptive_resolution: Adaptive = None,
    num_frames: Frames = None,
    seed: Seed = None,
    recipe: Recipe = None,
    num_steps: Steps = None,
    sigma_max: SigmaMax = None,
    guidance: Guidance = None,
    shift: Shift = None,
    boundary: Boundary = None,
    ode: Ode = None,
    attention_type: Attention = None,
    sla_topk: Topk = None,
    quant_linear: Quant = None,
    device: Device = "auto",
    offload_text: OffloadText = "auto",
    max_memory: MaxMemory = None,
    output: Output = Path("outputs"),
    contact_sheet: Sheet = False,
    quiet: Quiet = False,
) -> None:
    """Repeat a video from the request inside it, bit for bit on the same device; options change what they name.

    turbodiffusion again outputs/t2v_42_Demo_20251224_153000.mp4 --recipe final
    """
    from dataclasses import replace

    words = _request_words(context.params)
    if "x" in words.get("resolution", "").lower():
        words.setdefault("aspect_ratio", None)  # the stored one goes with the stored name, not with a size
    request = replace(_stored_request(file), **words)
    machine = {"device": device, "offload_text": offload_text, "max_memory": max_memory}
    _make([request], recipe, machine, output, contact_sheet, quiet)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A video that turbodiffusion made.", metavar="FILE.mp4")],
    json: Annotated[bool, typer.Option("--json", help="The request as JSON, for scripts.")] = False,
) -> None:
    """Show the request that a video was made from."""
    request = _stored_request(file)
    if json:
        print(request.to_json())
        return
    table = Table.grid(padding=(0, 2))
    for name, value in vars(request).items():
        if value is not None:
            table.add_row(f"[bold]{name}[/]", escape(str(value)))
    Console(highlight=False).print(table)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Weights of any family: a file or a folder.")],
    target: Annotated[Path, typer.Argument(help="A folder, or one part as FILE.safetensors.")],
    quantize: Annotated[str | None, _option("--quantize", "int8_block stores 8-bit weights.", _HOW, "KIND")] = None,
) -> None:
    """Write a checkpoint as safetensors that load by themselves.

    turbodiffusion convert TurboWan2.1-T2V-1.3B-480P.pth turbo.safetensors --quantize int8_block

    turbodiffusion convert Wan2.1-T2V-1.3B/ models/wan
    """
    from turbodiffusion.checkpoint.convert import convert

    start = time.perf_counter()
    try:
        with Console(stderr=True).status(f"converting {escape(str(source))}"):
            convert(source, target, quantize=quantize)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    size = sum(path.stat().st_size for path in (target.rglob("*") if target.is_dir() else [target]))
    summary = f"[green]done[/] {_size(size)} in {time.perf_counter() - start:.1f} s"
    Console(stderr=True, highlight=False).print(summary, soft_wrap=True)
    print(target)


@app.command()
def models() -> None:
    """List the models that have a name, and whether their files are on this machine."""
    from turbodiffusion.presets import MODELS

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", no_wrap=True)
    table.add_column("makes", overflow="fold", min_width=8)
    for title in ("frames", "steps", "files", "here"):
        table.add_column(title, no_wrap=title == "files")
    if console.width >= 110:
        table.add_column("what")
    for preset in MODELS.values():
        files = preset.files()
        row = [
            f"[bold]{preset.name}[/]",
            f"{preset.width}x{preset.height} from {'a picture' if preset.task == 'i2v' else 'text'}",
            str(preset.num_frames),
            str(preset.num_steps),
            _size(sum(file.bytes for file in files)) if files else "inside",
            _here(files),
            preset.title,
        ]
        table.add_row(*row[: len(table.columns)])
    console.print(table)


def _here(files: Sequence["HubFile"]) -> str:
    """Whether files are in the hub's cache: yes, no, or how many of them."""
    from huggingface_hub import try_to_load_from_cache

    there = sum(isinstance(try_to_load_from_cache(file.repo, file.path), str) for file in files)
    return "[green]yes[/]" if there == len(files) else f"{there} of {len(files)}" if there else "no"


def _request_words(params: dict[str, Any]) -> dict[str, Any]:
    """The options given that are fields of a request, with a recipe's values under those given by name."""
    from dataclasses import fields

    from turbodiffusion.presets import find_recipe
    from turbodiffusion.request import Request

    names = {field.name for field in fields(Request)}
    given = {name: value for name, value in params.items() if name in names and value is not None}
    if params["recipe"] is None:
        return given
    recipe = find_recipe(params["recipe"])
    return {"num_steps": recipe.num_steps, "sla_topk": recipe.sla_topk, **given}


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(f"the prompts file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"the prompts file {path} is not text in UTF-8; save it as UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise RequestError(f"the prompts file {path} has no prompt; write one a line")
    return prompts


def _stored_request(file: Path) -> "Request":
    from turbodiffusion.media import video
    from turbodiffusion.request import Request

    metadata = video.read_metadata(file)
    if "request" not in metadata:
        raise UserError(f"{file} holds no request")
    return Request.from_json(metadata["request"])


# ---- making videos, and telling how far they are ----


def _make(
    requests: Sequence["Request"],
    recipe: str | None,
    machine: Mapping[str, Any],
    output: Path,
    sheet: bool,
    quiet: bool,
) -> None:
    """Load the model once, make the videos one after the other, print each path on stdout."""
    stderr = Console(stderr=True, quiet=quiet, highlight=False)
    with _Display(stderr, "load") as display:
        pipeline = _load(requests, recipe, machine, output, display)
    if pipeline.model.device.type == "cuda":
        stderr.print(f"memory {escape(str(pipeline.model.memory_plan))}", soft_wrap=True)
    for number, request in enumerate(requests, 1):
        if len(requests) > 1:
            stderr.print(f"[bold]{number}/{len(requests)}[/] {escape(request.prompt)}", soft_wrap=True)
        start = time.perf_counter()
        with _Display(stderr) as display:
            result = pipeline.generate(
                request,
                on_progress=display,
                on_notice=lambda notice: stderr.print(f"[yellow]note:[/] {escape(str(notice))}", soft_wrap=True),
            )
        path = result.save(output)
        if sheet:
            sheet_path = result.contact_sheet(path.with_suffix(".png"))
            stderr.print(f"contact sheet {escape(str(sheet_path))}", soft_wrap=True)
        stderr.print(_summary(result, time.perf_counter() - start), soft_wrap=True)
        print(path, flush=True)


def _load(
    requests: Sequence["Request"],
    recipe: str | None,
    machine: Mapping[str, Any],
    output: Path,
    on_progress: "_Display",
) -> "Pipeline":
    """The model, after refusing what cannot be made or written: before the minutes that it takes, not after."""
    from turbodiffusion.inference import model_source as source
    from turbodiffusion.inference.pipeline import Pipeline
    from turbodiffusion.media import video

    first = requests[0]
    model = first.model or "demo"
    preset = source.resolve_model(model).preset
    if recipe is not None and preset.sampler != "rcm":
        raise RequestError(
            f"recipe {recipe} is for distilled models and {preset.name} is not one: leave it out, or set --num-steps "
            f"({preset.num_steps} by default)"
        )
    video.check_folder(output)
    return Pipeline.load(
        model,
        **machine,
        attention_type=first.attention_type,
        sla_topk=first.sla_topk,
        quant_linear=first.quant_linear,
        requests=requests,
        on_progress=on_progress,
    )


def _summary(result: "Result", seconds: float) -> str:
    """Size, steps, seed and the time of each stage, in one line."""
    frames, height, width, _ = result.frames.shape
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in result.seconds.items())
    request = result.request
    return (
        f"[green]done[/] {width}x{height}, {frames} frames, {request.num_steps} steps, seed {request.seed} "
        f"in {seconds:.1f} s ({stages})"
    )


class _Display:
    """Progress by stage with seconds left: bars on a terminal, a few plain lines elsewhere, nothing when quiet."""

    def __init__(self, console: Console, first: str | None = None, interval: float = 10.0):
        """first: a stage to show at once, before anything is known of its steps. interval: seconds between two lines of
        one stage where there is no terminal."""
        self._console, self._interval = console, interval
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed = time.monotonic()
        if console.is_terminal and not console.quiet:
            width = max(8, min(40, console.width - 44))
            columns = (TextColumn("{task.description:<9}"), BarColumn(width), TextColumn("{task.fields[state]}"))
            self._bars = Bars(*columns, console=console, transient=True)
            if first is not None:
                self._tasks[first] = self._bars.add_task(first, total=None, state="")

    def __enter__(self) -> "_Display":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, progress: "Progress") -> None:
        state = f"{progress.step}/{progress.total}" + (" MiB" if progress.stage == "download" else "")
        if progress.seconds_left is not None and progress.step < progress.total:
            state += f", {_seconds(progress.seconds_left)} left"
        if self._bars is None:
            self._print(progress, state)
            return
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total, state=state)
        self._bars.update(
            self._tasks[progress.stage], completed=progress.step, total=progress.total, state=state, refresh=True
        )

    def _print(self, progress: "Progress", state: str) -> None:
        """A line at each stage's end, and between them only as time passes: logs stay short."""
        now = time.monotonic()
        if progress.step == progress.total or (progress.step > 0 and now - self._printed >= self._interval):
            self._printed = now
            self._console.print(f"{progress.stage} {state}", soft_wrap=True)


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


# ---- the program ----


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"turbodiffusion {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's error, 130 for Ctrl-C."""
    try:
        code = app(args=arguments, prog_name="turbodiffusion", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except _UsageError as error:
        place = error.ctx.command_path if error.ctx else "turbodiffusion"
        return _refuse(f"{error.format_message().rstrip('.')} (see {place} --help)")
    except UserError as error:
        return _refuse(str(error))
    if code == 130:
        Console(stderr=True).print("interrupted; nothing half-written is left")
    return code or 0


def _refuse(message: str) -> int:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    return 2
