"""The cost of floating point in the Gaussian mechanism, in epsilon and delta.

`mechanisms.gaussian` releases the grid cell in which x + n lies; the proof is about a real n, the machine has a
computed one. Let P be the law of a release with a real n and P~ that of the computed one. Both coordinates of a
pair of normals come from one radius and one angle (`randomness`), so pairs are independent, single values are not.

**One pair.** Let (a, b) be its noise in deviations, r its radius, u = 2^-53, h >= 2^-9 the width of a cell in
deviations. The computed a lies within (7 |a| + 8 |b| + 1 + |a| / r^2) u of the real one: 5 |a| + 8 |b| + |a| / r^2
from the radius, the angle and their functions (tested against extended precision), the rest from scaling and from
adding x. What moves over an edge of a cell is at most what lies so near to it, so up to a radius R of 8 to 60 the
probability of a cell changes by a factor within 1 +- 2^-38 R, and around r = 0, where |a| / r^2 is large but
averages to pi / (2 h) over an edge, within 1 +- 2^-32. The radius comes from a lattice: an arc's share of a
cell rises and falls with the radius once, so the sum over the lattice misses the integral by two of its largest
terms: a factor within 1 +- 2^-38. Together, with a margin of 4 for other machines' functions,

    |ln P~/P| <= l = 2^-35 R    for every cell of a pair up to radius R,

which a pair passes with probability exp(-R^2 / 2).

**All pairs.** In the sum of ln P~/P over the M pairs of all releases each term is at most l, and its mean, given
what came before, at most l^2 (a divergence of laws that lie within a factor exp(l)). By Azuma's inequality the sum
passes s = l sqrt(2 M t) + M l^2 with probability at most exp(-t), at any moment up to M. M may depend on what was
released: it is rounded up to a power of two, and the j-th power has the share 2^-j-1 of the probability. So P~ and
P are within exp(s) of each other but on a set of probability beta, from either side, and a mechanism that is
(epsilon', delta') for real noise is on the machine

    (epsilon' + 2 s, exp(s) delta' + (1 + exp(epsilon' + 2 s)) beta).

`RESERVE` of delta pays for beta, which fixes t and R. For 4 10^7 values at epsilon 8 and delta 1e-5
epsilon grows by 6e-5, where a bound by total variation took four times delta.
"""

import math
from collections.abc import Callable

# The share of delta for the improbable set, of probability beta.
RESERVE = 2.0**-13
_FACTOR = 2.0**-35
_SMALLEST_RADIUS, _LARGEST_RADIUS = 8.0, 60.0
_LARGEST = 0.25
# Bound on 2 s in exp(epsilon' + 2 s), which `slack` assumes.
_GROWTH = 1.0


def with_slack(account: Callable[[float], float], values: int, delta: float) -> float:
    """The epsilon at `delta` of releases of `values` values; `account(delta')` is the epsilon for real noise."""
    if values == 0:
        return account(delta)
    found = account((1 - RESERVE) * delta)
    total = on_machine(account, slack(values, found, delta), delta)
    return total if total <= found + _GROWTH else math.inf


def on_machine(account: Callable[[float], float], s: float, delta: float) -> float:
    """The epsilon at `delta` with slack `s`; `account(delta')` is the epsilon for real noise."""
    return account((1 - RESERVE) * math.exp(-s) * delta) + 2 * s if s <= _LARGEST else math.inf


def slack(values: int, epsilon: float, delta: float) -> float:
    """s, where real noise costs `epsilon` and the reserve is a share of `delta`; inf where nothing is proven."""
    if not math.isfinite(epsilon):
        return math.inf
    pairs = 2.0 ** math.ceil(
        math.log2(values)
    )  # more than there are: half the values, and an odd one's partner
    # (1 + exp(epsilon + 1)) beta <= RESERVE delta, half of beta for the sum and half for the radii.
    t = epsilon + _GROWTH + math.log(4 / (RESERVE * delta)) + math.log(2 * pairs)
    radius = max(math.sqrt(2 * (t + math.log(pairs))), _SMALLEST_RADIUS)
    largest = _FACTOR * radius
    s = largest * math.sqrt(2 * pairs * t) + pairs * largest**2
    return s if radius <= _LARGEST_RADIUS else math.inf
