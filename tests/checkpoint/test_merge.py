import pytest
import torch

from turbodiffusion.checkpoint.merge import merge_finetunes
from turbodiffusion.errors import CheckpointError

BASE = {"a.weight": torch.tensor([1.0, 2.0]), "b.weight": torch.tensor([[3.0]])}


def moved(by: float, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: x + by for name, x in BASE.items()} | more


def test_changes_are_added_and_what_is_new_is_taken():
    merged = merge_finetunes(moved(0.5), moved(0.25, proj_l=torch.tensor([7.0])), BASE)
    assert merged["a.weight"].tolist() == [1.75, 2.75] and merged["b.weight"].tolist() == [[3.75]]
    assert merged["proj_l"].tolist() == [7.0] and merged.keys() == {*BASE, "proj_l"}


def test_sums_are_float32_in_the_students_dtype():
    """In bfloat16 a change of 2^-9 beside 1 would be lost."""
    base = {"a": torch.ones(1, dtype=torch.bfloat16)}
    tuned = {"a": torch.full((1,), 1 + 2**-9)}
    assert merge_finetunes({"a": torch.ones(1)}, tuned, base)["a"].item() == 1 + 2**-9
    assert merge_finetunes(base, tuned, base)["a"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("distilled", "tuned", "words"),
    [
        ({"a.weight": BASE["a.weight"]}, moved(0), "the distilled network has no b.weight"),
        (moved(0), {"b.weight": BASE["b.weight"]}, "the fine-tuned network has no a.weight"),
        (moved(0, proj_l=torch.ones(1)), moved(0), "only the distilled network has proj_l"),
        (moved(0) | {"a.weight": torch.ones(3)}, moved(0), r"a.weight has shapes \(2,\), \(3,\)"),
    ],
)
def test_what_would_be_dropped_is_named(distilled, tuned, words):
    with pytest.raises(CheckpointError, match=words):
        merge_finetunes(distilled, tuned, BASE)
