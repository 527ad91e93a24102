"""Distilling the teacher into a few steps: rCM, forward consistency with reverse score regularisation.

Sources: rCM (arXiv 2510.08431); sCM's loss in its rearranged form (arXiv 2410.11081, section 5.1); distribution
matching (DMD2, arXiv 2405.14867). TrigFlow: x_t = cos(t) x0 + sin(t) noise for t in [0, pi / 2], and

    F = dx_t / dt = cos(t) noise - sin(t) x0,      x0 = cos(t) x_t - sin(t) F.

A rectified-flow network stays as it is: it sees x_t / (cos + sin) at the flow time sin / (cos + sin), and with its
velocity v, F = ((cos - sin) x_t + v) / (cos + sin).

Two networks begin as the teacher and take turns. Every `student_every`-th step trains the student: to be consistent
along the teacher's guided trajectories (its derivative in time by forward-mode differentiation), and by the difference
of two scores, the teacher's and that of the fake score, on what it makes in 1 to 4 steps. The others train the fake
score, a flow model of what the student makes. During the tangent's warm-up the student trains alone, without scores.

A loss is a sum over a sample's elements and a mean over the batch. A sample whose target is not finite, because the
teacher, the fake score or the student's derivative is not, counts nothing, and is counted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from turbodiffusion.errors import CheckpointError
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.wan import Context, WanTransformer
from turbodiffusion.parallel.groups import rank_and_size
from turbodiffusion.schedules import RCM_MID_ANGLES
from turbodiffusion.training.data import LatentBank
from turbodiffusion.training.trainer import Loss, Schedule, Trainer, step_generator, torch_generator

Field = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C, T, H, W], times [B]) -> a field of x's shape: a velocity at flow times, or F at TrigFlow's."""

TANGENT_SCALE = 0.1  # added to the length that a tangent is divided by: sCM, section 4.1
SHIFT = 5.0  # of uniform flow times toward noise: DMD's, the fake score's and the discrete loss's
MAX_STEPS = len(RCM_MID_ANGLES) + 1  # of the student


@dataclass(frozen=True)
class RCMRecipe:
    """`batch` clips a step on each rank. consistency: "continuous", or "discrete" without a derivative in time."""

    batch: int = 64
    guidance: float = 5.0
    consistency: str = "continuous"
    # Of log tan(t), the times of the continuous loss. The published -0.8 (small models; 0.7 for Wan 1.3B, 1.5 for 14B)
    # puts 0.4% of them beyond the flow time 0.97, where the demo model decides on directions; 1.0 puts 6% there.
    sigma_mean: float = 1.0
    sigma_std: float = 1.6
    warmup: int = 1000  # of the tangent, in steps
    student_every: int = 5  # one student step, then student_every - 1 of the fake score
    one_step_share: float = 0.25  # of the samples that the student makes, in one step; the others take 2, 3 or 4
    fake_rate: float = 0.2  # the fake score's learning rate as a share of the student's
    sigma_max: float = 80.0  # tan(t) where the student begins
    consistency_weight: float = 100.0
    dmd_weight: float = 1.0
    seed: int = 11
    compile: bool = True

    def __post_init__(self) -> None:
        if self.consistency not in ("continuous", "discrete"):
            raise ValueError(f'consistency {self.consistency!r}: "continuous" or "discrete"')
        if self.student_every < 1 or not 0 <= self.one_step_share <= 1:
            raise ValueError("student_every is 1 or more, one_step_share is from 0 to 1")

    def turn(self, step: int) -> str:
        """Which network a step trains."""
        return "student" if step < self.warmup or (step - self.warmup) % self.student_every == 0 else "fake"

    def kind(self, step: int) -> str:
        """Return the kind of a step by what it costs: "warmup" (consistency alone), "student" or "fake"."""
        return "warmup" if step < self.warmup else self.turn(step)

    def rollout_steps(self, step: int) -> int:
        """Return in how many steps the student makes samples, at a step of either network.

        Each network sees 1, 2, 3, 4 and again, or as many of one step as `one_step_share` says, evenly spread.
        """
        since = step - self.warmup
        students = since // self.student_every
        count = students if self.turn(step) == "student" else since - students - 1
        ones, then = (math.ceil(n * self.one_step_share - 1e-9) for n in (count, count + 1))  # before, and with this
        return 1 if then > ones else 2 + (count - ones) % (MAX_STEPS - 1)


