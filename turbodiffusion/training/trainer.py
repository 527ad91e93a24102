"""The training loop that every recipe shares: mixed precision, power EMA, exact resume, logs, sheets, time left.

A recipe brings its modules and a function `loss(step)`; all randomness in it must come from
`step_generator(seed, step, rank)`, so that a run stopped and resumed is the run that was not stopped.
Under torchrun the gradients are averaged over the ranks.
EMA by a power function: Karras et al., arXiv 2312.02696, as rCM uses it (arXiv 2510.08431).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbodiffusion.errors import CheckpointError
from turbodiffusion.files import write_file
from turbodiffusion.parallel.groups import rank_and_size
from turbodiffusion.training.muon import Muon

Loss = Callable[[int], dict[str, Tensor]]
"""A step's values by name. "loss" is what is minimised; where there are several "term.NAME" these are, their sum."""
SampleGrid = Callable[[nn.Module, int], None]
SelectNetwork = Callable[[int], str]


@dataclass(frozen=True)
class Schedule:
    """What a run does: optimizer steps in all, peak learning rate, how long this process may take (None: to the end).

    Without `steps` the whole run must fit into `minutes`: its steps are timed and their rate sets the number, anew at
    each log until the decay begins (before it the learning rate does not depend on the number).
    clip: the norm that a step's gradient is scaled down to where it is longer.
    """

    lr: float
    steps: int | None = None
    warmup: int = 200
    decay: float = 0.3  # the last share of the steps, which brings the learning rate linearly to zero
    minutes: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    muon: bool = False  # for the matrices and convolutions inside a network; what is neither stays with AdamW
    ema_width: float = 0.1  # s of the power function: the EMA's width as a share of the run so far
    log_every: int = 20
    save_minutes: float = 5.0
    sample_grid_every: int = 2000

    def decaying(self, step: int) -> bool:
        """Whether the learning rate of the optimizer step after `step` finished ones has begun to fall."""
        return self.steps is not None and step > (1 - self.decay) * self.steps

    def lr_at(self, step: int) -> float:
        """Learning rate of the optimizer step that follows `step` finished ones."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        down = (self.steps - step) / (self.decay * self.steps) if self.steps and self.decay else 1.0
        return self.lr * max(0.0, min(1.0, up, down))


def ema_gamma(width: float) -> float:
    """Exponent of the power function of relative width s: largest real root of [1, 7, 16 - s^-2, 12 - s^-2]."""
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(max(r.real for r in roots if abs(r.imag) < 1e-9))


def step_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The only source of randomness of a training step."""
    return np.random.default_rng((seed, step, rank))


def torch_generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """A generator on `device`, seeded by the next number of `rng`."""
    return torch.Generator(device).manual_seed(int(rng.integers(0, 2**62)))


def _is_inner(name: str, p: Tensor) -> bool:
    """Whether a parameter is a product's or a convolution's weight between two layers: no embedding, no table, no way
    in or out (`conv1`: the first layers of the VAE's encoder and decoder, and the last of its encoder)."""
    outer = ("shared", "embed", "bias", "modulation", "head", "time_projection", "gamma", "conv1")
    return p.ndim >= 2 and not any(word in name for word in outer)


