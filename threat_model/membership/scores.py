"""Scores of membership from shadow models: LiRA, RMIA and BaVarIA, members of one family.

All three are log likelihood ratios of a candidate's signal (higher where a model fits it better) on the target, under
laws fitted to its signals on shadow models that were trained with it and without it (Brannvall 2026, arXiv
2603.11799). They differ in what they estimate for each candidate:

- RMIA (Zarifzadeh, Liu & Shokri 2024): a mean only. With the ratio p(x | target) / mean p(x | shadows), its
  comparison with a population ranks candidates as the ratio itself does.
- LiRA (Carlini et al. 2022, section VI-B, for few shadows): a mean for each side, one variance for all candidates.
- BaVarIA: means and variances under normal-inverse-gamma priors, whose predictive law is Student's t. A side's mean
  lies around the candidate's own mean over all shadows, moved by half of the usual gap between the sides, with the
  weight of 4 shadows; a variance around that of all candidates, with the weight of 16: what told members of one
  shadow best by the others.

Signals are (levels, N) on the target and (shadows, levels, N) on shadows; levels of noise count as independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import logsumexp

from ..intervals import Array

_MEAN_WEIGHT = 4.0
_VARIANCE_WEIGHT = 16.0
_LEAST = 1e-12


@dataclass(frozen=True)
class Shadows:
    """`signals` (shadows, levels, N) and `inside` (shadows, N): whether a shadow was trained with a candidate."""

    signals: Array
    inside: npt.NDArray[np.bool_]

    def side(self, member: bool) -> tuple[Array, Array, Array]:
        """How many shadows of a side each candidate has (N,), their mean and sum of squares about it, (levels, N)."""
        chosen = (self.inside == member)[:, None, :]
        count = chosen.sum(0)[0].astype(np.float64)
        mean = np.where(chosen, self.signals, 0).sum(0) / np.maximum(count, 1)
        squares = np.where(chosen, (self.signals - mean) ** 2, 0).sum(0)
        return count, mean, squares

    def pooled(self) -> tuple[Array, Array]:
        """Over all candidates, by level (levels, 1): the variance within a side, and the gap of its means."""
        freedom, squares = 0.0, np.zeros((self.signals.shape[1], 1))
        sides = [self.side(member) for member in (True, False)]
        for count, _, rest in sides:
            freedom += float(np.maximum(count - 1, 0).sum())
            squares = squares + rest.sum(1, keepdims=True)
        both = (sides[0][0] > 0) & (sides[1][0] > 0)
        gaps = np.where(both, sides[0][1] - sides[1][1], 0).sum(1, keepdims=True) / max(int(both.sum()), 1)
        return np.maximum(squares / max(freedom, 1.0), _LEAST), gaps


def rmia(target: Array, shadows: Shadows) -> Array:
    """log of p(x | target) / mean over shadows of p(x | shadow), odds for p: (N,)."""
    mean = logsumexp(shadows.signals, axis=0) - np.log(len(shadows.signals))
    found: Array = (target - mean).sum(0)
    return found


def lira(target: Array, shadows: Shadows) -> Array:
    """Gaussians of each candidate's means, with one variance; a side without shadows has the usual gap: (N,)."""
    variance, gap = shadows.pooled()
    (n, inside, _), (m, outside, _) = shadows.side(True), shadows.side(False)
    inside = np.where(n > 0, inside, outside + gap)
    outside = np.where(m > 0, outside, inside - gap)
    found: Array = (((target - outside) ** 2 - (target - inside) ** 2) / (2 * variance)).sum(0)
    return found


def bavaria(target: Array, shadows: Shadows) -> Array:
    """Predictive laws of Student's t, one for each side: (N,)."""
    variance, gap = shadows.pooled()
    whole = shadows.signals.mean(0)
    total = np.zeros(target.shape[1])
    for member, sign in ((True, 1.0), (False, -1.0)):
        count, mean, squares = shadows.side(member)
        centre = whole + sign * gap / 2
        weight = _MEAN_WEIGHT + count
        location = (_MEAN_WEIGHT * centre + count * mean) / weight
        freedom = _VARIANCE_WEIGHT + count
        apart = _MEAN_WEIGHT * count / weight * (mean - centre) ** 2
        scale = (_VARIANCE_WEIGHT * variance + squares + apart) / freedom * (weight + 1) / weight
        total += sign * stats.t.logpdf(target, freedom, location, np.sqrt(scale)).sum(0)
    return total


def loss_threshold(target: Array, shadows: Shadows) -> Array:
    """Without shadows: how well the target fits the candidate."""
    found: Array = target.sum(0)
    return found


SCORES = {"a loss threshold": loss_threshold, "LiRA": lira, "RMIA": rmia, "BaVarIA": bavaria}
