"""Formulas against known answers, direct computations and SciPy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from turbodiffusion.errors import UserError
from turbodiffusion.evaluation.metrics import (
    diversity,
    frechet_distance,
    frechet_interval,
    paired_difference,
    proportion,
    psnr,
    ssim,
)
from turbodiffusion.evaluation.result_file import REQUIRED, Row, check, read_results, write_results


def test_psnr_of_a_known_error() -> None:
    """An error of 0.02 in a range of 2 is 1 percent: 40 dB."""
    true = torch.zeros(2, 3, 5, 16, 16)
    torch.testing.assert_close(psnr(true + 0.02, true), torch.full((2,), 40.0), rtol=1e-5, atol=0)


def test_ssim_is_the_papers_formula() -> None:
    """Against equation 13 computed window by window in float64."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (16, 14))
    y = np.clip(x * 0.7 + 0.2 * rng.standard_normal(x.shape), -1, 1)
    place = np.arange(11) - 5
    bell = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    bell /= bell.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for row in range(16 - 10):
        for column in range(14 - 10):
            a, b = (picture[row : row + 11, column : column + 11] for picture in (x, y))
            mean_a, mean_b = (bell * a).sum(), (bell * b).sum()
            var_a, var_b = (bell * (a - mean_a) ** 2).sum(), (bell * (b - mean_b) ** 2).sum()
            cov = (bell * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    made, true = (torch.from_numpy(p).float().expand(2, 3, 4, -1, -1) for p in (x, y))
    # float32 moments: the variances are differences of numbers near 1
    torch.testing.assert_close(ssim(made, true), torch.full((2,), float(np.mean(values))), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ssim(true, true), torch.ones(2), rtol=0, atol=1e-6)


def test_ssim_is_of_each_clip() -> None:
    true = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    made = torch.stack([true[0], torch.rand(3, 2, 16, 16) * 2 - 1])
    good, bad = ssim(made, true)
    assert good > 0.999 and bad < 0.3


def test_frechet_of_given_moments() -> None:
    """Points +-sqrt((N - 1) / 2) s e_k have exactly the covariance diag(s^2): |mean|^2 + sum (s - r)^2 is right."""

    def points(scales: tuple[float, ...], mean: float) -> torch.Tensor:
        axes = torch.diag(torch.tensor(scales, dtype=torch.float64))
        both = torch.cat([axes, -axes])
        return both * ((len(both) - 1) / 2) ** 0.5 + mean

    got = frechet_distance(points((1.0, 2.0, 3.0), 0.0), points((2.0, 2.0, 1.0), 0.5))
    assert got == pytest.approx(1 + 0 + 4 + 3 * 0.25, abs=1e-9)  # float64 throughout


def test_frechet_agrees_with_a_matrix_square_root() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(300, 8, generator=generator, dtype=torch.float64) @ torch.randn(
        8, 8, generator=generator, dtype=torch.float64
    )
    b = torch.randn(200, 8, generator=generator, dtype=torch.float64) * 1.5 + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)  # two float64 eigenvalue routines
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_frechet_of_fewer_samples_than_features() -> None:
    """Singular covariances have eigenvalues that rounding makes negative."""
    a, b = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    assert np.isfinite(frechet_distance(a, b)) and frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_interval_covers_the_truth() -> None:
    """N(0, 1) against N(1, 1) in one direction of four: distance 1. Of 20 intervals of 95 percent one or two miss."""
    generator = torch.Generator().manual_seed(3)
    hits = 0
    for _ in range(20):
        a, b = torch.randn(2, 400, 4, generator=generator)
        low, high = frechet_interval(a, b + torch.tensor([1.0, 0, 0, 0]), resamples=60)
        assert low < high
        hits += low <= 1 <= high
    assert hits >= 16


def test_shares_and_paired_differences() -> None:
    right = np.array([True] * 90 + [False] * 10)
    assert proportion(right) == pytest.approx((0.9, 0.03))
    with pytest.raises(ValueError, match="no answers"):
        proportion(np.array([], bool))
    worse = right.copy()
    worse[:10] = False
    difference, error = paired_difference(right, worse)
    assert difference == pytest.approx(0.1) and error == pytest.approx(np.sqrt(0.1 * 0.9 / 99))
    assert paired_difference(right, right) == (0.0, 0.0)


def test_diversity_of_known_points() -> None:
    """Three points of an equilateral triangle of side 2, and three equal ones."""
    triangle = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]])
    features = torch.stack([triangle, torch.ones(3, 2)])
    assert diversity(features) == pytest.approx((1.0, 1.0, 2))
    features[0, 2] = 100
    counts = np.array([[True, True, False], [True, True, True]])
    assert diversity(features, counts) == pytest.approx((1.0, 1.0, 2))  # without the one that is far away
    value, error, prompts = diversity(features, np.array([[True, False, False], [True, True, True]]))
    assert np.isnan(value) and np.isnan(error) and prompts == 1
    with pytest.raises(ValueError, match="two prompts"):
        diversity(triangle[None])


def _row(name: str, value: float, better: str = "higher", target: float | None = None) -> Row:
    return Row(name, value, "share", better, target, "counted")


def test_results_are_read_as_written_and_checked(tmp_path: Path) -> None:
    rows = [_row("a", 0.5, target=0.6), _row("b", 2, "lower", 3), _row("c", float("nan")), _row("d", 1)]
    write_results(tmp_path / "some" / "x.json", rows[:2] + rows[3:], "turbodiffusion evaluate")
    assert read_results(tmp_path / "some" / "x.json") == rows[:2] + rows[3:]
    assert [row.name for row in check(tmp_path / "some" / "x.json")] == ["a"]
    report = json.loads((tmp_path / "some" / "x.json").read_text())
    assert list(report) == ["device", "versions", "commit", "date", "command", "rows"]
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert [row.misses for row in rows] == [True, False, True, False]


def test_a_missing_row_is_a_miss(tmp_path: Path) -> None:
    first, *others = REQUIRED["quality.json"].values()
    path = tmp_path / "quality.json"
    write_results(path, [replace(row, value=row.target or 1.0) for row in others], "x")
    assert check(path) == [first] and first.value is None
    assert check(path, [first, others[0]]) == [first] and check(path, []) == []


def test_kept_rows_say_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_results(path, [_row("a", 1), _row("b", 2)], "first")
    for _ in range(2):
        write_results(path, [_row("b", 3), _row("c", 4)], "second", keep=True)
    a, b, c = read_results(path)
    assert (a.value, b.value, c.value) == (1, 3, 4)
    assert a.method.count("; measured on ") == 1 and b.method == "counted"


def test_what_is_no_result_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result file"):
        check(tmp_path / "none.json")
    (tmp_path / "list.json").write_text('{"rows": [{"name": "a"}]}')
    with pytest.raises(UserError, match="not a result file"):
        check(tmp_path / "list.json")
    with pytest.raises(ValueError, match="named twice: a"):
        write_results(tmp_path / "x.json", [_row("a", 1), _row("a", 2)], "x")
