"""Whether a language model gives away secrets that stand in one company's data: exposure of inserted canaries."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ...privacy.randomness import Randomness
from ..intervals import Array, mean
from ..results import FAILED_CONTROL, Outcome, Result
from ..subject import Subject
from ..tokens.extraction import LocalRun, Losses, Secrets, untraced
from ..tokens.texts import text_taps
from . import Attack

_ONCE, _OFTEN = 16, 8  # canaries
_TIMES, _TIMES_MASKED = (
    32,
    128,
)  # how often each of the second kind is; a masked model learns a part at a time
_RIVALS = 255
_LEAST, _MOST = 8, 10  # rounds; in one alone a model learns no secret, with noise or without
_ENOUGH = 4  # rounds without which nothing is said
_CHANCE = 1e-3


@dataclass(frozen=True)
class _Trained:
    """Exposures in bits by kind of canary, after so many rounds."""

    bits: dict[str, Array]
    rounds: int


def _applies(subject: Subject) -> str | None:
    if any(text_taps(subject.problem(block)) for block in subject.blocks):
        return None
    return "secrets are inserted into texts, and this run has none"


def _wanted(subject: Subject, block: int) -> int:
    """Rounds of the run in which a company trains this block, within bounds."""
    return min(max(subject.trainings(block, subject.plan.training.rounds), _LEAST), _MOST)


def _run(subject: Subject) -> Iterator[Result]:
    for block in subject.blocks:
        started = time.monotonic()
        public = subject.public.inputs
        times = _TIMES_MASKED if subject.problem(block).masked else _TIMES
        secrets = Secrets.draw(
            public, subject.generator("exposure", block), canaries=_ONCE, often=_OFTEN, times=times, rivals=_RIVALS
        )  # fmt: skip
        wanted = _wanted(subject, block)
        control = _trained(subject, block, secrets, wanted, noisy=False, until=0.45)
        released = _trained(subject, block, secrets, control.rounds, noisy=True, until=0.9)
        seconds = round(time.monotonic() - started, 2)
        cut = ""
        if released.rounds < min(wanted, _ENOUGH):
            cut = f"the time ran out after {released.rounds} of {wanted} rounds"
        for kind in ("often", "once"):
            yield _result(subject, block, kind, times, control, released, cut, seconds)


def _trained(
    subject: Subject, block: int, secrets: Secrets, wanted: int, *, noisy: bool, until: float
) -> _Trained:
    """`until`: the share of the clock that may be spent when it ends."""
    (data, *_) = subject.private.values()
    randomness = Randomness.from_seed(subject.seed, "exposure", block)
    run = LocalRun(subject, block, secrets.inserted_into(data), randomness, noisy=noisy)
    losses = Losses(subject, block, subject.generator("exposure", "losses", block))
    clock, done = subject.clock, 0
    while done < wanted and (done == 0 or clock.spent < until * clock.seconds):
        run.round()
        done += 1
        clock.tell((0.5 if noisy else 0.0) + 0.45 * done / wanted, f"exposure, block {block}")
    return _Trained(secrets.exposures(lambda texts: losses.gained(run.model, texts)), done)


def _by_chance(bits: Array) -> float:
    """The chance of exposures that add up to so much without a trace: each is then at most exponential, of mean
    1 / ln 2 bits."""
    return float(stats.gamma.sf(bits.sum(), len(bits), scale=1 / math.log(2)))


def _result(
    subject: Subject,
    block: int,
    kind: str,
    times: int,
    control: _Trained,
    released: _Trained,
    cut: str,
    seconds: float,
) -> Result:
    bits = released.bits[kind]
    outcome: Outcome = "not found"
    reason = cut
    if _by_chance(bits) < _CHANCE:
        outcome = "found"
        reason = f"epsilon is promised for one text, not for {times}" if kind == "often" else ""
    elif cut:
        outcome = "inconclusive"
    elif _by_chance(control.bits["often"]) >= _CHANCE:
        outcome = "inconclusive"
        reason = (
            f"{FAILED_CONTROL}: without noise {control.rounds} rounds leave no trace of it in {times} texts"
        )
    return Result(
        attack=ATTACK.name, adversary="user", block=block, statement="extraction", unit="number",
        view="the model, one company having trained alone",
        statistic=f"bits of exposure of a secret in {'one text' if kind == 'once' else f'{times} texts'}",
        # No promise covers a secret in many texts: it is the control of the canaries in one.
        protected=kind == "once", outcome=outcome, reason=reason, value=mean(bits), control=mean(control.bits[kind]),
        worst_decile=float(np.quantile(bits, 0.9)), baseline=mean(released.bits["never"]), seconds=seconds,
        budget={
            "rounds": released.rounds, "texts": len(next(iter(subject.private.values()))), "rivals": _RIVALS,
            "most bits": math.log2(_RIVALS + 1), "bits without a trace": round(untraced(_RIVALS), 2),
        },
    )  # fmt: skip


ATTACK = Attack(
    name="exposure",
    title="Ranks secrets inserted into one company's texts among sequences that were in none",
    statement="extraction",
    adversaries=("user",),
    sees="the model before and after training",
    needs="a language model; trains one block for a few rounds, with the mechanism and without its noise",
    cost="up to half a minute a block",
    applies=_applies,
    run=_run,
    weight=2.0,
    open_ended=True,
)
