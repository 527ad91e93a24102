import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.rope import apply_rope, rope_angles, rope_cos_sin, video_cos_sin

GRID = (2, 3, 4)


def test_axes_share_the_head_as_44_42_42():
    """Along one axis only that axis' share of the pairs is rotated; the first pair of each by one radian a step."""
    angles = rope_angles(GRID, 128).unflatten(0, GRID)
    assert angles.shape == (*GRID, 64)
    one_step = {"t": angles[1, 0, 0], "h": angles[0, 1, 0], "w": angles[0, 0, 1]}
    for axis, (start, stop) in {"t": (0, 22), "h": (22, 43), "w": (43, 64)}.items():
        rotated = one_step[axis].nonzero().flatten().tolist()
        assert rotated == list(range(start, stop))
        assert one_step[axis][start] == 1
    # theta^(-2i / d) for the last pair of time, i = 21 of d = 44.
    torch.testing.assert_close(one_step["t"][21].item(), 10000 ** (-42 / 44))


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(2, 24, 3, 64, dtype=torch.float64)
    angles = rope_angles(GRID, 64)
    factors = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * factors).flatten(-2)
    torch.testing.assert_close(apply_rope(x, rope_cos_sin(angles, torch.float64)), expected)


def test_scores_depend_on_the_distance_alone():
    """The inner product of two rotated vectors is the same wherever the pair of tokens lies."""
    q, k = torch.randn(2, 64, dtype=torch.float64)
    cos_sin = rope_cos_sin(rope_angles((5, 6, 7), 64), torch.float64)
    rotated_q, rotated_k = (apply_rope(x.expand(1, 210, 1, 64), cos_sin)[0, :, 0].reshape(5, 6, 7, 64) for x in (q, k))
    near = rotated_q[0, 0, 0] @ rotated_k[2, 1, 3]
    far = rotated_q[2, 4, 3] @ rotated_k[4, 5, 6]
    torch.testing.assert_close(near, far)


def test_rotation_is_float32_whatever_the_dtype():
    x = torch.randn(1, 24, 2, 64)
    cos_sin = rope_cos_sin(rope_angles(GRID, 64))
    out = apply_rope(strided(x.bfloat16()), cos_sin)
    assert out.dtype == torch.bfloat16
    # One rounding at the end, of at most half of the last of bfloat16's 8 bits.
    assert relative_l2(out, apply_rope(x.bfloat16().double(), cos_sin)) < 2**-9


def test_angles_keep_their_precision_far_from_the_origin():
    """At position 75599 float32 angles would be wrong by 4e-3; float64 ones are exact to float32's last bits."""
    angles = rope_angles((75600, 1, 1), 64)
    assert angles.dtype == torch.float64
    position, pair = 75599, 1
    assert angles[position, pair].item() == pytest.approx(position * 10000 ** (-2 * pair / 24), rel=1e-15)


def test_invalid_arguments_raise():
    x = torch.randn(1, 24, 2, 64)
    with pytest.raises(ValueError, match="head_dim must be even and at least 6, got 7"):
        rope_angles(GRID, 7)
    with pytest.raises(ValueError, match=r"cos_sin must be \[2, L=24, D/2=32\], got \[2, 6, 32\]"):
        apply_rope(x, rope_cos_sin(rope_angles((1, 2, 3), 64)))
    with pytest.raises(ValueError, match=r"cos_sin must be one of torch.float32, torch.float64, got torch.bfloat16"):
        apply_rope(x, rope_cos_sin(rope_angles(GRID, 64), torch.bfloat16))
    with pytest.raises(ValueError, match="unknown impl 'fused'"):
        apply_rope(x, rope_cos_sin(rope_angles(GRID, 64)), impl="fused")


def test_the_table_of_a_video_is_kept_and_may_be_trained_with():
    expected = rope_cos_sin(rope_angles(GRID, 64))
    with torch.inference_mode():
        first = video_cos_sin(GRID, 64, torch.device("cpu"))
    assert torch.equal(first, expected) and not first.is_inference()
    assert video_cos_sin(GRID, 64, torch.device("cpu")) is first


def test_the_operator_of_torch_compile_gives_the_same_table():
    operator = torch.ops.turbodiffusion.video_cos_sin.default
    assert torch.equal(operator(*GRID, 64, torch.device("cpu")), rope_cos_sin(rope_angles(GRID, 64)))
    torch.library.opcheck(operator, (*GRID, 64, torch.device("cpu")))