class Part:
    """Modules that are trained together: their parameters and optimizers, and how many steps they have made."""

    def __init__(self, modules: nn.Module, schedule: Schedule, rate: float = 1.0) -> None:
        self.rate, self.steps = rate, 0
        self.summed = 0  # steps of this process whose loss was a sum of terms
        self.names = [n for n, p in modules.named_parameters() if p.requires_grad]
        self.params = [p for p in modules.parameters() if p.requires_grad]
        inner = [p for n, p in zip(self.names, self.params, strict=True) if schedule.muon and _is_inner(n, p)]
        rest = [p for p in self.params if not any(p is other for other in inner)]
        decayed = [p for p in rest if p.ndim >= 2]
        plain = [p for p in rest if p.ndim < 2]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}],
                lr=schedule.lr,
                betas=schedule.betas,
                fused=self.params[0].is_cuda,
            )
        ]
        if inner:
            self.optimizers.append(Muon(inner, schedule.lr, weight_decay=schedule.weight_decay))

    def set_rate(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * self.rate


class Trainer:
    """Trains `modules` in place and keeps an EMA of them, or of the first where they take turns.

    select_network: which of `modules` a step trains, where only one at a time is trained, each with optimizers of its
    own; a step whose gradient is not finite is left out then. kind: of a step, where some take longer than others
    (`select_network` if not given). rates: a module's learning rate as a share of the schedule's. settings: what a
    resumed run must have been begun with. saved: called after each save, by rank 0. `run` is a folder: state.pt
    (resume), log.jsonl, TensorBoard events.
    """

    NORMS_EVERY = 10  # steps with several terms, of which the first has the norm of each term's gradient measured

    def __init__(
        self,
        modules: nn.ModuleDict,
        schedule: Schedule,
        run: Path,
        *,
        select_network: SelectNetwork | None = None,
        kind: SelectNetwork | None = None,
        rates: Mapping[str, float] | None = None,
        settings: Mapping[str, str | float] | None = None,
        saved: Callable[["Trainer"], None] | None = None,
    ) -> None:
        self.modules, self.schedule, self.run, self.select_network = modules, schedule, run, select_network
        self.kind, self.settings, self.saved = kind or select_network, dict(settings or {}), saved
        self.rank, self.ranks = rank_and_size()
        whole = (
            {name: nn.ModuleDict({name: module}) for name, module in modules.items()}
            if select_network
            else {"": modules}
        )
        self.parts = {name: Part(part, schedule, (rates or {}).get(name, 1.0)) for name, part in whole.items()}
        self.kept = next(iter(self.parts.values()))
        self.gamma = ema_gamma(schedule.ema_width)
        self.ema = [p.detach().clone() for p in self.kept.params]
        self.step = 0
        run.mkdir(parents=True, exist_ok=True)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for part in self.parts.values() for optimizer in part.optimizers]

    def ema_state(self) -> dict[str, Tensor]:
        """The weights whose EMA is kept, under the modules' names, buffers as they are."""
        name = next(iter(self.parts))
        state = {key: x for key, x in self.modules.named_buffers() if key.startswith(name)}
        return state | dict(zip(self.kept.names, self.ema, strict=True))

    def average(self, name: str) -> dict[str, Tensor]:
        """`ema_state` of one of the modules, under its own names."""
        of = f"{name}."
        return {key.removeprefix(of): x for key, x in self.ema_state().items() if key.startswith(of)}

    def save(self) -> None:
        """Write the resume state; a kill leaves the older one whole."""
        if self.rank == 0:
            state = {
                "step": self.step,
                "steps": self.schedule.steps,
                "settings": self.settings,
                "modules": self.modules.state_dict(),
                "ema": self.ema,
                "part_steps": [part.steps for part in self.parts.values()],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
            write_file(self.run / "state.pt", lambda beside: torch.save(state, beside))
            if self.saved is not None:
                self.saved(self)

    def resume(self) -> bool:
        """Continue the run in the folder if it holds one.

        Raises CheckpointError for a run of another model, or one that was begun with other settings.
        """
        path = self.run / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location=self.ema[0].device)
        begun = state.get("settings", {})
        for name, value in self.settings.items():
            if begun.get(name, value) != value:
                raise CheckpointError(
                    f"{self.run} was begun with {name} {begun[name]}, and cannot go on with {value}: "
                    f"give the same or choose another --folder"
                )
        try:
            self.modules.load_state_dict(state["modules"])
        except RuntimeError as error:
            raise CheckpointError(f"{path} belongs to another model; choose another --folder ({error})") from None
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch._foreach_copy_(self.ema, state["ema"])
        for part, steps in zip(self.parts.values(), state.get("part_steps", [state["step"]]), strict=True):
            part.steps = steps
        self.step = state["step"]
        self.schedule = replace(self.schedule, steps=self.schedule.steps or state["steps"])
        return True

    def warm_start(self, state: dict[str, Tensor]) -> None:
        """Begin from given weights (an earlier lease's EMA): optimizer and step start anew."""
        self.modules.load_state_dict(state)
        torch._foreach_copy_(self.ema, [p.detach() for p in self.kept.params])

    def fit(
        self, loss: Loss, sample_grid: SampleGrid | None = None, *, prepare: Callable[[int], None] | None = None
    ) -> bool:
        """Train to the end of the schedule or of this process's minutes; True when the schedule is finished.

        prepare(step) makes what the first step needs, if there is one: the minutes are those of its steps.
        """
        if self.schedule.steps is None and self.schedule.minutes is None:
            raise ValueError("a schedule needs steps, minutes, or both")
        if prepare is not None and self.step != self.schedule.steps:
            prepare(self.step)
        log, clock = Log(self.run, self.rank), Clock(self)
        values: dict[str, Tensor] = {}  # the newest of each name: modules that take turns have others
        while self.schedule.steps is None or self.step < self.schedule.steps:
            began = time.monotonic()
            kind = self.kind(self.step) if self.kind else None
            values |= self._optimize(loss)
            if kind is not None:  # such a step waits for the GPU itself
                clock.took(kind, time.monotonic() - began)
            if self.step % self.schedule.log_every == 0 or self.step == self.schedule.steps:
                log.write(self.step, self.schedule, values, clock)
                if clock.over():
                    break
            if sample_grid and self.step % self.schedule.sample_grid_every == 0:
                sample_grid(self.modules, self.step)
            if clock.save_due():
                self.save()
        self.save()
        return self.step == self.schedule.steps

    def _optimize(self, loss: Loss) -> dict[str, Tensor]:
        name = self.select_network(self.step) if self.select_network else ""
        part = self.parts[name]
        part.set_rate(self.schedule.lr_at(self.step))
        values = loss(self.step)
        values |= self._backward(values, part)
        self._average_gradients(part.params)
        values["grad_norm"] = nn.utils.clip_grad_norm_(part.params, self.schedule.clip)
        # Asking waits for the GPU, so only distillations do, whose losses may break. All ranks have the same gradient.
        broken = self.select_network is not None and not values["grad_norm"].isfinite()
        for optimizer in part.optimizers:
            if not broken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        part.steps += not broken
        if part is self.kept and not broken:
            beta = (1 - 1 / part.steps) ** (self.gamma + 1)
            torch._foreach_lerp_(self.ema, [p.detach() for p in part.params], 1 - beta)
        self.step += 1
        of = f".{name}" if self.select_network else ""
        return {f"{key}{of}": value.detach() for key, value in values.items()}

    def _backward(self, values: dict[str, Tensor], part: Part) -> dict[str, Tensor]:
        """Add the gradients up; returns, now and then, the norm of each term's own (this rank's), as "grad_norm.NAME".

        The terms have graphs of their own and are gone from `values` afterwards: a compiled graph's buffers serve one
        backward only.
        """
        terms = {name: values.pop(name) for name in list(values) if name.startswith("term.")}
        if not terms:
            values["loss"].backward()
            return {}
        measured = len(terms) > 1 and part.summed % self.NORMS_EVERY == 0
        part.summed += len(terms) > 1
        norms, before = {}, [torch.zeros_like(p) for p in part.params] if measured else []
        for name, term in terms.items():
            term.backward()
            if measured:
                now = [torch.zeros_like(p) if p.grad is None else p.grad for p in part.params]
                own = torch._foreach_sub(now, before)
                norms[f"grad_norm.{name.removeprefix('term.')}"] = torch.stack(torch._foreach_norm(own)).norm()
                before = [g.clone() for g in now]
        return norms

    def _average_gradients(self, params: Sequence[Tensor]) -> None:
        """One all-reduce over all gradients; a parameter that took no part has a zero gradient."""
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.ranks == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.ranks
        pieces = flat.split([g.numel() for g in grads])
        torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(pieces, grads, strict=True)])


