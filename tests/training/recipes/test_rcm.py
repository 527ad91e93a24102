"""rCM's losses where the answer is known: Gaussian data, whose teacher and whose consistent student are formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from turbodiffusion.training.recipes import rcm

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
