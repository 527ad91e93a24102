"""Samplers against cases with a known answer: Gaussian data, whose velocity is a formula, and diffusers' UniPC."""

import itertools
import math

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from turbodiffusion.inference.sampling import UNIPC_MAX_TIME, State, noise, sample_flow, sample_rcm
from turbodiffusion.schedules import flow_times, rcm_times

SHAPE = (1, 4, 3, 6, 8)
MEAN, STD = 0.7, 0.4

# tan(angle) / (1 + tan(angle)) for angles 1.5, 1.4, 1.0, computed by hand with 15 digits
T_15, T_14, T_10 = 0.933781061416858, 0.852895394823775, 0.608979049230431
RCM_SCHEDULES = {
    (80.0, 1): [80 / 81, 0.0],
    (80.0, 2): [80 / 81, T_15, 0.0],
    (80.0, 3): [80 / 81, T_15, T_14, 0.0],
    (80.0, 4): [80 / 81, T_15, T_14, T_10, 0.0],
    (200.0, 1): [200 / 201, 0.0],
    (200.0, 2): [200 / 201, T_15, 0.0],
    (200.0, 3): [200 / 201, T_15, T_14, 0.0],
    (200.0, 4): [200 / 201, T_15, T_14, T_10, 0.0],
}


def gaussian_velocity(x, t, mean=MEAN, std=STD):
    """Exact velocity when the data are N(mean, std^2): (x - E[x_0 | x]) / t."""
    gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
    clean = mean + gain * (x - (1 - t) * mean)
    return (x - clean) / t


def point_velocity(x, t):
    return gaussian_velocity(x, t, std=0.0)


@pytest.mark.parametrize(("sigma_max", "num_steps"), RCM_SCHEDULES)
def test_rcm_times_are_the_published_numbers(sigma_max, num_steps):
    assert rcm_times(num_steps, sigma_max) == pytest.approx(RCM_SCHEDULES[sigma_max, num_steps], rel=1e-14)


@pytest.mark.parametrize("num_steps", [0, 5])
def test_rcm_times_refuse_other_step_counts(num_steps):
    with pytest.raises(ValueError, match="takes 1 to 4"):
        rcm_times(num_steps, 80.0)


def test_rcm_times_refuse_a_sigma_max_below_the_second_time():
    assert len(rcm_times(1, 5.0)) == 2
    with pytest.raises(ValueError, match=r"sigma_max 5 is not above the schedule's next level, 14\.10"):
        rcm_times(2, 5.0)
    with pytest.raises(ValueError, match="sigma_max -1 is not above"):
        rcm_times(1, -1.0)


def test_flow_times_written_out():
    # even s of 4 steps: 1, 0.75025, 0.5005, 0.25075
    assert flow_times(4, 1.0) == pytest.approx([1.0, 0.75025, 0.5005, 0.25075, 0.0], rel=1e-14)
    shifted = [1.0, 3.75125 / 4.001, 2.5025 / 3.002, 1.25375 / 2.003, 0.0]
    assert flow_times(4, 5.0) == pytest.approx(shifted, rel=1e-14)
    assert flow_times(1, 8.0) == [1.0, 0.0]


def test_noise_depends_on_seed_and_step_alone():
    first = noise(SHAPE, 42, 0)
    torch.manual_seed(7)
    noise(SHAPE, 1, 1)
    assert torch.equal(noise(SHAPE, 42, 0), first)
    assert first.dtype == torch.float32
    others = [noise(SHAPE, 42, 1), noise(SHAPE, 43, 0), noise(SHAPE, 421, 0), noise(SHAPE, 4, 20)]
    for other in others:
        assert not torch.equal(other, first)
    big = torch.cat([noise((100_000,), 42, step) for step in range(4)])
    # standard errors of 400,000 draws: 0.0016 for the mean, 0.0011 for the deviation; six of them allowed
    assert abs(big.mean().item()) < 0.0095
    assert abs(big.std().item() - 1) < 0.007


def test_noise_is_the_same_in_every_release():
    # The seed in a video's metadata must go on meaning the same video.
    expected = torch.tensor([-1.1347, -0.8615, -1.0578, 1.3793])
    # PyTorch draws 16 numbers at a time by a vectorised Box-Muller, whose last bits depend on the CPU
    assert torch.allclose(noise((20,), 42, 0)[:4], expected, rtol=0, atol=1e-4)


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    noise(SHAPE, 42, 0)
    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize("ode", [False, True])
@pytest.mark.parametrize(("sigma_max", "num_steps"), RCM_SCHEDULES)
def test_rcm_point_data_come_back_exactly(sigma_max, num_steps, ode):
    x = sample_rcm(point_velocity, SHAPE, rcm_times(num_steps, sigma_max), 1, ode=ode)
    assert x.dtype == torch.float64
    assert torch.allclose(x, torch.full_like(x, MEAN), rtol=0, atol=1e-13)


