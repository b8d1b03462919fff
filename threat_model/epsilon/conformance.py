"""Conformance: a company's own step, recorded and repeated, against what its ledger is charged for it.

An account rests on what the step does: that one example moves a sum by at most the clip and changes nobody else's
contribution, that noise of the promised size is fresh for every value and every step, that batches are drawn as
accounted, and that nothing else depends on the batch. Each is tested here on the objects that train. What holds is
no proof; what does not hold refutes the account, with the number that shows it.

    own = OwnStep(model=model, block=0, data=examples, plan=plan, companies=5, policy=policy)
    audit = audit_step(own, lambda number: company.randomness("conformance", number)[1])
    for check in audit.checks:
        print(check.name, check.held, check.reason)

Not to be run beside other threads that train: functions are replaced meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ...client.units import units
from ...errors import InputError
from ...privacy.grouping import slack
from ...privacy.randomness import Randomness
from ...protocol.release import codec, secure_step
from . import checks
from .batch_law import batch_checks
from .checks import Check
from .neighbours import Neighbours
from .noise_law import noise_checks, noise_of
from .promise import Promise, sampler
from .recording import OwnStep, Places, Recording, record

Array = npt.NDArray[np.float64]
FAMILY_WISE = 1e-4
STATISTICAL = 18  # more than there are tests of chance in one audit of a step and of its masks
_LEAST_VALUES = 20_000  # noisy values in all recorded steps
_MOST_VALUES = 1 << 24  # that are kept
_ROUNDS, _MOST_ROUNDS = 2, 24
_WINDOWS = 64  # of a vector that is not kept whole
# Of the clip: what rounding may change, before and after.
_ROUNDING = 2 * slack(torch.float32)


@dataclass(frozen=True)
class StepAudit:
    """`untested`: why, of statistics that nothing was found about. `noise`: of the first step, in promised
    deviations, to compare with other companies."""

    checks: list[Check]
    untested: dict[str, str]
    noise: Array
    rounds: int


@dataclass(frozen=True)
class _Round:
    """What is kept of a recording. `gap`: between what was sent and what was to be sent, by its norm; `allowed`: of
    that, for rounding."""

    recording: Recording
    noise: list[Array]
    gap: float
    allowed: float


def audit_step(
    own: OwnStep,
    randomness: Callable[[int], Randomness],
    *,
    examples: int | None = None,
    level: float = FAMILY_WISE / STATISTICAL,
    proceed: Callable[[], bool] = lambda: True,
) -> StepAudit:
    """Record some rounds of the company's own step and test them, each test of chance at `level`.

    `randomness`: what the company makes for its round of this number. `examples`: how many the company has, where the
    step's are a part of them. Without `proceed` no further round is recorded
    than correlations need.

    Raises:
        InputError: the plan promises no noise, or there is no example.
        PrivacyError: the step refused, as it would in training.
    """
    promise = Promise.of(own.plan, own.size, own.companies)
    if len(own.data) == 0:
        raise InputError("data", 0, "expected at least one example to test the step with")
    steps = own.plan.training.local_steps
    wanted = min(max(_ROUNDS, math.ceil(_LEAST_VALUES / (own.size * steps))), _MOST_ROUNDS)
    places = _places(own.size, max(1 << 16, _MOST_VALUES // (wanted * steps)), randomness(-2))
    rounds: list[_Round] = []
    neighbours: Neighbours | None = None
    for number in range(_MOST_ROUNDS):
        enough = len(rounds) * steps >= 2  # for correlations
        if (enough and not proceed()) or (len(rounds) >= wanted and neighbours is not None):
            break
        recording = record(own, randomness(number), places=places, probe=neighbours is None)
        neighbours = neighbours or recording.neighbours
        rounds.append(_Round(recording, noise_of(own, promise, recording), *_gap(own, recording)))
        recording.forget()
    recorded = [step for each in rounds for step in each.recording.steps]
    noise = [each.noise for each in rounds]
    found = [*noise_checks(noise, level), _by_tensor(own, noise, places, level)]
    found += [_clip(rounds, promise), _divisor(rounds), *_diffusion(rounds)]
    found.append(_without_examples(own, promise, places, randomness(-3), level))
    counts = [step.count_noise for step in recorded if step.count_noise is not None]
    if counts:
        found.append(checks.variance(np.array(counts), level, "count noise variance / promised"))
    draws = sampler(own.plan, own.size, own.companies)
    found += batch_checks(
        draws, recorded, promise, examples or units(own.plan, own.data), steps, randomness(-1), level
    )
    if neighbours is not None:
        return StepAudit(found + _sensitivity(neighbours), {}, rounds[0].noise[0], len(rounds))
    why = f"no example was in any batch of {len(rounds)} rounds"
    return StepAudit(found, {"sensitivity / clip": why}, rounds[0].noise[0], len(rounds))


def _places(size: int, most: int, randomness: Randomness) -> Places:
    """All places of a vector, or windows of `most` places together, evenly spread from a random start."""
    if size <= most:
        return slice(None)
    length, apart = most // _WINDOWS, size // _WINDOWS
    start = int(randomness.integers(apart - length + 1, 1)[0])
    return (start + apart * np.arange(_WINDOWS)[:, None] + np.arange(length)).flatten()


def _by_tensor(own: OwnStep, rounds: Sequence[Sequence[Array]], places: Places, level: float) -> Check:
    """A tensor that gets no noise may be too small a part of all values to be seen among them."""
    names, sizes = zip(*own.tensors().items(), strict=True)
    tensor = np.repeat(np.arange(len(sizes)), sizes)[places]
    steps = [step for noise in rounds for step in noise]
    return checks.variance_by_part(np.concatenate(steps), np.tile(tensor, len(steps)), names, level)


def _without_examples(
    own: OwnStep, promise: Promise, places: Places, randomness: Randomness, level: float
) -> Check:
    """A step that adds its noise to nothing: were that left out, a release would tell that a batch was empty."""
    name = "noise variance of an empty batch / promised"
    try:
        empty = record(replace(own, data=own.data[:0]), randomness, places=places, probe=False)
    except IndexError:
        return checks.within(name, math.inf, 1.0, 1, "the step takes examples where the company holds none")
    return checks.variance(np.concatenate(noise_of(own, promise, empty)), level, name)


def _clip(rounds: Sequence[_Round], promise: Promise) -> Check:
    """Noise and what an example changes are both in units of the step's own clip, so that has to be the promised one;
    a moving clip starts there."""
    moves = promise.moving_clip
    first = [step for each in rounds for step in each.recording.steps[: 1 if moves else None]]
    worst = max(step.sensitivity for step in first) / promise.clip
    return checks.within(
        "clip / promised", worst, 1.0, len(first), "times the promised clip is what examples are clipped to"
    )


def _sensitivity(found: Neighbours) -> list[Check]:
    kind = max(found.moved, key=lambda name: found.moved[name])
    mixed = max(found.disturbed, key=lambda name: found.disturbed[name])
    named = ", ".join(found.random_operations)
    return [
        checks.within(
            "sensitivity / clip", found.moved[kind], 1.0, len(found.moved),
            f"clips by which one example ({kind}) moves the sum, expected at most 1",
        ),
        checks.within(
            "change of others / clip", found.disturbed[mixed], _ROUNDING, len(found.disturbed),
            f"clips by which one example ({mixed}) changes what the others contribute, "
            f"expected at most {_ROUNDING:.3f} of rounding",
        ),
        checks.within(
            "change on repetition / clip", found.repeated, 1e-6, 1,
            "clips between two sums of one step with the same randomness, expected none",
        ),
        checks.within(
            "operations with torch's generators", len(found.random_operations), 0, 1,
            f"random operations outside of the company's stream: {named}",
        ),
    ]  # fmt: skip


def _diffusion(rounds: Sequence[_Round]) -> list[Check]:
    """Whether every value of diffusion noise has random bits of its own; a float32 has 24."""
    values, bits = (sum(getattr(r.recording, name) for r in rounds) for name in ("values", "bits"))
    if not values:
        return []
    return [
        checks.within(
            "24 x diffusion values / random bits", 24 * values / max(bits, 1e-3), 1.0, values,
            f"expected at most 1: {values} values of 24 bits were drawn from {bits:.0f} bits",
        )
    ]  # fmt: skip


def _divisor(rounds: Sequence[_Round]) -> Check:
    """What leaves against the noisy sums: the plan's constant times their sum, whatever the batches."""
    worst = max(rounds, key=lambda r: r.gap / r.allowed if math.isfinite(r.gap) else math.inf)
    sizes = sorted(step.examples for each in rounds for step in each.recording.steps)
    return checks.within(
        "sent - promised / its norm", worst.gap, worst.allowed, len(rounds),
        f"of its norm lies between what was sent and the plan's constant times the noisy sum, expected at most "
        f"{worst.allowed:.1e}; batches had {sizes[0]} to {sizes[-1]} examples",
    )  # fmt: skip


def _gap(own: OwnStep, found: Recording) -> tuple[float, float]:
    plan = own.plan
    if plan.secure_step:
        step = secure_step(plan, own.size, own.companies)
        sent = np.zeros(own.size) if found.shared is None else found.shared
        expected, rounding = _projected(found.clean, step.largest_sum), 0.0
    else:
        code = codec(plan, own.companies)
        factor = -plan.training.local_learning_rate / plan.training.expected_batch_size
        sent, expected = code.decode_sum(found.residues), _projected(factor * found.noisy, plan.company_clip)
        rounding = math.sqrt(own.size) / (2 * code.scale)
    size = max(float(np.linalg.norm(expected)), 1e-300)
    return float(np.linalg.norm(sent - expected)) / size, 1e-6 + rounding / size


def _projected(vector: Array, bound: float) -> Array:
    return vector * min(1.0, bound / max(float(np.linalg.norm(vector)), 1e-300))
