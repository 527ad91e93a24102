"""The training loop: schedules, EMA, exact resume, the logs, and two ranks that are one run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from turbodiffusion.errors import CheckpointError
from turbodiffusion.training.trainer import Schedule, Trainer, ema_gamma, step_generator, torch_generator


def make(run: Path, steps: int, **fields: object) -> tuple[Trainer, object]:
    """A small regression whose batches come from (seed, step) alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))
    trainer = Trainer(nn.ModuleDict({"net": net}), Schedule(steps=steps, lr=1e-2, warmup=3, log_every=2, **fields), run)

    def loss(step: int) -> dict[str, torch.Tensor]:
        generator = torch_generator(step_generator(5, step), torch.device("cpu"))
        x = torch.randn(64, 4, generator=generator)
        return {"loss": (net(x)[:, 0] - x.sum(1).tanh()).square().mean()}

    return trainer, loss


def test_learning_rate_rises_holds_and_falls() -> None:
    schedule = Schedule(lr=1.0, steps=100, warmup=10, decay=0.2)
    assert [schedule.lr_at(s) for s in (0, 4, 9, 50, 79)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert [schedule.lr_at(s) for s in (90, 99)] == pytest.approx([0.5, 0.05])


def test_ema_width_is_what_was_asked() -> None:
    """The power function's relative width, sqrt((g + 1) / ((g + 2)^2 (g + 3))) (arXiv 2312.02696, equation 126)."""
    for width in (0.05, 0.1, 0.2):
        gamma = ema_gamma(width)
        assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(width, rel=1e-9)


def test_ema_follows_the_power_function(tmp_path: Path) -> None:
    """After n steps the average is sum_i w_i theta_i with w_i the product of the published betas."""
    trainer, loss = make(tmp_path, 12)
    seen = []
    run_step = trainer._optimize

    def keep(fn):  # type: ignore[no-untyped-def]
        values = run_step(fn)
        seen.append(trainer.kept.params[0].detach().double().clone())
        return values

    trainer._optimize = keep  # type: ignore[method-assign]
    trainer.fit(loss)
    average = seen[0]
    for n, theta in enumerate(seen[1:], start=1):
        beta = (1 - 1 / (n + 1)) ** (trainer.gamma + 1)
        average = beta * average + (1 - beta) * theta
    torch.testing.assert_close(trainer.ema[0].double(), average, rtol=1e-5, atol=1e-7)


def test_modules_that_take_turns_have_steps_rates_and_one_ema(tmp_path: Path) -> None:
    """Two numbers that follow their own gradient: who moves, how far, and what is averaged."""
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for part in (first, second):
        nn.init.zeros_(part.weight)
    schedule = Schedule(lr=0.5, steps=7, warmup=0, decay=0.0, betas=(0.0, 0.999), weight_decay=0.0, log_every=1)
    modules = nn.ModuleDict({"first": first, "second": second})
    select_network = [
        "first",
        "second",
        "second",
        "second",
        "first",
        "second",
        "first",
    ].__getitem__  # the third step breaks
    trainer = Trainer(modules, schedule, tmp_path, select_network=select_network, rates={"second": 0.1})
    trainer.fit(lambda step: {"loss": -modules[select_network(step)].weight.sum() * (float("nan") if step == 2 else 1)})
    assert first.weight.item() == pytest.approx(1.5, rel=1e-3)  # three of Adam's steps of 0.5
    assert second.weight.item() == pytest.approx(0.15, rel=1e-3)  # three of 0.05
    average = 0.0
    for n in (1, 2, 3):
        beta = (1 - 1 / n) ** (trainer.gamma + 1)
        average = beta * average + (1 - beta) * 0.5 * n
    assert trainer.ema_state().keys() == {"first.weight"}
    assert trainer.ema_state()["first.weight"].item() == pytest.approx(average, rel=1e-3)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["loss.first"] == pytest.approx(-1, abs=0.01) and last["loss.second"] == pytest.approx(-0.1, abs=0.01)


def test_training_learns_and_logs(tmp_path: Path) -> None:
    trainer, loss = make(tmp_path, 200)
    assert trainer.fit(loss)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 200 and records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert {"loss", "grad_norm", "lr", "steps_per_s"} <= records[0].keys()


def test_a_run_that_was_stopped_is_the_run_that_was_not(tmp_path: Path) -> None:
    whole, loss = make(tmp_path / "whole", 10)
    whole.fit(loss)
    part, loss = make(tmp_path / "part", 10)
    for _ in range(4):
        part._optimize(loss)
    part.save()
    again, loss = make(tmp_path / "part", 10)
    assert again.resume() and again.step == 4
    again.fit(loss)
    for a, b in zip(whole.kept.params + whole.ema, again.kept.params + again.ema, strict=True):
        assert torch.equal(a, b)


def test_minutes_alone_set_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, loss = make(tmp_path, 0)
    # A clock that a step moves by a second, whatever the machine does meanwhile.
    monkeypatch.setattr("turbodiffusion.training.trainer.time", SimpleNamespace(monotonic=lambda: float(trainer.step)))
    trainer.schedule = Schedule(lr=1e-2, minutes=2, log_every=5)
    trainer.fit(loss)
    assert trainer.schedule.steps == trainer.step == 120
    resumed, _ = make(tmp_path, 0)
    resumed.schedule = Schedule(lr=1e-2, minutes=2)
    assert resumed.resume() and resumed.schedule.steps == trainer.schedule.steps


def test_steps_that_take_longer_are_timed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up of slow steps, then a slow one in five: the run fits into its minutes, decay included."""
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    modules = nn.ModuleDict({"first": first, "second": second})

    def kind(step: int) -> str:
        return "warmup" if step < 30 else "second" if step % 5 else "first"

    now = [0.0]
    costs = {"warmup": 1.0, "first": 3.0, "second": 0.5}
    monkeypatch.setattr("turbodiffusion.training.trainer.time", SimpleNamespace(monotonic=lambda: now[0]))
    schedule = Schedule(lr=1e-2, minutes=6, decay=0.3, log_every=10)
    turn = {"warmup": "first", "first": "first", "second": "second"}
    trainer = Trainer(modules, schedule, tmp_path, select_network=lambda step: turn[kind(step)], kind=kind)

    def loss(step: int) -> dict[str, torch.Tensor]:
        compiling = 20 if step in (0, 30, 31) else 0
        now[0] += costs[kind(step)] + compiling
        return {"loss": modules[turn[kind(step)]](torch.ones(1, 1)).square().sum()}

    assert trainer.fit(loss)
    assert 358 <= now[0] <= 360
    again = Trainer(modules, schedule, tmp_path, select_network=lambda step: turn[kind(step)], kind=kind)
    assert again.resume() and again.schedule.steps == trainer.step


def test_terms_of_a_loss_have_their_gradients_measured(tmp_path: Path) -> None:
    net = nn.Linear(2, 1, bias=False)
    trainer = Trainer(nn.ModuleDict({"net": net}), Schedule(lr=0.0, steps=1, clip=2.0), tmp_path)
    terms = {"term.a": 3 * net.weight[0, 0], "term.b": -4 * net.weight.sum()}
    values = trainer._optimize(lambda step: {"loss": torch.stack(list(terms.values())).sum(), **terms})
    assert values.keys() == {"loss", "grad_norm", "grad_norm.a", "grad_norm.b"}
    found = [float(values[name]) for name in ("grad_norm", "grad_norm.a", "grad_norm.b")]
    assert found == pytest.approx([17**0.5, 3, 32**0.5])


def test_a_run_goes_on_with_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    def begin(**settings: float) -> Trainer:
        return Trainer(nn.ModuleDict({"net": nn.Linear(2, 1)}), Schedule(lr=1.0, steps=1), tmp_path, settings=settings)

    begin(guidance=4.0).save()
    assert begin(guidance=4.0).resume() and begin(guidance=4.0, newer=1.0).resume()
    with pytest.raises(CheckpointError, match=r"was begun with guidance 4\.0, and cannot go on with 5\.0"):
        begin(guidance=5.0).resume()


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, 1)
    trainer.save()
    other = Trainer(nn.ModuleDict({"net": nn.Linear(2, 2)}), Schedule(lr=1.0, steps=1), tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        other.resume()


def test_a_schedule_without_an_end_is_refused(tmp_path: Path) -> None:
    trainer, loss = make(tmp_path, 1)
    trainer.schedule = Schedule(lr=1e-2)
    with pytest.raises(ValueError, match="steps, minutes"):
        trainer.fit(loss)


TWO_RANKS = """
import sys, torch
from pathlib import Path
from torch import nn
from turbodiffusion.training.trainer import *
from turbodiffusion.parallel.groups import rank_and_size, start_distributed
start_distributed()
rank, ranks = rank_and_size()
torch.manual_seed(0)
net = nn.Linear(3, 1)
trainer = Trainer(nn.ModuleDict({"net": net}), Schedule(lr=1e-2, steps=3), Path(sys.argv[1]) / str(rank))
x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
mine = x.chunk(ranks)[rank]
trainer.fit(lambda step: {"loss": (net(mine)[:, 0] - mine.sum(1)).square().mean()})
torch.save([p.detach() for p in trainer.kept.params], Path(sys.argv[1]) / f"{rank}-of-{ranks}.pt")
"""


@pytest.mark.slow
def test_two_ranks_train_what_one_does_on_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_RANKS)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=env, capture_output=True, timeout=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script), str(tmp_path)], check=True, env=env, capture_output=True, timeout=120)
    one = torch.load(tmp_path / "0-of-1.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}-of-2.pt", weights_only=True)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the mean of two halves, in another order
