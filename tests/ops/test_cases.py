"""The table that doctor and the benchmarks read, through Triton's interpreter at small sizes: every case is right."""

from dataclasses import fields

import pytest
import torch

from turbodiffusion.config import Kernels
from turbodiffusion.ops import cases as table

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


@pytest.mark.slow  # interpreted kernels
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_kernel_is_within_its_bound(case):
    off, allowed = table.errors(case, 129, 7)
    assert off <= allowed


def test_every_case_has_a_group_and_something_to_be_compared_with():
    assert {case.group for case in CASES} == {field.name for field in fields(Kernels)}
    assert all(case.exact or case.bound for case in CASES)
    assert len({case.title for case in CASES}) == len(CASES)
    assert {case.unit for case in CASES} == {"TB/s", "TFLOP/s", "TOP/s"}


def test_missed_blocks():
    expected = torch.tensor([[[[0, 2], [1, 3]]]], dtype=torch.int32)
    assert table.missed_blocks(expected, expected) == 0
    assert table.missed_blocks(torch.tensor([[[[0, 1], [1, 3]]]], dtype=torch.int32), expected) == 0.25
    assert table.missed_blocks(torch.full_like(expected, 2**31 - 1), expected) == 1


def test_an_error_with_a_nan_is_nan():
    right, wrong = torch.ones(4), torch.tensor([1.0, torch.nan, 1.0, 1.0])
    assert table.error([right, wrong], [right, right]) != table.error([right, right], [right, right]) == 0


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
