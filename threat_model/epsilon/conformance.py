"""Conformance: a company's own step, recorded and repeated, against what its ledger is charged for it.

An account rests on what the step does: that one example moves a sum by at most the clip and changes nobody else's
contribution, that noise of the promised size is fresh for every value and every step, that batches are drawn as
accounted, and that nothing else depends on the batch. Each is tested here on the objects that train. What holds is
no proof; what does not hold refutes the account, with the number that shows it.

    own = OwnStep(model=model, block=0, data=examples, plan=plan, companies=5, policy=policy)
    for check in audit_step(own, lambda number: company.randomness("conformance", number)).checks:
        print(check.name, check.held, check.reason)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...privacy.quantile_clip import QuantileClip
from ...privacy.quantisation import centred
from ...privacy.randomness import Randomness
from ...protocol.release import codec, mechanism, secure_step
from . import checks
from .batch_law import batch_checks
from .checks import Check
from .promise import Promise, sampler
from .recording import OwnStep, Recording, record

Array = npt.NDArray[np.float64]
FAMILY_WISE = 1e-4
STATISTICAL = 16  # more than there are tests of chance in one audit of a step and of its masks
_LEAST_VALUES = 20_000  # noisy values in all recorded steps
_ROUNDS, _MOST_ROUNDS = 3, 24
_SERIES, _LONGEST = 6, 1 << 17  # steps, and values of each, that are correlated with each other
_SPREAD = 200_000  # values whose distribution is tested
# Of the clip: what rounding may change; `privacy.grouping` lowers the clip by .8% for it.
_ROUNDING = 0.02


@dataclass(frozen=True)
class StepAudit:
    """What was found; `noise` (P,): of the first step, in promised deviations, to compare with other companies."""

    checks: list[Check]
    noise: Array


def audit_step(
    own: OwnStep,
    randomness: Callable[[int], Randomness],
    *,
    level: float = FAMILY_WISE / STATISTICAL,
    proceed: Callable[[], bool] = lambda: True,
) -> StepAudit:
    """Record some rounds of the company's own step and test them; at most one in 1 / `level` tests alarms by chance.

    `randomness`: what the company makes for its round of this number. Without `proceed` no further round is recorded.

    Raises:
        InputError: the plan promises no noise.
        PrivacyError: the step refused, as it would in training.
    """
    promise = Promise.of(own.plan, own.size, own.companies)
    steps = own.plan.training.local_steps
    least = _ROUNDS if steps < _ROUNDS else 2
    wanted = min(max(least, math.ceil(_LEAST_VALUES / (own.size * steps))), _MOST_ROUNDS)
    rounds: list[Recording] = []
    for number in range(_MOST_ROUNDS):
        probed = any(each.neighbours for each in rounds)
        enough = len(rounds) * steps >= 2  # for correlations
        if (enough and not proceed()) or (len(rounds) >= wanted and probed):
            break
        rounds.append(record(own, randomness(number), probe=not probed))
    noise = [part for each in rounds for part in noise_of(own, promise, each)]
    found = [*_sensitivity(rounds), *_drawing(rounds), _divisor(own, rounds)]
    found += noise_checks(noise, level)
    counts = [s.count_noise for each in rounds for s in each.steps if s.count_noise is not None]
    if counts:
        found.append(checks.variance(np.array(counts), level, "count noise variance / promised"))
    drawn = [(step.drawn, step.loaded, step.examples) for each in rounds for step in each.steps]
    draws = sampler(own.plan, own.size, own.companies)
    found += batch_checks(draws, drawn, promise, len(own.data), randomness(-1), level)
    return StepAudit(found, noise[0])


def noise_of(own: OwnStep, promise: Promise, found: Recording) -> list[Array]:
    """The noise (P,) of each step: what was released less what was clipped, in promised deviations."""
    if promise.share_variance is not None:
        step = secure_step(own.plan, own.size, own.companies)
        noise, vector = step.noise, found.shared
        if vector is None:
            return [np.zeros(own.size)]
        levels = np.clip(vector, -noise.limit, noise.limit) * noise.scale
        part = levels - np.floor(levels)
        residual = centred(found.residues, noise.bits) - levels
        return [residual / np.sqrt(promise.share_variance + part * (1 - part))]
    quantile = mechanism(own.plan).quantile_clip
    noises = []
    for each in found.steps:
        clip = promise.clip if quantile is None else each.sensitivity
        if len(each.noisy) != len(each.clean):
            noises.append(np.zeros(len(each.clean)))  # no noise was added at all
        else:
            noises.append((each.noisy - each.clean) / (_multiplier(promise, quantile) * clip))
    return noises if promise.coefficients is None else _whitened(noises, promise.coefficients)


def _multiplier(promise: Promise, quantile: QuantileClip | None) -> float:
    """Of the gradients' sum: a moving clip spends some of the budget on its counts (see `quantile_clip`)."""
    z = promise.noise_multiplier
    return z if quantile is None else (z**-2 - (2 * quantile.count_noise) ** -2) ** -0.5