@pytest.mark.parametrize("ode", [False, True])
@pytest.mark.parametrize(("sigma_max", "num_steps"), RCM_SCHEDULES)
def test_rcm_gaussian_data_follow_the_closed_form(sigma_max, num_steps, ode):
    """For Gaussian data each step is affine: x -> c_i x + d_i (+ e_i n_i). Compose the maps as plain numbers."""
    times = RCM_SCHEDULES[sigma_max, num_steps]
    offset, weights = 0.0, [times[0]]
    for t, s in itertools.pairwise(times):
        gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
        shift = MEAN * (1 - gain * (1 - t))  # E[x_0 | x] = gain x + shift
        if ode:
            slope = s / t + (1 - s / t) * gain
            offset, weights = slope * offset + (1 - s / t) * shift, [w * slope for w in weights]
        else:
            offset = (1 - s) * (gain * offset + shift)
            weights = [(1 - s) * gain * w for w in weights] + [s]
    expected = offset + sum(w * noise(SHAPE, 5, i).double() for i, w in enumerate(weights))
    x = sample_rcm(gaussian_velocity, SHAPE, rcm_times(num_steps, sigma_max), 5, ode=ode)
    assert torch.allclose(x, expected, rtol=0, atol=1e-12)


def test_rcm_sde_draws_fresh_noise_and_ode_does_not():
    times = rcm_times(4, 80.0)
    seen = []

    def zero(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    sample_rcm(zero, SHAPE, times, 9, ode=True)
    assert all(torch.equal(x, seen[0]) for x in seen)
    seen.clear()
    sample_rcm(zero, SHAPE, times, 9)
    assert torch.equal(seen[1], (1 - times[1]) * seen[0] + times[1] * noise(SHAPE, 9, 1).double())


def exact_flow(seed):
    """Where the probability-flow ODE of N(MEAN, STD^2) carries the noise of a seed."""
    return MEAN + STD * noise(SHAPE, seed, 0).double()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("unipc", 2)])
def test_flow_samplers_converge_at_their_order(solver, order):
    def error(num_steps):
        x = sample_flow(gaussian_velocity, SHAPE, flow_times(num_steps, 1.0), 2, solver=solver)
        return (x - exact_flow(2)).norm() / exact_flow(2).norm()

    coarse, fine = error(40), error(160)
    # two doublings; a slope within 0.1 of the theory's is past what the other order reaches
    assert math.log2(coarse / fine) / 2 > order - 0.1
    assert fine < 0.006


def diffusers_scheduler(num_steps, shift):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def curved_velocity(x, t):
    return torch.sin(3 * x) + x * math.cos(5 * t) + t


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_unipc_is_diffusers_step_by_step(num_steps, shift):
    times = flow_times(num_steps, shift)
    scheduler = diffusers_scheduler(num_steps, shift)
    assert torch.allclose(scheduler.sigmas, torch.tensor(times), rtol=0, atol=2e-6)
    # diffusers keeps its sigmas in float32, where 1 - (1 - 1e-6) is off by 5%: give it the same numbers in float64
    scheduler.sigmas = torch.tensor([UNIPC_MAX_TIME, *times[1:]], dtype=torch.float64)
    states: list[State] = []
    sample_flow(curved_velocity, SHAPE, times, 3, on_step=states.append)
    x = noise(SHAPE, 3, 0).double()
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(curved_velocity(x, times[i]), timestep, x).prev_sample
        # float64 rounding grows with the curvature of the velocity: 1e-9 over 50 steps
        assert torch.allclose(states[i].x, x, rtol=0, atol=1e-9)


def test_unipc_is_near_diffusers_as_it_ships():
    """Unpatched float32: its schedule's rounding at t = 1 - 1e-6 is worth 1e-3 on a smooth velocity."""
    scheduler = diffusers_scheduler(20, 5.0)
    x = noise(SHAPE, 3, 0)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(gaussian_velocity(x, sigma.item()), timestep, x).prev_sample
    ours = sample_flow(gaussian_velocity, SHAPE, flow_times(20, 5.0), 3)
    assert (ours - x).norm() / x.norm() < 1e-3


def run(kind, times, **options):
    if kind == "sde":
        return sample_rcm(curved_velocity, SHAPE, times, 4, **options)
    if kind == "ode":
        return sample_rcm(curved_velocity, SHAPE, times, 4, ode=True, **options)
    return sample_flow(curved_velocity, SHAPE, times, 4, solver=kind, **options)


@pytest.mark.parametrize("kind", ["sde", "ode", "euler", "unipc"])
def test_every_sampler_repeats_and_resumes_bit_for_bit(kind):
    times = rcm_times(4, 80.0) if kind in ("sde", "ode") else flow_times(6, 5.0)
    states: list[State] = []
    whole = run(kind, times, on_step=states.append)
    assert torch.equal(run(kind, times), whole)
    assert [s.step for s in states] == list(range(1, len(times)))
    assert torch.equal(states[-1].x, whole)
    for state in states:
        torch.manual_seed(state.step)  # a resumed run happens in a process with another history
        assert torch.equal(run(kind, times, start=state), whole)


def test_velocity_in_bfloat16_is_taken_in_float64():
    x = sample_rcm(lambda x, t: point_velocity(x, t).bfloat16(), SHAPE, rcm_times(2, 80.0), 1)
    assert x.dtype == torch.float64
    assert torch.allclose(x, torch.full_like(x, MEAN), atol=2e-2)  # bfloat16 keeps 8 bits of a velocity of order 3


def test_unknown_solver_is_named():
    with pytest.raises(ValueError, match="heun"):
        sample_flow(point_velocity, SHAPE, flow_times(2, 5.0), 1, solver="heun")
