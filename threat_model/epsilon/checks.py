"""Tests of one promise each: a statistic with its exact interval, and whether what was promised lies in it.

Every test takes the level at which it may alarm falsely. A hundred of them at a family-wise level alpha get
alpha / 100 each (Bonferroni), so the laws are exact where they can be: a normal approximation is off by far at 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import fft, stats

from ..intervals import Estimate, proportion

Array = npt.NDArray[np.float64]
_CERTAIN = 1e-15  # the level of a bound that chance does not enter
_LARGEST = 1e300  # stands for what is not finite, which a stored estimate cannot be


@dataclass(frozen=True)
class Check:
    """`estimate` of the statistic `name`; `reason` says why it does not hold."""

    name: str
    held: bool
    estimate: Estimate
    reason: str = ""


def within(name: str, value: float, most: float, n: int, reason: str) -> Check:
    """A bound that holds without exception: `value` of the worst of n cases is at most `most`."""
    held = value <= most  # false for NaN
    shown = min(value, _LARGEST) if value == value else _LARGEST
    return Check(
        name, held, _exact(shown, shown, shown, n, _CERTAIN), "" if held else f"{shown:.5g}: {reason}"
    )


def variance(noise: Array, level: float, name: str = "noise variance / promised") -> Check:
    """Of `noise` (N,) in units of what was promised: N times the ratio is chi-square of N, its mean being zero."""
    n, found = len(noise), float(noise @ noise) / len(noise)
    low, high = (found * n / stats.chi2.ppf(p, n) for p in (1 - level / 2, level / 2))
    return _interval(name, found, float(low), float(high), n, level, "of the promised variance")


def variance_by_part(noise: Array, parts: npt.NDArray[np.int64], names: Sequence[str], level: float) -> Check:
    """The variance of each part of `noise` (N,), as `variance`; the part that is least likely stands for all.

    `parts` (N,): the number of the part that a value belongs to; `names` (parts,).
    """
    counts = np.bincount(parts, minlength=len(names))
    squares = np.bincount(parts, weights=noise**2, minlength=len(names))
    there = np.flatnonzero(counts)
    chances = np.minimum(
        stats.chi2.logcdf(squares[there], counts[there]), stats.chi2.logsf(squares[there], counts[there])
    )
    worst = int(there[chances.argmin()])
    each = level / len(there)
    found = variance(noise[parts == worst], each, "noise variance of a tensor / promised")
    return Check(found.name, found.held, found.estimate, found.reason and f"{names[worst]}: {found.reason}")


def distribution(noise: Array, level: float) -> Check:
    """The largest distance of the noise's distribution function from the normal one (Kolmogorov and Smirnov).

    The band is that of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990), which holds for any n.
    """
    n, found = len(noise), float(stats.ks_1samp(noise, stats.norm.cdf).statistic)
    half = math.sqrt(math.log(2 / level) / (2 * n))
    estimate = _exact(found, max(0.0, found - half), found + half, n, level)
    held = found <= half
    reason = "" if held else f"{found:.4f} from the normal law, at most {half:.4f} by chance"
    return Check("noise distribution", held, estimate, reason)


def tail(noise: Array, level: float) -> Check:
    """The largest of |noise| (N,), whose law is known: P(max <= x) = (2 Phi(x) - 1)^N."""
    n, found = len(noise), float(np.abs(noise).max())
    # 1 - p^(1/N), computed without cancellation.
    low, high = (float(stats.norm.isf(-math.expm1(math.log(p) / n) / 2)) for p in (level / 2, 1 - level / 2))
    held = low <= found <= high
    reason = "" if held else f"{found:.3f} deviations, expected {low:.2f} to {high:.2f}"
    return Check("largest noise / deviation", held, _exact(found, found, found, n, level), reason)


def own_correlation(series: list[Array], level: float, name: str) -> Check:
    """The largest correlation of a series (n,) with itself at a shift; periods and copies of parts show there.

    It is not quite normal (an excess kurtosis of 6 / n), for which the level is divided by 10.
    """
    size, found = len(series[0]), []
    for spectrum in _spectra(series):
        shifted = fft.irfft(np.abs(spectrum) ** 2, n=size)
        found.append(np.abs(shifted[1 : size // 2 + 1]))
    return _largest(np.array(found), size, level / 10, name, "series {} at shift {}")


def shifted_correlation(series: list[Array], level: float, name: str) -> Check:
    """The largest correlation of two of the series (n,) at any shift: given one of them, it is exactly normal."""
    size, spectra = len(series[0]), _spectra(series)
    pairs = combinations(range(len(series)), 2)
    found = [np.abs(fft.irfft(spectra[i] * spectra[j].conj(), n=size)) for i, j in pairs]
    return _largest(np.array(found), size, level, name, "pair {} at shift {}")


def correlation(series: list[Array], level: float, name: str) -> Check:
    """The largest correlation of two of the series (n,); of blocks of unequal sizes, as far as the shortest goes."""
    length = min(map(len, series))
    unit = np.stack([each[:length] / max(float(np.linalg.norm(each[:length])), 1e-300) for each in series])
    found = np.triu(np.abs(unit @ unit.T), 1)
    pairs = len(series) * (len(series) - 1) // 2
    return _largest(found, unit.shape[1], level, name, "number {} with number {}", pairs)


def _spectra(series: list[Array]) -> list[npt.NDArray[np.complex128]]:
    return [fft.rfft(each / max(float(np.linalg.norm(each)), 1e-300)) for each in series]


def _largest(found: Array, size: int, level: float, name: str, where: str, tests: int | None = None) -> Check:
    """`found` (m, k): |correlations| of `size` values, each normal; the largest of them or of `tests`."""
    at = np.unravel_index(int(found.argmax()), found.shape)
    worst, tests = float(found[at]), tests or found.size
    half = float(stats.norm.isf(level / 2 / tests)) / math.sqrt(size)
    held = worst <= half
    reason = f"{worst:.4f}, {where.format(*at)}; at most {half:.4f} by chance among {tests} correlations"
    estimate = _exact(worst, max(0.0, worst - half), worst + half, size, level)
    return Check(name, held, estimate, "" if held else reason)


def rate(successes: int, n: int, promised: float, level: float, name: str) -> Check:
    """A proportion in units of what was promised, with the interval of Clopper and Pearson."""
    found = proportion(successes, n, 1 - level)
    low, value, high = (x / promised for x in (found.low, found.value, found.high))
    return _interval(name, value, low, high, n, level, f"times the promised {promised:.6g}")


def dispersion(counts: Array, trials: int, q: float, level: float, name: str) -> Check:
    """The variance of `counts` (m,), each of Binomial(trials, q), in units of the promised one.

    A gamma law with the exact mean and variance: for binomial counts that is (2 + excess kurtosis) / m. Rare counts
    have heavier tails, for which the level is divided by 10.
    """
    v, m = trials * q * (1 - q), len(counts)
    found = float(((counts - trials * q) ** 2).mean()) / v
    # One fair coin is always as far from its mean: nothing varies then.
    shape = m / max(2 + (1 - 6 * q * (1 - q)) / v, 1e-9)
    return _gamma(name, found, shape, m, level / 10)


def pearson(counts: Array, level: float, name: str) -> Check:
    """Pearson's statistic over its mean: `counts` (m, k), each row multinomial over k places of equal chances."""
    m, k = counts.shape
    n = counts.sum(1, keepdims=True)
    found = float(((counts - n / k) ** 2 / (n / k)).sum()) / (m * (k - 1))
    # Its variance is exactly 2 (k - 1)(n - 1) / n a row.
    variance = 2 * float(((n - 1) / n).sum()) / (m**2 * (k - 1))
    return _gamma(name, found, 1 / variance, m * k, level)