def _whitened(noises: list[Array], c: Array) -> list[Array]:
    """C Y for the released steps Y = C^-1 Z: row t is the sum of c_j y_(t-j)."""
    return [sum((c[j] * noises[t - j] for j in range(min(t + 1, len(c)))), np.zeros_like(noises[t]))
            for t in range(len(noises))]  # fmt: skip


def noise_checks(noise: Sequence[Array], level: float) -> list[Check]:
    """Size, law and independence of the noise of several steps (P,), in promised deviations."""
    flat = np.concatenate(list(noise))
    # Skellam's and the grid's steps are at most 1/256 of a deviation.
    some = flat[:: max(1, len(flat) // _SPREAD)]
    series = [each[:_LONGEST] for each in noise[:_SERIES]]
    return [
        checks.variance(flat, level),
        checks.distribution(some, level),
        checks.tail(flat, level),
        checks.uncorrelated(series, level, "correlation of values", own=True),
        checks.uncorrelated(series, level, "correlation of steps", own=False),
    ]


def _sensitivity(rounds: Sequence[Recording]) -> list[Check]:
    found = next((each.neighbours for each in rounds if each.neighbours), None)
    if found is None:
        return []
    kind = max(found.moved, key=lambda name: found.moved[name])
    mixed = max(found.disturbed, key=lambda name: found.disturbed[name])
    return [
        checks.within(
            "sensitivity / clip", found.moved[kind], 1.0, len(found.moved),
            f"clips by which one example ({kind}) moves the sum, expected at most 1",
        ),
        checks.within(
            "change of others / clip", found.disturbed[mixed], _ROUNDING, len(found.disturbed),
            f"clips by which one example ({mixed}) changes what the others contribute, "
            f"expected at most {_ROUNDING} of rounding",
        ),
    ]  # fmt: skip


def _drawing(rounds: Sequence[Recording]) -> list[Check]:
    """Where diffusion noise comes from: from the company's stream alone, and every value from bits of its own."""
    values, bits = sum(each.values for each in rounds), sum(each.bits for each in rounds)
    out: list[Check] = []
    if values:
        out.append(
            checks.within(
                "24 x diffusion values / random bits", 24 * values / max(bits, 1e-3), 1.0, values,
                f"expected at most 1: {values} values of 24 bits were drawn from {bits:.0f} bits",
            )
        )  # fmt: skip
    found = next((each.neighbours for each in rounds if each.neighbours), None)
    if found is not None:
        named = ", ".join(found.random_operations)
        out += [
            checks.within(
                "operations with torch's generators", len(found.random_operations), 0, 1,
                f"random operations outside of the company's stream: {named}",
            ),
            checks.within(
                "change on repetition / clip", found.repeated, 0.0, 1,
                "clips between two sums of one step with the same randomness, expected none",
            ),
        ]  # fmt: skip
    return out


def _divisor(own: OwnStep, rounds: Sequence[Recording]) -> Check:
    """What leaves against the noisy sums: the plan's constant times their sum, whatever the batches."""
    gaps = []
    for each in rounds:
        sent, expected, rounding = _sent(own, each)
        size = max(float(np.linalg.norm(expected)), 1e-300)
        gaps.append((float(np.linalg.norm(sent - expected)) / size, 1e-6 + rounding / size))
    gap, allowed = max(gaps, key=lambda pair: pair[0] / pair[1] if math.isfinite(pair[0]) else math.inf)
    sizes = sorted(step.examples for each in rounds for step in each.steps)
    return checks.within(
        "sent - promised / its norm", gap, allowed, len(rounds),
        f"of its norm lies between what was sent and the noisy sum times the plan's constant, expected at most "
        f"{allowed:.1e}; batches of {sizes[0]} to {sizes[-1]} examples",
    )  # fmt: skip


def _sent(own: OwnStep, found: Recording) -> tuple[Array, Array, float]:
    """What was sent and what was to be sent, (P,) each, and the norm of the rounding between them."""
    plan = own.plan
    if plan.secure_step:
        step = secure_step(plan, own.size, own.companies)
        sent = np.zeros(own.size) if found.shared is None else found.shared
        return sent, _projected(found.steps[0].clean, step.largest_sum), 0.0
    code = codec(plan, own.companies)
    total = sum((each.noisy for each in found.steps if len(each.noisy)), np.zeros(own.size))
    factor = -plan.training.local_learning_rate / plan.training.expected_batch_size
    expected = _projected(factor * total, plan.company_clip)
    # Parameters are held in float64 while they move, so that no rounding of theirs is in it.
    return code.decode_sum(found.residues), expected, math.sqrt(own.size) / (2 * code.scale)


def _projected(vector: Array, bound: float) -> Array:
    return vector * min(1.0, bound / max(float(np.linalg.norm(vector)), 1e-300))
