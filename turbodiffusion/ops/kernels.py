"""Which implementation each group of ops takes; `turbodiffusion/doctor.py` chooses it for a machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernels:
    """Implementation of each group of ops: "reference" | "triton"."""

    attention: str = "reference"
    linear: str = "reference"
    norm: str = "reference"
    vae: str = "reference"


REFERENCE = Kernels()
TRITON = Kernels("triton", "triton", "triton", "triton")