def overlap(shared: int, examples: int, steps: int, q: float, level: float) -> Check:
    """Examples in both of two consecutive batches of `steps`, in units of their mean; normal, at a tenth of the
    level."""
    mean = examples * (steps - 1) * q**2
    # Of one example: sum over t of b_t b_(t+1), whose neighbouring terms share a coin.
    of_one = (steps - 1) * q**2 * (1 - q**2) + 2 * (steps - 2) * (q**3 - q**4)
    half = float(stats.norm.isf(level / 20)) * math.sqrt(examples * of_one) / mean
    found, name = shared / mean, "examples in two batches / expected"
    return _interval(name, found, found - half, found + half, steps - 1, level, "times the expected")


def _gamma(name: str, found: float, shape: float, n: int, level: float) -> Check:
    least, most = (float(stats.gamma.ppf(p, shape)) / shape for p in (level / 2, 1 - level / 2))
    # Of few counts the smallest possible ratio is zero: nothing is too large then.
    high = found / least if least > 0 else math.inf
    return _interval(name, found, found / most, high, n, level, "times the expected")


def _interval(name: str, value: float, low: float, high: float, n: int, level: float, what: str) -> Check:
    """Of a ratio to what was promised: it holds if its interval contains 1."""
    held = low <= 1.0 <= high
    reason = "" if held else f"{value:.5g} {what} (interval {low:.5g} to {high:.5g})"
    return Check(name, held, _exact(value, low, high, n, level), reason)


def _exact(value: float, low: float, high: float, n: int, level: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=n, method="exact", level=1 - level)
