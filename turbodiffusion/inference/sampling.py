"""Samplers as pure functions of (predict_velocity, shape, times, seed): rCM's few steps and the teacher's flow sampler.

Rectified flow: x_t = (1 - t) x_0 + t n with unit Gaussian n, velocity v = n - x_0, so x_0 = x_t - t v.
Sources: rCM, arXiv 2510.08431 (TrigFlow schedule, SDE and ODE steps); UniPC, arXiv 2302.04867 (order 2, B(h) = expm1,
data prediction; `solver_order=2, use_flow_sigmas=True` in diffusers, and the sampler that Wan was published with).
Schedule and state are float64: at t near 1 a float32 keeps few digits of 1 - t. Noise is drawn in float32.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.models.cuda_graphs import CudaGraphCache
from turbodiffusion.models.wan import Context, WanTransformer

GRAPH_WARMUP_CALLS = 4  # forwards before a graph is made of one: a distilled video's, which may be all of a process
UNIPC_MAX_TIME = 1 - 1e-6  # log((1 - t) / t) is infinite at t = 1

PredictVelocity = Callable[[Tensor, float], Tensor]
"""(x float64, flow time t in (0, 1]) -> velocity of x's shape; guidance and the network's scale of time are inside."""


@dataclass(frozen=True)
class State:
    """What a sampler needs to go on: `step` steps are done, `x` is the state after them.

    `history` belongs to UniPC: the corrected state and data prediction of the last step, and the prediction before it.
    """

    step: int
    x: Tensor
    history: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> "State":
        """Return this state with its tensors on a device."""
        return State(self.step, self.x.to(device), tuple(tensor.to(device) for tensor in self.history))


OnStep = Callable[[State], None]


def noise(shape: Sequence[int], seed: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """Unit Gaussian float32 noise that depends on (seed, step) alone: not on call order, device or number of GPUs.

    Drawn on the CPU and moved, because generators of different devices give different numbers.
    """
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(device)


def guided_velocity(
    experts: Sequence[WanTransformer],
    prompt_embeds: Sequence[Tensor],
    *,
    guidance: float | None = None,
    guidance_low: float | None = None,
    boundary: float | None = None,
    condition: Tensor | None = None,
    graphs: CudaGraphCache | None = None,
) -> PredictVelocity:
    """Return the function from (x, t) to the velocity, by the expert for its time, under classifier-free guidance.

    prompt_embeds: [B, S, E] of the prompts and, for guidance, of the negative prompts: v_uncond + guidance (v_cond -
    v_uncond). guidance_low: the low-noise expert's; None: that of `guidance`; at 1 an expert takes a single forward.
    boundary: flow time below which the second expert computes. condition: [B, 4 + z_dim, T, H, W] beside x,
    from an image. graphs: replay the forwards as CUDA graphs.
    """
    contexts: dict[int, list[Context]] = {}
    scales = (guidance, guidance if guidance_low is None else guidance_low)

    def predict(x_BCTHW: Tensor, t: float) -> Tensor:
        k = 1 if boundary is not None and t < boundary else 0
        expert = experts[k]
        if k not in contexts:
            contexts.clear()  # the high-noise expert's are not needed again
            encode, given = expert.encode_context, prompt_embeds[:1] if scales[k] == 1 else prompt_embeds
            contexts[k] = [graphs(("context", k), encode, e) if graphs is not None else encode(e) for e in given]
        x_BCTHW = x_BCTHW.float()
        if condition is not None:
            x_BCTHW = torch.cat((x_BCTHW, condition), dim=1)
        t_B = torch.full((len(x_BCTHW),), 1000 * t, dtype=torch.float32, device=x_BCTHW.device)
        v_cond, *v_uncond = (
            graphs(("velocity", k), expert, x_BCTHW, t_B, context, warmup_calls=GRAPH_WARMUP_CALLS)
            if graphs is not None
            else expert(x_BCTHW, t_B, context)
            for context in contexts[k]
        )
        if not v_uncond:
            return v_cond
        scale = scales[k]
        assert scale is not None
        return v_uncond[0] + scale * (v_cond - v_uncond[0])

    return predict


def sample_rcm(
    predict_velocity: PredictVelocity,
    shape: Sequence[int],
    times: Sequence[float],
    seed: int,
    *,
    ode: bool = False,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    start: State | None = None,
) -> Tensor:
    """The rCM loop; float64 latent of `shape`. `start` resumes from a state that `on_step` gave.

    SDE (default): x = (1 - t_next) x_0 + t_next fresh noise. ODE: x = x - (t - t_next) v.
    """
    state = start or State(0, noise(shape, seed, 0, device).double() * times[0])
    for i in range(state.step, len(times) - 1):
        t, t_next = times[i], times[i + 1]
        velocity = predict_velocity(state.x, t).double()
        if ode or t_next == 0:
            x = state.x - (t - t_next) * velocity
        else:
            x0 = state.x - t * velocity
            x = (1 - t_next) * x0 + t_next * noise(shape, seed, i + 1, device).double()
        state = State(i + 1, x)
        if on_step:
            on_step(state)
    return state.x


def sample_flow(
    predict_velocity: PredictVelocity,
    shape: Sequence[int],
    times: Sequence[float],
    seed: int,
    *,
    solver: str = "unipc",
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    start: State | None = None,
) -> Tensor:
    """The teacher's loop over the flow ODE; float64 latent of `shape`. solver: "unipc" or "euler"; `start` resumes."""
    if solver not in ("unipc", "euler"):
        raise ValueError(f'solver {solver!r}: "unipc" or "euler"')
    state = start or State(0, noise(shape, seed, 0, device).double())
    for i in range(state.step, len(times) - 1):
        velocity = predict_velocity(state.x, times[i]).double()
        if solver == "euler":
            state = State(i + 1, state.x - (times[i] - times[i + 1]) * velocity)
        else:
            state = _unipc_step(state, velocity, times)
        if on_step:
            on_step(state)
    return state.x


