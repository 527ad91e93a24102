"""What people see while a video is made: the stages with the seconds left, and a line when it is done."""

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from turbodiffusion.texts import Text, text

if TYPE_CHECKING:
    from turbodiffusion.inference.result import Result
    from turbodiffusion.request import Progress


class Display:
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
            columns = (TextColumn("{task.description}"), BarColumn(width), TextColumn("{task.fields[state]}"))
            self._bars = Bars(*columns, console=console, transient=True)
            if first is not None:
                self._tasks[first] = self._bars.add_task(stage_label(first), total=None, state="")

    def __enter__(self) -> "Display":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, progress: "Progress") -> None:
        state = f"{progress.step}/{progress.total}" + (" MiB" if progress.stage == "download" else "")
        if progress.seconds_left is not None and progress.step < progress.total:
            state = str(text("progress.left", state=state, duration=duration(progress.seconds_left)))
        if self._bars is None:
            self._print(progress, state)
            return
        if progress.stage not in self._tasks:
            label = stage_label(progress.stage)
            self._tasks[progress.stage] = self._bars.add_task(label, total=progress.total, state=state)
        self._bars.update(
            self._tasks[progress.stage], completed=progress.step, total=progress.total, state=state, refresh=True
        )

    def _print(self, progress: "Progress", state: str) -> None:
        """A line at each stage's end, and between them only as time passes: logs stay short."""
        now = time.monotonic()
        if progress.step == progress.total or (progress.step > 0 and now - self._printed >= self._interval):
            self._printed = now
            self._console.print(f"{stage_label(progress.stage)} {state}", soft_wrap=True)


def stage_label(stage: str) -> str:
    """Return a stage's name for people, in the language of the moment."""
    return str(text(f"stage.{stage}"))


def duration(seconds: float) -> Text:
    """Return seconds, or minutes and seconds from 100 on."""
    whole = round(seconds)
    if whole < 100:
        return text("progress.seconds", seconds=whole)
    return text("progress.minutes", minutes=whole // 60, seconds=whole % 60)


def summary(result: "Result", seconds: float) -> str:
    """Return size, steps, seed and the time of each stage, in one line of Rich's markup."""
    frames, height, width, _ = result.frames.shape
    stages = [f"{stage_label(stage)} {spent:.1f}" for stage, spent in result.seconds.items()]
    request = result.request
    made = text(
        "progress.made",
        size=f"{width}x{height}",
        frames=frames,
        steps=request.num_steps,
        seed=request.seed,
        seconds=seconds,
        stages=stages,
    )
    return f"[green]{text('progress.done')}[/] {made}"


def size(count: int) -> str:
    """Return a number of bytes as "14.75 GB" or "12.0 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"
