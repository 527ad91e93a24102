"""rCM's losses where the answer is known: Gaussian data, whose teacher and whose consistent student are formulas."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import turbodiffusion as td
from turbodiffusion.cli import main as cli
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.training import artifacts as runs
from turbodiffusion.training.data import LatentBank
from turbodiffusion.training.recipes import rcm, sla
from turbodiffusion.training.trainer import Schedule, step_generator, torch_generator

SPREAD = 0.4  # of the data
SHAPE = (6, 1, 1, 2, 3)


def over(t_B: Tensor) -> Tensor:
    return t_B[:, None, None, None, None]


def variance(t: Tensor) -> Tensor:
    return (t.cos() * SPREAD) ** 2 + t.sin() ** 2


def teacher(x: Tensor, t_B: Tensor) -> Tensor:
    """F of data N(0, SPREAD^2): the mean of cos noise - sin x0, given x_t."""
    t = over(t_B)
    return t.cos() * t.sin() * (1 - SPREAD**2) / variance(t) * x


def consistent(x: Tensor, t_B: Tensor) -> Tensor:
    """F of the student that maps each point of the teacher's trajectories to their end, SPREAD x / sqrt(variance)."""
    t = over(t_B)
    return (t.cos() - SPREAD / variance(t).sqrt()) / t.sin() * x


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(SHAPE, dtype=torch.float64), torch.linspace(0.05, 1.5, SHAPE[0], dtype=torch.float64)


def test_a_flow_network_is_a_trigflow_one(drawn) -> None:
    noise, t_B = drawn
    x0 = torch.randn_like(noise)
    seen = []

    def velocity(x: Tensor, s_B: Tensor) -> Tensor:
        seen.append((x, s_B))
        return noise - x0

    x = rcm.noised(x0, noise, t_B)
    F = rcm.trig(velocity)(x, t_B)
    torch.testing.assert_close(F, over(t_B.cos()) * noise - over(t_B.sin()) * x0, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rcm.clean(x, F, t_B), x0, atol=1e-6, rtol=1e-6)
    ((at, s_B),) = seen
    torch.testing.assert_close(at, over(1 - s_B) * x0 + over(s_B) * noise)  # what a flow network is trained on
    torch.testing.assert_close(torch.atan2(s_B, 1 - s_B), t_B)
    torch.testing.assert_close(rcm.trig_times(s_B, 1.0), t_B)
    assert rcm.trig_times(torch.tensor([0.5])).item() == pytest.approx(math.atan(5))


def test_a_consistent_student_has_nothing_to_learn(drawn) -> None:
    x, t_B = drawn
    right = rcm.consistency_loss(consistent, teacher(x, t_B), x, t_B, 1.0)
    wrong = rcm.consistency_loss(teacher, teacher(x, t_B), x, t_B, 1.0)
    assert right.loss_B.max() < 1e-20 and wrong.loss_B.min() > 1e-4
    assert not right.broken_B.any()


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_the_warmup_ratio_is_of_the_noisy_clip_alone(drawn, ratio: float) -> None:
    """NVlabs/rcm since January 2026, with the derivative along the trajectory by a difference quotient."""
    x, t_B = drawn
    F_teacher = consistent(x, t_B) + 0.1  # so that no term is zero
    t, h = over(t_B), 1e-5
    both = t.cos() * t.sin()

    def moved(step: float) -> Tensor:
        return teacher(x + step * both * F_teacher, t_B + step * t_B.cos() * t_B.sin())

    dF = (moved(h) - moved(-h)) / (2 * h)
    g = -t.cos() * (1 - (ratio * t.sin()) ** 2).sqrt() * (teacher(x, t_B) - F_teacher) - (ratio * both * x + dF)
    length = g.square().flatten(1).sum(1)
    expected = length / (length.sqrt() + 0.1) ** 2
    loss = rcm.consistency_loss(teacher, F_teacher, x, t_B, ratio).loss_B
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_a_smooth_field_has_its_secants_direction_and_a_rough_one_has_not(drawn) -> None:
    x, t_B = drawn
    cosine, length = rcm.against_secants(teacher, x, t_B, [1e-4, 1e-3])
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-6, atol=0)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-4, atol=0)

    across = x.flip(-1) - x * over((x.flip(-1) * x).flatten(1).sum(1) / x.square().flatten(1).sum(1))

    def rough(x: Tensor, t: Tensor) -> Tensor:  # waves in time, of which the secant sees as many up as down
        return teacher(x, t) + 0.05 * torch.sin(1000 * over(t - t_B)) * across

    cosine, length = rcm.against_secants(rough, x, t_B, [0.02 * math.pi])
    assert cosine.abs().max() < 0.2 and length.min() > 5


