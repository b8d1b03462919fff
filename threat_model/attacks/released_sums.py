"""Do the sums that the run has opened hold the noise that was promised? Each is made again (`epsilon.replay`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...client.policy import load_policy
from ...errors import InputError, PrivacyError
from ..epsilon import checks
from ..epsilon.checks import Array, Check
from ..epsilon.conformance import FAMILY_WISE
from ..epsilon.replay import Replayed, replayed
from ..intervals import Estimate, proportion
from ..results import Outcome, Result
from ..subject import Subject
from ..transcript import Transcript
from . import Attack

_MOST = 24  # sums, drawn from all of them
_KEPT = 1 << 16  # values of each whose correlations are looked at
_TESTS = 3
_SAME = 1e-3  # of a sum's norm, by which processors may differ

_VIEW = "the sums that the run has opened"
_VARIANCE = "least noise variance in an opened sum / promised"
_TENSOR = "least noise variance in a tensor of an opened sum / promised"
_REUSE = "correlation of noise in two opened sums"
_AGAIN = "opened sums that come out again"
_FIELDS = {"adversary": "auditor", "view": _VIEW, "statement": "conformance"}


@dataclass(frozen=True)
class _Looked:
    """What is kept of a sum: its variance as a whole and in the tensor that stands out, some of its noise."""

    whole: Check
    worst: Check
    noise: Array
    apart: float

    @classmethod
    def at(cls, found: Replayed) -> _Looked:
        level = FAMILY_WISE / _TESTS / _MOST
        names, sizes = zip(*found.tensors.items(), strict=True)
        parts = np.repeat(np.arange(len(sizes)), sizes)
        return cls(
            checks.variance(found.noise, level),
            checks.variance_by_part(found.noise, parts, names, level),
            found.noise[:_KEPT].copy(),
            found.apart,
        )


def _applies(subject: Subject) -> str | None:
    if not subject.plan.private:
        return "the plan promises no noise (noise_multiplier = 0)"
    if subject.transcript is None:
        return "the run has kept no transcript (releases/)"
    if not any(header.block in subject.blocks for header in subject.transcript.headers):
        return "no sum of these blocks has been opened"
    policies = [load_policy(home / "policy.toml") for home in subject.run.homes()]
    if any(policy.simulation_seed is None for policy in policies):
        return "a company's noise has no seed, so that no sum can be made again"
    return None


def _run(subject: Subject) -> Iterator[Result]:
    try:
        found = _replays(subject, subject.transcript)
    except (InputError, PrivacyError) as error:
        yield _result(_AGAIN, "inconclusive", f"a step was refused: {error}")
        return
    if not found:
        yield _result(_AGAIN, "inconclusive", "the time ran out before the first sum")
        return
    yield _least(_VARIANCE, {name: each.whole for name, each in found.items()})
    yield _least(_TENSOR, {name: each.worst for name, each in found.items()})
    if len(found) > 1:
        yield _reused(found)
    other = [name for name, each in found.items() if not each.apart <= _SAME]
    why = ""
    if other:
        which = other[0] if len(other) == 1 else f"{other[0]} and {len(other) - 1} more"
        why = f"{which}: other code made this, or data, policy or seed of a company have changed since"
    outcome: Outcome = "inconclusive" if other else "held"
    share = proportion(len(found) - len(other), len(found))
    yield _result(_AGAIN, outcome, why, share, unit="share", sums=len(found))


def _replays(subject: Subject, transcript: Transcript | None) -> dict[str, _Looked]:
    """By round and block. A sample of the sums, and a thinner one where there is not the time for all of it."""
    assert transcript is not None
    places = [i for i, header in enumerate(transcript.headers) if header.block in subject.blocks]
    order = torch.randperm(len(places), generator=subject.generator("released sums"))
    wanted = sorted(places[i] for i in order[:_MOST].tolist())
    found: dict[str, _Looked] = {}
    for place, release in enumerate(transcript):
        # All are read, as each bears witness of those before it.
        if place not in wanted or subject.clock.over:
            continue
        again = replayed(subject.run, subject.plan, subject.checkpoint.model.shared, release)
        found[f"round {release.round}, block {release.block}"] = _Looked.at(again)
        rest = [each for each in wanted if each > place]
        if len(rest) > 1 and subject.clock.spent / len(found) * len(rest) > subject.clock.left:
            wanted = rest[1::2]
        subject.clock.tell(len(found) / (len(found) + len(rest)), "opened sums")
    return found


def _least(statistic: str, found: dict[str, Check]) -> Result:
    """Only too little counts: what is left of gradients where a sum does not come out again adds to the noise."""
    name, check = min(found.items(), key=lambda item: item[1].estimate.high)
    lacks = check.estimate.high < 1
    return _result(
        statistic, "refuted" if lacks else "held", f"{name}: {check.reason}" if lacks else "",
        check.estimate, sums=len(found),
    )  # fmt: skip


def _reused(found: dict[str, _Looked]) -> Result:
    """What is in excess of variance may be of gradients, and so much of a correlation theirs too."""
    excess = max(max(each.whole.estimate.high - 1 for each in found.values()), 0.0)
    check = checks.correlation([each.noise for each in found.values()], FAMILY_WISE / _TESTS, _REUSE)
    names = ", ".join(found)
    outcome: Outcome = "held" if check.held else "refuted"
    reason = check.reason and f"{check.reason} (numbered from 0: {names})"
    if not check.held and check.estimate.low <= excess:
        outcome, reason = "inconclusive", "it may be of gradients, as sums do not come out again"
    return _result(_REUSE, outcome, reason, check.estimate, sums=len(found))


def _result(
    statistic: str,
    outcome: Outcome,
    reason: str,
    value: Estimate | None = None,
    *,
    unit: str = "number",
    sums: int = 0,
) -> Result:
    return Result.model_validate(
        _FIELDS
        | {
            "attack": ATTACK.name, "statistic": statistic, "unit": unit, "outcome": outcome, "reason": reason,
            "value": value, "budget": {"sums": sums} if sums else {},
        }
    )  # fmt: skip


ATTACK = Attack(
    name="released-sums",
    title="Makes the run's own opened sums again, and looks at the noise that was in them",
    statement="conformance",
    adversaries=("auditor",),
    sees="every opened sum, and the companies' data, policies and seeds",
    needs="a simulated run with noise that has kept its transcript",
    cost="a round's training for each of up to 24 sums",
    applies=_applies,
    run=_run,
    by_block=False,
    weight=2.0,
)
