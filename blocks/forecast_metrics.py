"""How forecasts are judged: CRPS of samples and MASE of a point forecast."""

from __future__ import annotations

import torch
from torch import Tensor


def crps(samples: Tensor, targets: Tensor) -> Tensor:
    """Fair CRPS, averaged over channels and horizon: samples (N, m, ...), targets (N, ...) -> (N,).

        E|X - y| - E|X - X'| / 2

    estimated without bias in the number of samples, the second mean being over pairs of different samples
    (Ferro 2014). The score of a point forecast, m = 1, is its absolute error.
    """
    m = samples.shape[1]
    error = (samples - targets[:, None]).abs().mean(dim=1)
    if m > 1:
        # The i-th of m sorted samples is the larger of i pairs and the smaller of m - 1 - i.
        rank = torch.arange(m, device=samples.device, dtype=samples.dtype).view(
            -1, *[1] * (targets.dim() - 1)
        )
        pairs = ((2 * rank - (m - 1)) * samples.sort(dim=1).values).sum(dim=1)
        error = error - pairs / (m * (m - 1))
    return error.flatten(1).mean(dim=1)


def mase(forecast: Tensor, targets: Tensor, context: Tensor, season: int) -> Tensor:
    """Mean absolute scaled error (Hyndman & Koehler 2006), averaged over channels: (N, C, H) -> (N,).

    The mean absolute error over the horizon by that of the seasonal naive forecast y_t = y_(t-season) within
    the context (N, C, T); NaN where the context repeats itself exactly and so gives no scale.
    """
    scale = (context[..., season:] - context[..., :-season]).abs().mean(dim=-1)  # (N, C)
    error = (forecast - targets).abs().mean(dim=-1)
    return torch.where(scale > 0, error / scale, torch.full_like(scale, torch.nan)).mean(dim=1)


def seasonal_naive(context: Tensor, horizon: int, season: int) -> Tensor:
    """The last season over and over, (N, C, T) -> (N, C, horizon)."""
    repeats = -(-horizon // season)
    return context[..., -season:].repeat(1, 1, repeats)[..., :horizon]