def test_two_times_of_a_trajectory_end_in_one_place(drawn) -> None:
    noise, _ = drawn
    u_B = torch.linspace(0.05, 47 / 48, SHAPE[0], dtype=torch.float64)
    x0 = SPREAD * torch.randn_like(noise)
    right = rcm.discrete_consistency_loss(consistent, teacher, x0, noise, u_B).loss_B
    wrong = rcm.discrete_consistency_loss(teacher, teacher, x0, noise, u_B).loss_B
    assert right.sum() < 0.05 * wrong.sum()
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    later, earlier = rcm.trig_times(u_B + 1 / 48), rcm.trig_times(u_B)
    rcm.discrete_consistency_loss(lambda x, t: gain * teacher(x, t), teacher, x0, noise, u_B).loss_B.sum().backward()
    x = rcm.noised(x0, noise, later)
    next_x = x - over(later - earlier) * teacher(x, later)
    guess, target = rcm.clean(x, teacher(x, later), later), rcm.clean(next_x, teacher(next_x, earlier), earlier)
    slope = -over(later.sin()) * teacher(x, later)  # of the guess alone: the target stands still
    torch.testing.assert_close(gain.grad, (2 * (guess - target) * slope).sum())


class Table(nn.Module):
    """A student of one dimension: x0 = gain(t) x, a small network of t."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor, t_B: Tensor) -> Tensor:
        seen = torch.stack((t_B, t_B.cos(), t_B.sin()), dim=1)
        return over(self.gain(seen)[:, 0]) * x


def test_students_learn_to_jump_to_the_end() -> None:
    """From the teacher's field to its consistent one: noise in one step gets the data's spread."""
    torch.manual_seed(1)
    student = Table()
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    x0, noise = SPREAD * torch.randn(512, 1, 1, 1, 1), torch.randn(512, 1, 1, 1, 1)
    start = torch.full((512,), math.pi / 2)

    def spread() -> float:
        with torch.no_grad():
            return float(rcm.rollout(student, [noise], [start]).std())

    for step in range(700):
        t_B = (1.6 * torch.randn(512) - 0.8).exp().atan()
        x = rcm.noised(x0, torch.randn_like(x0), t_B)
        loss = rcm.consistency_loss(student, teacher(x, t_B), x, t_B, min(1.0, step / 300)).loss_B.mean()
        if step == 300:
            before = spread()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert spread() == pytest.approx(SPREAD, rel=0.15)
    assert abs(before - SPREAD) > abs(spread() - SPREAD)


def test_samples_move_to_where_the_teacher_expects_them(drawn) -> None:
    noise, t_B = drawn
    made = torch.randn_like(noise).requires_grad_()

    def shifted(x: Tensor, t: Tensor) -> Tensor:  # expects an x0 that is larger by 0.3
        return teacher(x, t) - 0.3 / over(t.sin())

    same = rcm.dmd_loss(made, teacher, teacher, noise, t_B)
    assert same.loss_B.max() == 0
    away = rcm.dmd_loss(made, shifted, teacher, noise, t_B)
    away.loss_B.sum().backward()
    x = rcm.noised(made, noise, t_B).detach()
    expected = rcm.clean(x, teacher(x, t_B), t_B)
    distance = (made - expected).detach().abs().flatten(1).mean(1)
    # The fake score expects 0.3 more, so there is too much: down, by 0.3 of the mean distance.
    torch.testing.assert_close(made.grad, 2 * over(0.3 / distance).expand_as(made), rtol=1e-6, atol=0)


def test_the_fake_score_is_a_flow_model_of_samples(drawn) -> None:
    noise, t_B = drawn
    made = torch.randn_like(noise)
    exact = over(t_B.cos()) * noise - over(t_B.sin()) * made
    assert rcm.fake_score_loss(made, lambda *_: exact, noise, t_B).loss_B.max() == 0
    loss = rcm.fake_score_loss(made, teacher, noise, t_B).loss_B
    x = rcm.noised(made, noise, t_B)
    guess = rcm.clean(x, teacher(x, t_B), t_B)
    torch.testing.assert_close(loss, ((made - guess) / over(t_B.sin())).square().flatten(1).sum(1))


def test_a_rollout_has_a_gradient_through_its_last_step_alone(drawn) -> None:
    noise, _ = drawn
    gain = torch.ones(3, dtype=torch.float64, requires_grad=True)
    calls = []

    def student(x: Tensor, t_B: Tensor) -> Tensor:
        calls.append(t_B[0].item())
        return gain[len(calls) - 1] * consistent(x, t_B)

    times = [torch.full((SHAPE[0],), t, dtype=torch.float64) for t in (1.55, 1.0, 0.5)]
    made = rcm.rollout(student, [noise, noise.flip(0), noise.roll(1, 0)], times)
    made.sum().backward()
    assert calls == [1.55, 1.0, 0.5] and gain.grad is not None
    assert gain.grad[:2].tolist() == [0, 0] and gain.grad[2] != 0
    one = rcm.rollout(consistent, [noise], times[:1])
    torch.testing.assert_close(one, SPREAD * times[0][0].sin() / variance(times[0][0]).sqrt() * noise)


def test_a_sample_that_is_not_finite_counts_nothing(drawn) -> None:
    x, t_B = drawn
    F = teacher(x, t_B)
    F[2] = float("nan")
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = rcm.consistency_loss(lambda x, t: gain * teacher(x, t), F, x, t_B, 1.0)
    assert found.broken_B.tolist() == [False, False, True, False, False, False]
    assert found.loss_B[2] == 0 and found.loss_B[[0, 1, 3]].min() > 0
    found.loss_B.sum().backward()
    assert gain.grad is not None and gain.grad.isfinite() and gain.grad != 0


def test_whose_turn_it_is() -> None:
    recipe = rcm.RCMRecipe(warmup=3, student_every=5)
    turns = "".join(recipe.turn(step)[0] for step in range(14))
    assert turns == "sss" + "sffff" + "sffff" + "s"
    assert [recipe.kind(step) for step in (0, 2, 3, 4)] == ["warmup", "warmup", "student", "fake"]
    with pytest.raises(ValueError, match='"continuous" or "discrete"'):
        rcm.RCMRecipe(consistency="loose")
    for wrong in ({"student_every": 0}, {"one_step_share": 1.5}):
        with pytest.raises(ValueError, match="from 0 to 1"):
            rcm.RCMRecipe(**wrong)


# ---- runs ----


@pytest.fixture
def parts(tiny_model, small_world):
    """A teacher whose head is not zero, networks, and a bank of four clips."""
    known = runs.read_teacher(str(tiny_model), torch.device("cpu"))
    torch.manual_seed(5)
    nn.init.normal_(known.transformer.head.head.weight, std=0.1)
    bank = LatentBank(small_world, known.vae, known.tokenizer, size=4, fresh=2, seed=3, captions=2)
    student, fake = (runs.another(known.transformer) for _ in range(2))
    return rcm.Networks(student, fake, known.transformer, known.text), bank


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


@pytest.fixture
def legs(parts, tmp_path: Path, monkeypatch):
    """Runs of seven steps that stop where they are told; what they leave."""
    networks, bank = parts

    def leg(folder: str, until: int, lr: float = 1e-3, **fields) -> dict[str, Tensor]:
        def fit(trainer, loss, prepare) -> None:
            prepare(trainer.step)
            while trainer.step < until:
                trainer._optimize(loss)
            trainer.save()

        monkeypatch.setattr(rcm.Trainer, "fit", fit)
        bank.end = 0
        recipe = rcm.RCMRecipe(batch=2, warmup=2, student_every=2, compile=False, **fields)
        schedule = Schedule(lr=lr, steps=7, warmup=1, betas=(0.0, 0.999), weight_decay=0.0)
        trainer = rcm.train_rcm(networks, bank, recipe, schedule, tmp_path / folder)
        ema = {f"ema.{name}": x.clone() for name, x in trainer.ema_state().items()}
        return weights(trainer.modules) | ema

    return leg


@pytest.mark.slow
@pytest.mark.parametrize("consistency", ["continuous", "discrete"])
def test_a_stopped_run_is_the_run_that_was_not(parts, legs, consistency: str) -> None:
    teacher = weights(parts[0].teacher)
    whole = legs("whole", 7, consistency=consistency)
    legs("part", 4, consistency=consistency)
    again = legs("part", 7, consistency=consistency)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    name = "blocks.0.ffn.0.weight"
    assert len({whole[f"{key}.{name}"].sum().item() for key in ("student", "fake", "ema.student")}) == 3
    assert all(torch.equal(x, teacher[key]) for key, x in weights(parts[0].teacher).items())


@pytest.mark.slow
def test_both_networks_begin_as_the_teacher_and_the_fake_score_is_slower(parts, legs) -> None:
    teacher = weights(parts[0].teacher)
    start = legs("still", 3, lr=0.0)
    for key in ("student", "fake", "ema.student"):
        assert all(torch.equal(start[f"{key}.{name}"], x) for name, x in teacher.items())
    moved = legs("moving", 4)  # student, student, student, fake
    first = "blocks.0.ffn.0.weight"
    of = {key: (moved[f"{key}.{first}"] - teacher[first]).abs().max().item() for key in ("student", "fake")}
    assert of["fake"] == pytest.approx(0.2e-3, rel=0.02) and of["student"] > 1e-3  # Adam's first step is its rate


@pytest.fixture
def stepped(parts):
    """A step of a recipe, and what its fields see."""
    networks, bank = parts
    bank.advance(0)

    def at(step: int = 0, **fields) -> rcm._Step:
        recipe = rcm.RCMRecipe(batch=2, compile=False, **fields)
        forward = {name: getattr(networks, name) for name in ("student", "fake", "teacher")}
        return rcm._Step(networks, bank, recipe, step, forward)

    return at


@torch.no_grad()
def test_the_teacher_is_guided_by_an_empty_prompt(parts, stepped) -> None:
    (networks, bank), at = parts, stepped(guidance=3.0)
    network, t_B = networks.teacher, torch.tensor([0.3, 1.2])
    s_B = t_B.sin() / (t_B.cos() + t_B.sin())
    x = torch.randn_like(at.x0)

    def velocity(states: Tensor) -> Tensor:
        return network(x / over(t_B.cos() + t_B.sin()), 1000 * s_B, network.encode_context(states))

    free = velocity(networks.text(bank.empty_ids.long(), bank.empty_mask.long()).expand_as(at.states))
    v = free + 3 * (velocity(at.states) - free)
    expected = (over(t_B.cos() - t_B.sin()) * x + v) / over(t_B.cos() + t_B.sin())
    torch.testing.assert_close(at.guided_teacher()(x, t_B), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(at.guided_teacher()(x, t_B), at.field("teacher")(x, t_B), atol=1e-3)


def test_ranks_and_steps_draw_their_own(stepped, monkeypatch) -> None:
    first, again, later = stepped(0).noise(), stepped(0).noise(), stepped(1).noise()
    monkeypatch.setattr(rcm, "rank_and_size", lambda: (1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, stepped(0).noise())


def test_students_begin_at_the_top_and_go_down(stepped, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(rcm, "rollout", lambda student, noises, times: seen.append((noises, times)))
    stepped(sigma_max=20.0).made(consistent, 4)
    ((noises, times),) = seen
    assert len(noises) == 4 and not torch.equal(noises[0], noises[1])
    assert all((times[k] > times[k + 1]).all() for k in range(3))
    assert times[0].tolist() == pytest.approx([math.atan(20)] * 2)


def test_what_a_step_adds_up(parts, monkeypatch) -> None:
    """100 times the consistency loss at a growing ratio, then DMD too, on samples of 1 to 4 steps in turn."""
    networks, bank = parts
    recipe = rcm.RCMRecipe(batch=2, warmup=2, student_every=2, dmd_weight=0.5, compile=False)
    loss, found = rcm.make_loss(networks, bank, recipe), {}

    def watch(name: str) -> None:
        original = getattr(rcm, name)

        def watched(*args, **kwargs):
            found[name] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(rcm, name, watched)

    for name in ("consistency_loss", "dmd_loss", "fake_score_loss", "rollout"):
        watch(name)
    for network, scale in ((networks.student, 0.2), (networks.fake, 0.3)):  # three networks that can be told apart
        nn.init.normal_(network.head.head.weight, std=scale)
    x, t_B = torch.randn(2, 16, 2, 8, 8), torch.tensor([0.4, 1.1])
    for step in range(12):
        found.clear()
        values = loss(step)
        at = rcm._Step(networks, bank, recipe, step, {n: getattr(networks, n) for n in ("student", "fake", "teacher")})
        with torch.no_grad():
            student, fake, teacher = at.field("student")(x, t_B), at.field("fake")(x, t_B), at.guided_teacher()(x, t_B)
            if recipe.turn(step) == "fake":
                assert values.keys() == {"loss", "mse", "broken"} and found.keys() == {"fake_score_loss", "rollout"}
                made, field, *_ = found["fake_score_loss"][0]
                torch.testing.assert_close(field(x, t_B), fake)
                assert not made.requires_grad and torch.equal(made, rcm.rollout(*found["rollout"][0]))
            else:
                (seen, F, at_x, at_t, ratio), kwargs = found["consistency_loss"]
                torch.testing.assert_close(seen(x, t_B), student)
                torch.testing.assert_close(kwargs["derived"](x, t_B), student)
                torch.testing.assert_close(F, at.guided_teacher()(at_x, at_t))
                assert ratio == min(1.0, step / 2)
                terms = {"term.consistency": 100 * values["consistency"]}
                if step >= 2:
                    terms["term.dmd"] = 0.5 * values["dmd"]
                assert {name: float(x) for name, x in values.items() if name.startswith("term.")} == terms
                torch.testing.assert_close(values["loss"], torch.stack(list(terms.values())).sum())
                assert ("dmd_loss" in found) == (step >= 2)
            if "dmd_loss" in found:
                _, of_fake, of_teacher, *_ = found["dmd_loss"][0]
                torch.testing.assert_close(of_fake(x, t_B), fake)
                torch.testing.assert_close(of_teacher(x, t_B), teacher)
            if step >= 2:
                assert len(found["rollout"][0][2]) == recipe.rollout_steps(step)


@pytest.mark.parametrize("every", [2, 4, 5, 10])
def test_samples_of_one_to_four_steps_are_as_frequent_in_both_turns(every: int) -> None:
    recipe = rcm.RCMRecipe(warmup=3, student_every=every)
    for network in ("student", "fake"):
        counts = [recipe.rollout_steps(step) for step in range(3, 403) if recipe.turn(step) == network]
        assert counts == [1 + n % 4 for n in range(len(counts))]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_samples_of_one_step_have_the_share_that_was_asked_for(share: float) -> None:
    recipe = rcm.RCMRecipe(warmup=0, one_step_share=share)
    for network in ("student", "fake"):
        counts = [recipe.rollout_steps(step) for step in range(600) if recipe.turn(step) == network]
        assert abs(counts.count(1) - share * len(counts)) < 1
        others = [n for n in counts if n != 1]
        assert others == [2 + n % 3 for n in range(len(others))]


def test_the_students_times_are_those_of_the_recipe(parts, monkeypatch) -> None:
    networks, bank = parts
    times = []

    def watched(student, F, x, t_B, ratio, **_):
        times.append(t_B)
        return rcm.Losses(0 * t_B, t_B < 0)

    monkeypatch.setattr(rcm, "consistency_loss", watched)
    loss = rcm.make_loss(networks, bank, rcm.RCMRecipe(batch=64, sigma_mean=0.7, sigma_std=0.5, compile=False))
    for step in range(8):
        loss(step)
    drawn = torch.cat(times).tan().log()
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.1) and drawn.std().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("consistency", ["continuous", "discrete"])
def test_every_weight_of_the_student_learns_under_autocast(parts, monkeypatch, consistency: str) -> None:
    """What autocast keeps of a pass without gradients would leave weights without one."""
    networks, bank = parts
    recipe = rcm.RCMRecipe(batch=2, warmup=0, consistency=consistency, compile=False)
    autocast = torch.autocast

    def always(device, dtype=None, **rest):
        return autocast(device, dtype, **rest | {"enabled": dtype is not None})  # without one it is switched off

    monkeypatch.setattr(torch, "autocast", always)
    values = rcm.make_loss(networks, bank, recipe)(0)
    for name in ("term.consistency", "term.dmd"):  # each has a graph of its own, as the trainer needs it
        values[name].backward()
    assert [name for name, p in networks.student.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_from_a_teacher_to_a_fast_model(tiny_model, small_atlas, tmp_path: Path, capsys) -> None:
    """As a user does: distil, tune for sparse attention, merge, and make a video of the folder."""
    few = ["--teacher", str(tiny_model), "--atlas", str(small_atlas), "--batch", "2", "--clips", "4", "--fresh", "2"]
    for name, extra in (
        ("rcm", ["--steps", "5", "--warmup", "2", "--no-compile"]),
        ("sla", ["--steps", "2", "--topk", "0.2"]),
    ):
        assert cli.main(["train", name, "--folder", str(tmp_path / name), *few, *extra]) == 0, capsys.readouterr().err
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert log and all(math.isfinite(value) for value in log[-1].values())
        norms = {"grad_norm.consistency.student", "grad_norm.dmd.student", "grad_norm.fake"}
        assert name == "sla" or norms | {"loss.student", "dmd.student", "loss.fake"} < log[-1].keys()
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        written = runs.read_weights(tmp_path / name / f"{name}.safetensors")
        kept = [key.split(".", 1)[1] for key in state["modules"] if not key.startswith("fake.")]
        assert written.keys() == set(kept)
        for key, average in zip(kept, state["ema"], strict=True):
            assert torch.equal(written[key], average.to(torch.bfloat16).float())
        if name == "rcm":
            for part in ("student", "fake"):
                written = runs.read_weights(tmp_path / name / f"{part}.safetensors")
                assert all(torch.equal(x, state["modules"][f"{part}.{key}"].bfloat16()) for key, x in written.items())
    assert len(list((tmp_path / "rcm").glob("sheet-5-in-[421].png"))) == 3
    left = [
        f"--{option}={tmp_path}/rcm/{part}.safetensors" for option, part in (("from", "student"), ("from-fake", "fake"))
    ]
    on = ["rcm", *few, "--no-compile", "--steps", "1", "--lr", "0", "--folder", str(tmp_path / "on")]
    assert cli.main(["train", *on, *left]) == 0, capsys.readouterr().err
    for part in ("student", "fake"):
        before, after = (runs.read_weights(tmp_path / run / f"{part}.safetensors") for run in ("rcm", "on"))
        assert all(torch.equal(x, after[key]) for key, x in before.items())
    before = runs.read_weights(tmp_path / "on" / "student.safetensors")
    assert all(torch.equal(x, before[key]) for key, x in runs.read_weights(tmp_path / "on" / "rcm.safetensors").items())
    rest = ["--rcm", str(tmp_path / "rcm" / "rcm.safetensors"), "--teacher", str(tiny_model)]
    for folder, extra, kind in (
        ("dense", [], "original"),
        ("sparse", ["--sla", str(tmp_path / "sla" / "sla.safetensors")], "sla"),
    ):
        assert cli.main(["train", "merge", str(tmp_path / folder), *rest, *extra]) == 0, capsys.readouterr().err
        pipe = td.Pipeline.load(str(tmp_path / folder))
        assert pipe.model.compute.attention_type == kind and (kind == "original" or pipe.model.compute.sla_topk == 0.2)
        assert (
            pipe.model.preset.sigma_max == 80
            and pipe.model.preset.sampler == "rcm"
            and pipe.model.preset.num_steps == 4
        )
        result = pipe.generate(td.Request(prompt="a red fox hops", seed=2))
        assert result.frames.shape == (5, 64, 64, 3) and not any("fine-tuned" in notice for notice in result.notices)
    of_sla = ["--rcm", str(tmp_path / "sla" / "sla.safetensors"), "--teacher", str(tiny_model)]
    for arguments, words in (
        (["merge", str(tmp_path / "x"), *of_sla], "is no file of `train rcm`"),
        (["merge", str(tmp_path / "x"), *rest[:2], "--teacher", "demo"], "was trained from another model than demo"),
        (["rcm", "--teacher", str(tmp_path / "dense"), "--folder", str(tmp_path / "y")], "is no teacher"),
        (["rcm", "--steps", "5", "--warmup", "9"], "end within --warmup 9"),
        ([*on, left[0]], "--from and --from-fake go together"),
        ([*on, left[0], left[1].replace("fake.safetensors", "rcm.safetensors")], "holds no fake of `train rcm`"),
        ([*on[:1], *on[3:], *left], "was distilled from another teacher"),
        ([*on, "--warmup", "0", "--guidance", "3"], "was begun with guidance 4.0, and cannot go on with 3.0"),
    ):
        assert cli.main(["train", *arguments]) != 0
        error = capsys.readouterr().err
        assert words in " ".join(error.split()) and "Traceback" not in error


@pytest.mark.slow
def test_a_sparse_network_learns_to_say_what_the_dense_one_says(parts, tmp_path: Path) -> None:
    networks, bank = parts
    dense = networks.teacher
    sparse = WanTransformer(replace(dense.config, attention_type="sla", sla_topk=0.25, sla_block_q=8, sla_block_k=8))
    seen = {}
    hook = dense.register_forward_pre_hook(lambda _, args: seen.update(x=args[0], t=args[1]))
    bank.advance(0)
    sla.make_loss(dense, sparse, networks.text, bank, sla.SLARecipe(batch=2, compile=False))(0)
    hook.remove()
    rng = step_generator(12, 0, 0)
    x0 = bank.batch(rng, 2, drop=0.1).latent_BCTHW.float()
    generator = torch_generator(rng, torch.device("cpu"))
    noise, t_B = torch.randn(x0.shape, generator=generator), (1.5 + 1.6 * torch.randn(2, generator=generator)).sigmoid()
    torch.testing.assert_close(seen["x"], x0 + over(t_B) * (noise - x0))
    torch.testing.assert_close(seen["t"], 1000 * t_B)
    bank.end = 0
    still = Schedule(lr=0.0, steps=1)
    sla.train_sla(dense, sparse, networks.text, bank, sla.SLARecipe(batch=2, compile=False), still, tmp_path / "still")
    assert all(torch.equal(sparse.state_dict()[name], x) for name, x in dense.state_dict().items())
    bank.end = 0
    schedule = Schedule(lr=3e-3, steps=30, warmup=2, log_every=1)
    sla.train_sla(dense, sparse, networks.text, bank, sla.SLARecipe(batch=4, compile=False), schedule, tmp_path)
    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(log[-5:]) < 0.7 * sum(log[:5])
    assert sparse.state_dict()["blocks.0.self_attn.attention.proj_l.weight"].any()