def _log_snr(t: float) -> float:
    """Half the log signal-to-noise ratio, lambda = log((1 - t) / t)."""
    t = min(t, UNIPC_MAX_TIME)
    return math.log1p(-t) - math.log(t)


def _unipc_step(state: State, velocity: Tensor, times: Sequence[float]) -> State:
    """Correct the arrival at times[i] with the velocity found there (UniC), then predict times[i + 1] (UniP)."""
    i, x, num_steps = state.step, state.x, len(times) - 1
    x0 = x - min(times[i], UNIPC_MAX_TIME) * velocity
    previous = state.history[1:]  # data predictions at times[i - 1] and times[i - 2]
    if i > 0:
        x = _correct(state.history[0], x0, previous, times, i, order=_unipc_order(i - 1, num_steps))
    return State(
        i + 1,
        _predict(x, x0, previous, times, i, order=_unipc_order(i, num_steps)),
        (x, x0, *previous[:1]),
    )


def _unipc_order(i: int, num_steps: int) -> int:
    """First order at the first step, where there is no history, and at the last, for stability; else second."""
    return min(2, i + 1, num_steps - i)


def _first_order(t: float, t_next: float) -> tuple[float, float]:
    """(a, b) of x_next = a x + b x_0, exact for a constant data prediction; b = -(1 - t_next) expm1(-h)."""
    t = min(t, UNIPC_MAX_TIME)
    return t_next / t, (1 - t_next) - (1 - t) * t_next / t


def _predict(x: Tensor, x0: Tensor, previous: tuple[Tensor, ...], times: Sequence[float], i: int, order: int) -> Tensor:
    """UniP from times[i] to times[i + 1]; the second order extrapolates along the last two data predictions."""
    a, b = _first_order(times[i], times[i + 1])
    if order == 1:
        return a * x + b * x0
    lam = _log_snr(times[i])
    ratio = (_log_snr(times[i - 1]) - lam) / (_log_snr(times[i + 1]) - lam)
    return a * x + b * (x0 + 0.5 * (previous[0] - x0) / ratio)


def _correct(
    x: Tensor, arrived: Tensor, previous: tuple[Tensor, ...], times: Sequence[float], i: int, order: int
) -> Tensor:
    """UniC: repeat the step from times[i - 1] (state x) to times[i] with the data prediction `arrived` at its end."""
    a, b = _first_order(times[i - 1], times[i])
    departed = previous[0]
    if order == 1:
        return a * x + b * (departed + 0.5 * (arrived - departed))
    lam = _log_snr(times[i - 1])
    h = _log_snr(times[i]) - lam
    ratio = (_log_snr(times[i - 2]) - lam) / h
    # The weights solve [[1, 1], [ratio, 1]] w = g, the conditions of order 2 (UniPC, equation 7), with
    # g_k = k! h phi_{k+1}(-h) / phi_1(-h).
    phi1 = math.expm1(-h)
    second = phi1 / -h - 1
    third = second / -h - 0.5
    g1, g2 = second / phi1, 2 * third / phi1
    weight_old = (g1 - g2) / (1 - ratio)
    bend = weight_old * (previous[1] - departed) / ratio + (g1 - weight_old) * (arrived - departed)
    return a * x + b * (departed + bend)
