import pytest
import torch

from turbodiffusion.ops.contract import check_dtype, check_layout, check_no_grad, select_impl


def test_choose_names_the_known_implementations():
    assert select_impl("op", "b", {"a": int, "b": str}) is str
    with pytest.raises(ValueError, match="op: unknown impl 'triton', expected one of 'a', 'b'"):
        select_impl("op", "triton", {"a": int, "b": str})


def test_layout_returns_the_size_of_each_letter():
    assert check_layout("op", q_BLD=torch.zeros(2, 3, 5), w_DD=torch.zeros(5, 5)) == {"B": 2, "L": 3, "D": 5}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q_BLD": torch.zeros(2, 3)}, r"op: q_BLD must be \[B, L, D\], got \[2, 3\]"),
        ({"q_BLD": torch.zeros(2, 3, 5), "b_D": torch.zeros(4)}, r"op: b_D must be \[D=5\], got \[4\]"),
        ({"w_DD": torch.zeros(4, 5)}, r"op: w_DD must be \[D, D\], got \[4, 5\]"),
    ],
)
def test_layout_tells_expected_and_given(tensors, message):
    with pytest.raises(ValueError, match=message):
        check_layout("op", **tensors)


def test_dtype_tells_expected_and_given():
    check_dtype("op", (torch.float32,), q=torch.zeros(1), k=torch.zeros(1))
    with pytest.raises(ValueError, match=r"op: q must be one of torch.int8, got torch.float32"):
        check_dtype("op", (torch.int8,), q=torch.zeros(1))
    with pytest.raises(ValueError, match=r"op: k must be torch.float32 as q is, got torch.float64"):
        check_dtype("op", q=torch.zeros(1), k=torch.zeros(1).double())


def test_a_gradient_raises_only_where_one_would_be_lost():
    x = torch.zeros(1, requires_grad=True)
    check_no_grad("op", x=x.detach())
    with torch.no_grad():
        check_no_grad("op", x=x)
    with pytest.raises(ValueError, match=r"op: has no gradient, but x requires one; call it under torch.no_grad\(\)"):
        check_no_grad("op", x=x)
