"""Measures of quality on the demo world."""

import torch
from torch import Tensor


def psnr(made_BCFHW: Tensor, true_BCFHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, [B]; videos in [-1, 1], so the peak-to-peak range is 2."""
    mse_B = ((made_BCFHW.float() - true_BCFHW.float()) / 2).square().flatten(1).mean(1)
    return -10 * torch.log10(mse_B)
