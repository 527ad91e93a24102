"""Times the stages of one video and reports their steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from turbodiffusion.request import OnProgress, Progress


class StageTimer:
    """Seconds by stage, and `on_progress` called after each step of one."""

    def __init__(self, on_progress: OnProgress | None, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress, self._device = on_progress, device

    def report(self, stage: str, step: int, total: int, seconds_left: float | None = None) -> None:
        """Tell that `step` of `total` steps of a stage are done."""
        if self._on_progress is not None:
            self._on_progress(Progress(stage, step, total, seconds_left))

    @contextmanager
    def run(self, stage: str, total: int, *, done: int = 0, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Time a stage; call what it yields after each of its steps.

        done: steps that were made before. wait: a step is done when the GPU has done it.
        """
        start, first = time.perf_counter(), done

        def step() -> None:
            nonlocal done
            done += 1
            if wait:
                self._synchronize()
            self.report(stage, done, total, (time.perf_counter() - start) / (done - first) * (total - done))

        self.report(stage, done, total)
        yield step
        self._synchronize()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def _synchronize(self) -> None:
        """Wait for the GPU, whose work is queued: else a stage would pay for the one before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: Triton launches there, wherever its tensors are, and pinned memory belongs to it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
