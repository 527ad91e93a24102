"""What the judge's rows are to reach: the teacher a share of what renders do, a student a share of the teacher."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from turbodiffusion.evaluation.judge import ProbeConfig, marks

CEILING = {"subject": 0.90, "colour": 0.90, "motion": 0.85, "scene": 0.95}  # that the probe must reach on renders
TEACHER = 0.96  # of control.none, what the probe reads of renders of the same prompts, that the teacher must reach
# Of the teacher's adherence, and how much less is let pass, that each student must reach. What is not here (topk 0.05,
# sparse attention without its training) stands beside them to be compared.
STUDENTS = {
    "rcm4": (0.95, 0.0),
    "rcm3": (0.90, 0.0),
    "rcm2": (0.90, 0.0),
    "rcm1": (0.80, 0.0),
    "rcm4_sla015": (0.93, 0.0),
    "rcm4_sla015_w8a8": (0.93, 0.0),
    "rcm4_sla010": (0.93, 0.02),
}
FRECHET, DIVERSITY = 1.25, 0.85  # of the teacher's, that students of four steps must reach
SHIPPED, SHIPPED_SECONDS = "rcm4_sla015_w8a8", 13.0  # the variant that ships; from the start of the process to the mp4
CHANCE_SEED = 71_006
OLD = "old_teacher"  # the name of the variant that the new teacher is compared with


def target_of(row: str, known: Mapping[str, float]) -> float | None:
    """Return what a variant's row should reach, a share of the rows `known`; None where it has no target."""
    name, _, measure = row.partition(".")
    factor, _, adherence = measure.partition(".")
    whole = known.get(f"control.none.{factor}" if name == "teacher" else f"teacher.{measure}")
    if whole is None or (name != "teacher" and name not in STUDENTS):
        return None
    if adherence == "adherence":
        part, slack = (TEACHER, 0.0) if name == "teacher" else STUDENTS[name]
        return part * whole - slack
    parts = {"frechet": FRECHET, "diversity": DIVERSITY} if name.startswith("rcm4") else {}
    return parts[measure] * whole if measure in parts else None


def chances(
    answers_NQ: NDArray[np.int64], truth_NQ: NDArray[np.int64], config: ProbeConfig, *, orders: int = 16
) -> dict[str, tuple[float, float]]:
    """Return question -> (the share that is right by chance, and three standard errors above it).

    Chance is what these answers reach with the truths of other clips, a mean over `orders` random orders.
    """
    rng = np.random.default_rng(CHANCE_SEED)
    found = [marks(answers_NQ, truth_NQ[rng.permutation(len(truth_NQ))], config) for _ in range(orders)]
    result = {}
    for question in config.questions:
        p = float(np.mean([marked[question].mean() for marked in found]))
        result[question] = p, p + 3 * math.sqrt(p * (1 - p) / len(found[0][question]))
    return result