class Losses(NamedTuple):
    """A value for each sample, and which of them are left out of it because something was not finite."""

    loss_B: Tensor
    broken_B: Tensor


# ---- TrigFlow ----


def _over(x_B: Tensor) -> Tensor:
    return x_B[:, None, None, None, None]


def trig(velocity: Field) -> Field:
    """F(x_t, t) of a rectified-flow network velocity(x, flow time)."""

    def field(x_BCTHW: Tensor, t_B: Tensor) -> Tensor:
        cos, sin = t_B.cos(), t_B.sin()
        scale = _over(cos + sin)
        v = velocity(x_BCTHW / scale, sin / (cos + sin)).float()
        return (_over(cos - sin) * x_BCTHW + v) / scale

    return field


def clean(x_BCTHW: Tensor, F_BCTHW: Tensor, t_B: Tensor) -> Tensor:
    """The x0 that a field tells at t."""
    return _over(t_B.cos()) * x_BCTHW - _over(t_B.sin()) * F_BCTHW


def noised(x0_BCTHW: Tensor, noise_BCTHW: Tensor, t_B: Tensor) -> Tensor:
    return _over(t_B.cos()) * x0_BCTHW + _over(t_B.sin()) * noise_BCTHW


def trig_times(u_B: Tensor, shift: float = SHIFT) -> Tensor:
    """TrigFlow times of flow times shift u / (1 + (shift - 1) u)."""
    s = shift * u_B / (1 + (shift - 1) * u_B)
    return torch.atan2(s, 1 - s)


# ---- the losses ----


