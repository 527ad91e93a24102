"""The table that doctor and the benchmarks read, through Triton's interpreter at small sizes: every case is right."""

import pytest
import torch

from turbodiffusion.ops import cases as table

# Interpreted kernels: too slow for make test-fast.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CASES = [
    *table.norm_cases(CPU, 64, 1),
    *table.quantize_cases(CPU, 64, 96),
    *table.product_cases(CPU, 64, 96),
    *table.product_cases(CPU, 96, 64),
    *table.block_cases(CPU, 64, 96),
    *table.attention_cases(CPU, 1, head_dim=64, topk=0.3),
    *table.vae_cases(CPU, 32),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_kernel_is_within_its_bound(case):
    off, allowed = table.errors(case, 129, 7)
    assert off <= allowed


def test_what_a_kernel_leaves_unwritten_is_an_error():
    def run(impl, x):
        out = torch.empty_like(x) if impl == "triton" else x.clone()
        out[:-1] = x[:-1]
        return out

    make = CASES[0].make
    case = table.Case("copy", "norm", "64", lambda *a: (make(*a)[0][0],), run, 1.0, "TB/s", exact=lambda x: x.float())
    off, allowed = table.errors(case, 65, 1)
    assert off != off and not off <= allowed
    assert not torch.are_deterministic_algorithms_enabled()
