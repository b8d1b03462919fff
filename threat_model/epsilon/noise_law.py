"""The noise of recorded steps: of the promised size, normal, and independent from value to value and step to step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from ...privacy.quantile_clip import QuantileClip
from ...privacy.quantisation import centred
from ...protocol.release import mechanism, secure_step
from . import checks
from .checks import Check
from .promise import Promise
from .recording import OwnStep, Recording

Array = npt.NDArray[np.float64]
_SERIES, _LONGEST = 6, 1 << 17  # steps, and values of each, that are correlated at every shift
_STEPS, _SHORTER = 400, 1 << 14  # and without a shift
_SPREAD = 200_000  # values whose distribution is tested


def noise_of(own: OwnStep, promise: Promise, found: Recording) -> list[Array]:
    """The noise of each step at the recorded places: what was released less what was clipped, in promised
    deviations. Where no noise was added, zeros."""
    if promise.share_variance is not None:
        return [_of_share(own, promise.share_variance, found)]
    quantile = mechanism(own.plan).quantile_clip
    noises = []
    for each in found.steps:
        clip = promise.clip if quantile is None else each.sensitivity
        off = np.zeros(len(each.clean)) if each.noisy is None else each.noisy - each.clean
        noises.append(off / (_multiplier(promise, quantile) * clip))
    return noises if promise.coefficients is None else _whitened(noises, promise.coefficients)


def _of_share(own: OwnStep, variance: float, found: Recording) -> Array:
    """In whole numbers; rounding at random adds a little."""
    noise = secure_step(own.plan, own.size, own.companies).noise
    if found.shared is None:
        return np.zeros(own.size)
    levels = np.clip(found.shared[found.places], -noise.limit, noise.limit) * noise.scale
    part = levels - np.floor(levels)
    residual: Array = centred(found.residues[found.places], noise.bits) - levels
    return residual / np.sqrt(variance + part * (1 - part))


def _multiplier(promise: Promise, quantile: QuantileClip | None) -> float:
    """Of the gradients' sum: a moving clip spends some of the budget on its counts (see `quantile_clip`)."""
    z = promise.noise_multiplier
    return z if quantile is None else float((z**-2 - (2 * quantile.count_noise) ** -2) ** -0.5)


def _whitened(noises: list[Array], c: Array) -> list[Array]:
    """C Y for the released steps Y = C^-1 Z: row t is the sum of c_j y_(t-j)."""
    rows = [np.zeros_like(each) for each in noises]
    for t, row in enumerate(rows):
        for j in range(min(t + 1, len(c))):
            row += c[j] * noises[t - j]
    return rows


def noise_checks(rounds: Sequence[Sequence[Array]], level: float) -> list[Check]:
    """Of the steps (n,) of several rounds, in promised deviations."""
    noise = list(chain.from_iterable(rounds))
    flat = np.concatenate(noise)
    # A grid's steps, or whole numbers, are at most 1/256 of a deviation: too fine for so many values to see.
    some = flat[:: max(1, len(flat) // _SPREAD)]
    # The first steps of every round: what is reused may be another step's noise, or another round's.
    each = max(1, _SERIES // len(rounds))
    series = [step[:_LONGEST] for steps in rounds for step in steps[:each]][:_SERIES]
    return [
        checks.variance(flat, level),
        checks.distribution(some, level),
        checks.tail(flat, level),
        checks.own_correlation(series, level, "correlation of values"),
        checks.shifted_correlation(series, level, "correlation of steps at a shift"),
        checks.correlation([step[:_SHORTER] for step in noise[:_STEPS]], level, "correlation of steps"),
    ]
