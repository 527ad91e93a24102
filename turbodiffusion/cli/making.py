"""Videos from the command line: the model once, one video after the other, each path on standard output as it is there.

What can fail at the end is tried at the beginning; of a prompts file, one bad line does not end the rest.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from turbodiffusion.cli import prompts_file
from turbodiffusion.cli.console import StderrConsole, error_line, line, note_line, print_path
from turbodiffusion.cli.failures import check_memory_limit
from turbodiffusion.cli.options import MACHINE, PARTS, check_device
from turbodiffusion.cli.progress import Display, summary
from turbodiffusion.cli.prompts_file import Item
from turbodiffusion.errors import RequestError, UserError
from turbodiffusion.files import check_folder, check_name, check_writable
from turbodiffusion.texts import text

if TYPE_CHECKING:
    from turbodiffusion.inference.pipeline import Pipeline
    from turbodiffusion.inference.result import Result
    from turbodiffusion.presets import ModelPreset


def make_videos(items: Sequence[Item], options: Mapping[str, Any], *, redo: bool = False) -> None:
    """Load the model once, make the videos one after the other, print each path on stdout.

    Items of a prompts file whose video is in the output folder already are left out unless `redo`. Those that fail are
    listed at the end, and the exit code is 2; an item that stands alone raises its UserError.
    """
    check_device(options["device"])
    check_memory_limit()
    folder, name = _output(options["output"], len(items))
    stderr = StderrConsole(quiet=options["quiet"])
    of_file = items[0].line is not None
    if of_file and not redo:
        items, done = prompts_file.split_done(items, folder)
        if done:
            note_line(stderr, text("cli.done_before", done=done, folder=folder))
        if not items:
            return
    failed = [item for item in items if item.error is not None]
    with Display(stderr, "load") as display:
        pipeline = _load(items, failed, options, (folder, name), display)
    if pipeline is not None:
        if pipeline.model.device.type == "cuda":
            line(stderr, "", text("cli.memory", plan=pipeline.model.memory_plan))
        bad = {item.line for item in failed}
        good = [item for item in items if item.line is None or item.line not in bad]
        failed += _make_all(good, pipeline, (folder, name), options, stderr)
    if failed:
        _list_failures(failed, len(items))


def _make_all(
    items: Sequence[Item],
    pipeline: "Pipeline",
    target: tuple[Path, str | None],
    options: Mapping[str, Any],
    stderr: Console,
) -> list[Item]:
    """Make the videos; returns the items of a prompts file that failed. Raises the UserError of one that is alone."""
    failed = []
    for number, item in enumerate(items, 1):
        if len(items) > 1:
            line(stderr, f"[bold]{number}/{len(items)}[/]", item.words)
        start = time.perf_counter()
        try:
            assert item.request is not None
            with Display(stderr) as display:
                result = pipeline.generate(
                    item.request, on_progress=display, on_notice=lambda notice: note_line(stderr, notice)
                )
        except UserError as error:
            if item.line is None:
                raise
            error_line(text("cli.line_failed", line=item.line, error=error.text))
            failed.append(Item(item.request, error, item.line))
            continue
        _keep(item, result, target, options, stderr)
        stderr.print(summary(result, time.perf_counter() - start), soft_wrap=True)
    return failed


def _keep(
    item: Item, result: "Result", target: tuple[Path, str | None], options: Mapping[str, Any], stderr: Console
) -> None:
    """Save a video, print its path at once, then do what may still fail."""
    from turbodiffusion.media import video

    folder, name = target
    path = video.save(result.mp4, folder, name or result.name)
    try:
        print_path(path)
    except OSError:
        line(stderr, "", path)  # where it is must not be lost with standard output
        raise
    if item.line is not None:
        prompts_file.remember(item, path)
    if options["contact_sheet"]:
        sheet = result.contact_sheet(path.with_suffix(".png"))
        line(stderr, "", text("cli.contact_sheet", path=sheet))


def _list_failures(failed: Sequence[Item], count: int) -> None:
    """Print which lines failed and why, and end with exit code 2."""
    for item in sorted(failed, key=lambda item: item.line or 0):
        assert item.error is not None
        error_line(text("cli.line_failed", line=item.line, error=item.error.text))
    error_line(text("cli.lines_failed", failed=len(failed), count=count))
    raise typer.Exit(2)


def _output(output: Path, videos: int) -> tuple[Path, str | None]:
    """Return the folder to write into, and the file's name where one was given: FOLDER/NAME.mp4."""
    check_name(output)
    if output.suffix.lower() != ".mp4" or output.is_dir():
        return output, None
    if videos > 1:
        raise RequestError("cli.one_file", path=output, videos=videos, folder=output.with_suffix(""))
    return output.parent, output.name


def _load(
    items: Sequence[Item],
    failed: list[Item],
    options: Mapping[str, Any],
    target: tuple[Path, str | None],
    on_progress: Display,
) -> "Pipeline | None":
    """The model, after refusing what cannot be made or written: before the minutes that it takes, not after.

    Items that cannot be made are added to `failed`; None where that is all of them.
    """
    from turbodiffusion.inference import model_source as source
    from turbodiffusion.inference.pipeline import Pipeline

    wanted = [item.request for item in items if item.request is not None]
    if not wanted:
        return None
    first = wanted[0]
    model = first.model or "demo"
    parts = {name: options[name] and str(options[name]) for name in PARTS}
    preset = source.resolve_model(model, **parts).preset
    if options["recipe"] is not None and (first.sampler or preset.sampler) != "rcm":
        raise RequestError("cli.recipe", recipe=options["recipe"], model=preset.name, steps=preset.num_steps)
    _check_target(*target, sheet=options["contact_sheet"])
    good = []
    for item in items:
        if item.request is None:
            continue
        try:
            _check_item(item, preset, model)
            good.append(item.request)
        except UserError as error:
            if item.line is None:
                raise
            failed.append(Item(item.request, error, item.line))
    if not good:
        return None
    return Pipeline.load(
        model,
        **{name: options[name] for name in MACHINE},
        **parts,
        attention_type=first.attention_type,
        sla_topk=first.sla_topk,
        quant_linear=first.quant_linear,
        requests=good,
        on_progress=on_progress,
    )


def _check_item(item: Item, preset: "ModelPreset", model: str) -> None:
    from turbodiffusion.inference.check_request import check_request

    assert item.request is not None
    if (item.request.model or "demo") != model:
        raise RequestError("cli.one_model", model=item.request.model or "demo", held=model)
    check_request(item.request, preset)


def _check_target(folder: Path, name: str | None, *, sheet: bool) -> None:
    """Raise OutputError where the video or its contact sheet could not be written."""
    check_folder(folder)
    if name is not None:
        check_name(folder / name)
        if sheet:
            check_writable((folder / name).with_suffix(".png"))