def _squares(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.square().flatten(1).sum(1)


def _moved_to(value_BCTHW: Tensor, change_BCTHW: Tensor) -> Losses:
    """||value - sg(value + change)||^2, whose gradient is -2 change."""
    broken = ~(change_BCTHW.isfinite() & value_BCTHW.detach().isfinite()).flatten(1).all(1)
    change = torch.where(_over(broken), 0.0, change_BCTHW)
    away = value_BCTHW - value_BCTHW.detach() - change
    return Losses(_squares(torch.where(_over(broken), 0.0, away)), broken)


@torch.no_grad()
def derivative(field: Field, x_BCTHW: Tensor, t_B: Tensor, dx_BCTHW: Tensor, dt_B: Tensor) -> Tensor:
    """Return the change of a field at (x, t) along (dx, dt), by forward-mode differentiation."""
    with forward_ad.dual_level():
        moving = field(forward_ad.make_dual(x_BCTHW, dx_BCTHW), forward_ad.make_dual(t_B, dt_B))
        tangent = forward_ad.unpack_dual(moving).tangent
        assert tangent is not None
        return tangent


@torch.no_grad()
def against_secants(field: Field, x_BCTHW: Tensor, t_B: Tensor, widths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Compare dF/dt along a field's own trajectory with its secants between t - width / 2 and t + width / 2.

    Returns the cosine between both and the derivative's length as a share of the secant's, [widths, B] each. The
    derivative says where the field goes next only if the cosine is near 1: a rough field's is not, and the discrete
    loss, whose times are a step apart, is to be trusted more there.
    """
    F = field(x_BCTHW, t_B)
    exact = derivative(field, x_BCTHW, t_B, F, torch.ones_like(t_B)).flatten(1)
    cosines, lengths = [], []
    for width in widths:
        before, after = (field(x_BCTHW + h * F, t_B + h) for h in (-width / 2, width / 2))
        secant = ((after - before) / width).flatten(1)
        cosines.append(torch.cosine_similarity(exact, secant))
        lengths.append(exact.norm(dim=1) / secant.norm(dim=1))
    return torch.stack(cosines), torch.stack(lengths)


def consistency_loss(
    student: Field, F_teacher_BCTHW: Tensor, x_BCTHW: Tensor, t_B: Tensor, ratio: float, *, derived: Field | None = None
) -> Losses:
    """Return sCM's loss at x_t: the student's x0 is to be the same all along the teacher's trajectory.

    ratio: r of the tangent's warm-up, 0 to 1. derived: the student as it is differentiated, if another than `student`
    (a compiled one has no forward mode).

        g = -cos sqrt(1 - r^2 sin^2) (F - F_teacher) - (r cos sin x_t + dF),      dF along cos sin (F_teacher, 1)
        loss = ||F - sg(F + g / (||g|| + 0.1))||^2

    r multiplies x_t alone, as in the published code (NVlabs/rcm) since January 2026; before, and in sCM (algorithm 1),
    it multiplied the derivative too. At r = 1 both are one.
    """
    cos, sin = t_B.cos(), t_B.sin()
    both = cos * sin
    F = student(x_BCTHW, t_B)
    with torch.no_grad():
        dF = derivative(derived or student, x_BCTHW, t_B, _over(both) * F_teacher_BCTHW, both)
        near = _over(cos * (1 - (ratio * sin).square()).sqrt()) * (F.detach() - F_teacher_BCTHW)
        g = -near - (ratio * _over(both) * x_BCTHW + dF)
        g = g / (_over(_squares(g).sqrt()) + TANGENT_SCALE)
    return _moved_to(F, g)


def discrete_consistency_loss(
    student: Field, teacher: Field, x0_BCTHW: Tensor, noise_BCTHW: Tensor, u_B: Tensor
) -> Losses:
    """The student's x0 at two times, a fixed distance apart, of one trajectory: the later one is to be the earlier's.

    u in [0, 47/48]; both times are shifted. The teacher makes the step between them (Euler, in TrigFlow).
    """
    later, earlier = trig_times(u_B + 1 / 48), trig_times(u_B)
    x_later = noised(x0_BCTHW, noise_BCTHW, later)
    with torch.no_grad():
        x_earlier = x_later - _over(later - earlier) * teacher(x_later, later)
        target = clean(x_earlier, student(x_earlier, earlier), earlier)
    guess = clean(x_later, student(x_later, later), later)
    return _moved_to(guess, target - guess.detach())


def rollout(student: Field, noises: Sequence[Tensor], times: Sequence[Tensor]) -> Tensor:
    """What the student makes of noise in len(times) steps, with a gradient through the last of them alone.

    noises: [B, C, T, H, W] for each step; times: [B] each, TrigFlow's, falling.
    """
    x = _over(times[0].sin()) * noises[0]
    for k, t_B in enumerate(times):
        with torch.set_grad_enabled(torch.is_grad_enabled() and k == len(times) - 1):
            made = clean(x, student(x, t_B), t_B)
        if k < len(times) - 1:
            x = noised(made, noises[k + 1], times[k + 1])
    return made


def dmd_loss(made_BCTHW: Tensor, fake: Field, teacher: Field, noise_BCTHW: Tensor, t_B: Tensor) -> Losses:
    """Distribution matching: what the student made moves from what the fake score expects to what the teacher does."""
    with torch.no_grad():
        x = noised(made_BCTHW, noise_BCTHW, t_B)
        of_fake, of_teacher = clean(x, fake(x, t_B), t_B), clean(x, teacher(x, t_B), t_B)
        distance = (made_BCTHW - of_teacher).abs().flatten(1).mean(1)
        change = (of_teacher - of_fake) / _over(distance)
    return _moved_to(made_BCTHW, change)


def fake_score_loss(made_BCTHW: Tensor, fake: Field, noise_BCTHW: Tensor, t_B: Tensor) -> Losses:
    """The flow loss on the student's samples: ||x0 - the fake score's||^2 / sin^2, its squared error in F."""
    exact = _over(t_B.cos()) * noise_BCTHW - _over(t_B.sin()) * made_BCTHW
    F = fake(noised(made_BCTHW, noise_BCTHW, t_B), t_B)
    return _moved_to(F, exact - F.detach())


# ---- a run ----


@dataclass(frozen=True)
class Networks:
    """All that takes part: student and fake score are trained, the others are frozen."""

    student: WanTransformer
    fake: WanTransformer
    teacher: WanTransformer
    text: TextEncoder


class _Step:
    """One step's clips, texts and randomness, and the networks as fields on them."""

    def __init__(self, networks: Networks, bank: LatentBank, recipe: RCMRecipe, step: int, forward: dict) -> None:
        rng = step_generator(recipe.seed, step, rank_and_size()[0])
        batch = bank.batch(rng, recipe.batch, drop=0.0)
        self.networks, self.recipe, self.forward = networks, recipe, forward
        self.x0 = batch.latent_BCTHW.float()
        self.device = self.x0.device
        self.generator = torch_generator(rng, self.device)
        with torch.no_grad():
            self.states = networks.text(batch.ids_BS, batch.mask_BS)
            empty = (bank.empty_ids.long(), bank.empty_mask.long())
            self.empty = networks.text(*empty).expand_as(self.states)

    def noise(self) -> Tensor:
        return torch.randn(self.x0.shape, generator=self.generator, device=self.device)

    def uniform(self) -> Tensor:
        return torch.rand(len(self.x0), generator=self.generator, device=self.device)

    def field(self, name: str, *, compiled: bool = True) -> Field:
        """The network of that name with the clips' prompts."""
        network: WanTransformer = getattr(self.networks, name)
        context = network.encode_context(self.states)
        return trig(self._velocity(self.forward[name] if compiled else network, context))

    def guided_teacher(self) -> Field:
        context = self.networks.teacher.encode_context(torch.cat((self.states, self.empty)))
        velocity = self._velocity(self.forward["teacher"], context)

        def guided(x: Tensor, s_B: Tensor) -> Tensor:
            given, free = velocity(torch.cat((x, x)), torch.cat((s_B, s_B))).float().chunk(2)
            return free + self.recipe.guidance * (given - free)

        return torch.no_grad()(trig(guided))

    @staticmethod
    def _velocity(forward: Callable[..., Tensor], context: Context) -> Field:
        return lambda x, s_B: forward(x, 1000 * s_B, context)

    def made(self, student: Field, steps: int) -> Tensor:
        """The student's samples in so many steps, at random times below sigma_max."""
        top = self.recipe.sigma_max / (1 + self.recipe.sigma_max)
        most = top / (SHIFT - (SHIFT - 1) * top)  # before the shift
        drawn = [torch.full((len(self.x0),), math.atan(self.recipe.sigma_max), device=self.device)]
        drawn += [trig_times(most * self.uniform()) for _ in range(steps - 1)]
        times = torch.stack(drawn).sort(dim=0, descending=True).values.unbind(0)
        return rollout(student, [self.noise() for _ in times], times)


def make_loss(networks: Networks, bank: LatentBank, recipe: RCMRecipe) -> Loss:
    """The loss of step s for the network whose turn it is, everything drawn from (seed, step, rank)."""
    names = ("student", "fake", "teacher")
    forward = {name: getattr(networks, name) for name in names}
    if recipe.compile:
        forward = {name: torch.compile(network) for name, network in forward.items()}

    def student_loss(at: _Step, step: int) -> dict[str, Tensor]:
        student, teacher = at.field("student"), at.guided_teacher()
        if recipe.consistency == "continuous":
            drawn = torch.randn(len(at.x0), generator=at.generator, device=at.device)
            t_B = (recipe.sigma_mean + recipe.sigma_std * drawn).exp().atan()
            x = noised(at.x0, at.noise(), t_B)
            ratio = min(1.0, step / recipe.warmup) if recipe.warmup else 1.0
            with torch.no_grad():
                derived = at.field("student", compiled=False)
            consistency = consistency_loss(student, teacher(x, t_B), x, t_B, ratio, derived=derived)
        else:
            consistency = discrete_consistency_loss(student, teacher, at.x0, at.noise(), at.uniform() * 47 / 48)
        values = {"consistency": consistency.loss_B.mean(), "broken": consistency.broken_B.float().mean()}
        terms = {"term.consistency": recipe.consistency_weight * values["consistency"]}
        if step >= recipe.warmup and recipe.dmd_weight:
            made = at.made(at.field("student"), recipe.rollout_steps(step))  # a graph apart from consistency's
            with torch.no_grad():
                fake = at.field("fake")
            dmd = dmd_loss(made, fake, teacher, at.noise(), trig_times(at.uniform()))
            values |= {"dmd": dmd.loss_B.mean(), "broken_dmd": dmd.broken_B.float().mean()}
            terms["term.dmd"] = recipe.dmd_weight * values["dmd"]
        return {"loss": torch.stack(list(terms.values())).sum(), **terms, **values}

    def fake_loss(at: _Step, step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            made = at.made(at.field("student"), recipe.rollout_steps(step))
        found = fake_score_loss(made, at.field("fake"), at.noise(), trig_times(at.uniform()))
        mean = found.loss_B.mean()
        return {"loss": mean, "mse": mean / made[0].numel(), "broken": found.broken_B.float().mean()}

    def loss(step: int) -> dict[str, Tensor]:
        bank.advance(step)
        device = bank.world.device
        # No cache: PyTorch before 2.11 would keep weights that were cast under no_grad, and give them no gradient.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            at = _Step(networks, bank, recipe, step, forward)
            return student_loss(at, step) if recipe.turn(step) == "student" else fake_loss(at, step)

    return loss


@dataclass(frozen=True)
class Start:
    """Weights to begin from, by the networks' own names: what an earlier distillation of the same teacher left."""

    student: Mapping[str, Tensor]
    fake: Mapping[str, Tensor]


def train_rcm(
    networks: Networks,
    bank: LatentBank,
    recipe: RCMRecipe,
    schedule: Schedule,
    run: Path,
    *,
    start: Start | None = None,
    teacher: str = "",
    saved: Callable[[Trainer], None] | None = None,
) -> Trainer:
    """Train until the schedule or its minutes end; resumes what is in `run`.

    Else student and fake score begin from `start`, or as the teacher. teacher: its digest; a run resumes with the same
    teacher, recipe, rate and clip alone. saved: called after each save.
    Raises CheckpointError for a run of other settings, and for a `start` of other networks.
    """
    try:
        networks.student.load_state_dict(dict(start.student) if start else networks.teacher.state_dict())
        networks.fake.load_state_dict(dict(start.fake) if start else networks.teacher.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"the weights to begin from are not of this teacher's size: {error}") from None
    for network in (networks.student, networks.fake):
        network.train().requires_grad_(True)
    for module in (networks.teacher, networks.text):
        module.eval().requires_grad_(False)
    modules = nn.ModuleDict({"student": networks.student, "fake": networks.fake})
    settings = {name: value for name, value in asdict(recipe).items() if name != "compile"}
    settings |= {"lr": schedule.lr, "clip": schedule.clip, "teacher": teacher}
    trainer = Trainer(
        modules,
        schedule,
        run,
        turn=recipe.turn,
        kind=recipe.kind,
        rates={"fake": recipe.fake_rate},
        settings=settings,
        saved=saved,
    )
    trainer.resume()
    trainer.fit(make_loss(networks, bank, recipe), prepare=bank.advance)
    return trainer