class Clock:
    """Times this process's steps: their rate, what is left of it, and when its minutes are over."""

    TIMED_FROM, TIMED_TO = 20, 60  # steps whose rate sets `steps`: after compilation, before much is spent
    KIND_FROM, KIND_TO = 4, 12  # the same of each kind of step, where some take longer than others

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.began = self.saved = self.mark = time.monotonic()
        self.first = self.marked = trainer.step
        self.fits = trainer.schedule.steps is None  # the number of steps follows from the minutes
        self.counts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}  # of each kind's steps after its first KIND_FROM

    def took(self, kind: str, seconds: float) -> None:
        """Count a step of that kind."""
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count > self.KIND_FROM:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def over(self) -> bool:
        """Called where the GPU was just waited for. Every rank stops at the same step: rank 0's clock decides."""
        trainer, schedule, now = self.trainer, self.trainer.schedule, time.monotonic()
        if schedule.minutes is None:
            return False
        if trainer.step - self.first <= self.TIMED_FROM:
            self.mark, self.marked = now, trainer.step
        left = 60 * schedule.minutes - (now - self.began)
        verdict = [float(left < 0), 0.0]
        if self.fits and not schedule.decaying(trainer.step):
            verdict[1] = self._last_step(left) or 0
        told = torch.tensor(verdict, dtype=torch.float64, device=trainer.ema[0].device)
        if trainer.ranks > 1:
            dist.broadcast(told, 0)
        if told[1] > 0:
            trainer.schedule = replace(schedule, steps=int(told[1]))
        return bool(told[0])

    def _last_step(self, seconds: float) -> int | None:
        """The number of the step that so many seconds end with; None before enough was timed."""
        step = self.trainer.step
        if self.trainer.kind is None:
            return int(step + seconds * self.rate()) if step - self.first >= self.TIMED_TO else None
        while seconds > 0:
            count = self.counts.get(kind := self.trainer.kind(step), 0)
            if count < self.KIND_TO:
                return None
            seconds -= self.seconds[kind] / (count - self.KIND_FROM)
            step += seconds >= 0
        return max(step, self.trainer.step + 1)

    def rate(self) -> float:
        """Steps a second since the first ones were made."""
        return (self.trainer.step - self.marked) / max(1e-9, time.monotonic() - self.mark)

    def left(self) -> float | None:
        """Seconds to the end of the schedule or of the minutes, whichever comes first; None while unknown."""
        schedule, bounds = self.trainer.schedule, []
        if schedule.steps is not None and self.rate() > 0 and not (self.fits and self.trainer.kind):
            bounds.append((schedule.steps - self.trainer.step) / self.rate())
        if schedule.minutes is not None:
            bounds.append(60 * schedule.minutes - (time.monotonic() - self.began))
        return min(bounds) if bounds else None

    def save_due(self) -> bool:
        """True every `save_minutes`."""
        due = time.monotonic() - self.saved > 60 * self.trainer.schedule.save_minutes
        if due:
            self.saved = time.monotonic()
        return due


class Log:
    """Losses on disk (log.jsonl, TensorBoard when it is installed) and one line on the terminal."""

    def __init__(self, run: Path, rank: int) -> None:
        self.silent = rank != 0
        self.path = run / "log.jsonl"
        self.board = None if self.silent else _tensorboard(run)

    def write(self, step: int, schedule: Schedule, values: dict[str, Tensor], clock: Clock) -> None:
        """Read the tensors (the only synchronisation with the GPU) and write one record."""
        if self.silent:
            return
        numbers = {name: round(float(value), 6) for name, value in values.items()}
        record = {"step": step, **numbers, "lr": schedule.lr_at(step), "steps_per_s": round(clock.rate(), 3)}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        left = clock.left()
        ends = "" if left is None else f"  {left / 60:.1f} min left"
        print(f"step {step}/{schedule.steps or '?'}  {shown}  {clock.rate():.2f} steps/s{ends}", flush=True)


def _tensorboard(run: Path):  # type: ignore[no-untyped-def]
    """A TensorBoard writer, or None (said once) where the package is missing: the jsonl has the same numbers."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        print("tensorboard is not installed: losses go to log.jsonl alone (pip install 'turbodiffusion[train]')")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run))
