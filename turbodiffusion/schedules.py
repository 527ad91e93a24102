"""The flow times at which a model is evaluated: rCM's few and the teacher's many, as plain numbers.

Sources: rCM, arXiv 2510.08431 (TrigFlow schedule); the shifted times are those that Wan was published with.
"""

import math

RCM_MID_ANGLES = (1.5, 1.4, 1.0)  # TrigFlow times after the first step, as the published 4-step students were trained
FLOW_MIN_TIME = 1e-3  # unshifted times run from 1 towards 1/1000: the teacher was trained on a thousand of them


def rcm_times(num_steps: int, sigma_max: float) -> list[float]:
    """The num_steps + 1 flow times of a distilled model, sigma_max / (1 + sigma_max) down to 0.

    Raises ValueError outside 1 to 4 steps, and for a sigma_max below the schedule's second time.
    """
    if not 1 <= num_steps <= len(RCM_MID_ANGLES) + 1:
        raise ValueError(f"num_steps {num_steps}: a distilled model takes 1 to {len(RCM_MID_ANGLES) + 1}")
    angles = [math.atan(sigma_max), *RCM_MID_ANGLES[: num_steps - 1], 0.0]
    if angles[0] <= angles[1]:
        raise ValueError(f"sigma_max {sigma_max:g} is not above the schedule's next level, {math.tan(angles[1]):.2f}")
    return [math.sin(a) / (math.cos(a) + math.sin(a)) for a in angles]


def flow_times(num_steps: int, shift: float) -> list[float]:
    """The teacher's num_steps + 1 flow times: evenly spaced s, shifted to shift s / (1 + (shift - 1) s), then 0."""
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"num_steps {num_steps} and shift {shift:g} must be positive")
    even = [1.0 + (FLOW_MIN_TIME - 1.0) * i / num_steps for i in range(num_steps)]
    return [shift * s / (1.0 + (shift - 1.0) * s) for s in even] + [0.0]
