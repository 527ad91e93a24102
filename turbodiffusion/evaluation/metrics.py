"""Measures of quality: of pixels (PSNR, SSIM), of features (Frechet distance, diversity) and of answers (shares).

Sources: SSIM, Wang et al. 2004 (IEEE Transactions on Image Processing 13, 600), equation 13 with its Gaussian window of
11 pixels; Frechet distance of Gaussians, Dowson and Landau 1982, as Heusel et al. (arXiv 1706.08500) use it on a
network's features. Every number that is an average comes with its standard error.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

PEAK = 2.0  # videos are in [-1, 1]
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(made_BCFHW: Tensor, true_BCFHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, [B]; videos in [-1, 1], so the peak-to-peak range is 2."""
    mse_B = ((made_BCFHW.float() - true_BCFHW.float()) / PEAK).square().flatten(1).mean(1)
    return -10 * torch.log10(mse_B)


def ssim(made_BCFHW: Tensor, true_BCFHW: Tensor) -> Tensor:
    """Structural similarity of each clip, [B], 1 for equal ones: the mean over its frames, colours and windows.

    Videos in [-1, 1], sides of at least 11 pixels; only windows that lie inside the picture count.
    """
    clips, height, width = len(made_BCFHW), *made_BCFHW.shape[-2:]
    x = made_BCFHW.float().reshape(-1, 1, height, width)
    y = true_BCFHW.float().reshape(-1, 1, height, width)
    place = torch.arange(SSIM_WINDOW, device=x.device) - SSIM_WINDOW // 2
    bell = torch.exp(-place.float().square() / (2 * SSIM_SIGMA**2))
    bell = bell / bell.sum()

    def blur(picture: Tensor) -> Tensor:
        return conv2d(conv2d(picture, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return (luminance * structure).view(clips, -1).mean(1)


def share(right: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of True and its standard error. Raises ValueError for no answers at all."""
    if not len(right):
        raise ValueError("a share of no answers")
    p = float(np.mean(right))
    return p, math.sqrt(p * (1 - p) / len(right))


def paired_difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of True in `a` minus that in `b`, answers to the same questions, and its standard error."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features, in float64.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), and A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2).
    """
    a, b = a_ND.double().cpu(), b_MD.double().cpu()
    cov_a, cov_b = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0)  # rounding may leave -1e-17
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum())


def frechet_interval(
    a_ND: Tensor, b_MD: Tensor, *, resamples: int = 100, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of `frechet_distance`: both sides drawn again with replacement.

    The basic form, twice the distance minus the resamples' quantiles: resampling adds the bias that drawing a finite
    sample had added once already, and this form takes it off.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = a_ND.double().cpu(), b_MD.double().cpu()
    made = [
        frechet_distance(*(x[torch.randint(len(x), (len(x),), generator=generator)] for x in (a, b)))
        for _ in range(resamples)
    ]
    low, high = np.quantile(made, [(1 - level) / 2, (1 + level) / 2])
    middle = 2 * frechet_distance(a, b)
    return max(0.0, float(middle - high)), max(0.0, float(middle - low))


def diversity(features_PSD: Tensor, counts_PS: NDArray[np.bool_] | None = None) -> tuple[float, float, int]:
    """Measure how far S videos of one prompt are apart: mean Euclidean distance of all pairs, averaged over P prompts.

    counts_PS: which videos count; a prompt of which fewer than two do is left out. Returns it with its standard error
    over prompts and their number; nan where fewer than two prompts are left. Raises ValueError for fewer than two
    prompts or seeds.
    """
    prompts, seeds, _ = features_PSD.shape
    if prompts < 2 or seeds < 2:
        raise ValueError(f"diversity needs two prompts and two seeds at least, got {prompts} and {seeds}")
    x = features_PSD.double().cpu()
    first, second = torch.triu_indices(seeds, seeds, 1)
    distance_PN = (x[:, first] - x[:, second]).norm(dim=-1)
    counts = torch.ones(prompts, seeds) if counts_PS is None else torch.from_numpy(counts_PS).double()
    pairs_PN = counts[:, first] * counts[:, second]
    left = pairs_PN.sum(1) > 0
    distance_P = (distance_PN * pairs_PN).sum(1)[left] / pairs_PN.sum(1)[left]
    if len(distance_P) < 2:
        return math.nan, math.nan, len(distance_P)
    return float(distance_P.mean()), float(distance_P.std() / math.sqrt(len(distance_P))), len(distance_P)
