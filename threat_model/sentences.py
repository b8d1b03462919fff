"""A result in words: made when it is shown, from what is stored and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .intervals import Estimate
from .results import Outcome, Result

# The one to be read first.
ORDER: tuple[Outcome, ...] = (
    "refuted", "found", "partly found", "inconclusive", "not found", "held", "not applicable",
)  # fmt: skip


def figure(value: float, unit: str) -> str:
    if math.isinf(value):
        return "unbounded"
    if unit == "share":
        return f"{100 * value:.3g}%"
    if unit == "dB":
        return f"{value:+.1f} dB" if abs(value) >= 0.05 else "0.0 dB"
    return f"{value:.3g}"


def interval(estimate: Estimate, unit: str) -> str:
    """The interval in words; of no success at all its upper limit, of nothing else its lower one."""
    if math.isinf(estimate.high) and math.isfinite(estimate.low):
        return f"a lower bound at {100 * estimate.level:.4g}%"
    if math.isinf(estimate.low) or math.isinf(estimate.high):
        return "no interval from one group"
    if estimate.low == estimate.high:
        return "exact"
    level = f"{100 * estimate.level:.4g}%" if estimate.level < 0.9999 else "family-wise"
    if estimate.method == "clopper-pearson" and estimate.value == 0:
        return f"at most {figure(estimate.high, unit)}, {level} interval"
    if estimate.method == "clopper-pearson" and estimate.value == 1:
        return f"at least {figure(estimate.low, unit)}, {level} interval"
    return f"{level} interval {figure(estimate.low, unit)} to {figure(estimate.high, unit)}"


def counted(estimate: Estimate, unit: str) -> str:
    """`3 of 40 (7.5%)` for a proportion, else the figure."""
    if estimate.method == "clopper-pearson":
        return f"{round(estimate.value * estimate.n)} of {estimate.n}"
    return figure(estimate.value, unit)


def sentence(result: Result) -> str:
    """One result with its interval and everything that it has to be read beside."""
    if result.outcome == "not applicable":
        return f"{result.attack} does not apply: {result.reason}."
    head = result.outcome.capitalize()
    if result.value is None:
        return f"{head}: {result.statistic}, {result.view}: {result.reason}."
    text = f"{head}: {result.statistic}, {result.view}: {counted(result.value, result.unit)} ("
    text += interval(result.value, result.unit) + ")"
    beside = []
    if result.worst_decile is not None:
        beside.append(f"worst decile {figure(result.worst_decile, result.unit)}")
    if result.control is not None:
        beside.append(f"control without noise {counted(result.control, result.unit)}")
    if result.baseline is not None:
        beside.append(f"without the release {counted(result.baseline, result.unit)}")
    if result.ceiling is not None:
        beside.append(f"no attack can pass {figure(result.ceiling, result.unit)}")
    if result.wins_at is not None:
        beside.append(f"starts to win at a noise multiplier of {result.wins_at:.2g}")
    text += "".join(f"; {each}" for each in beside)
    if result.reason:
        text += f"; {result.reason}"
    return text + "."


@dataclass(frozen=True)
class Group:
    """The results of one statistic of one attack on one view, over blocks and companies; `worst` stands for them."""

    worst: Result
    results: tuple[Result, ...]

    @property
    def where(self) -> str:
        blocks = sorted({r.block for r in self.results if r.block is not None})
        if not blocks:
            return ""
        if len(blocks) == 1:
            return f"block {blocks[0]}"
        return f"worst of {len(blocks)} blocks: {self.worst.block}"


def grouped(results: Iterable[Result]) -> list[Group]:
    """Groups, those to be read first in front; within one the worst is the outcome first in `ORDER`, then the figure
    most above its baseline."""
    by_kind: dict[tuple[str, str, str, str], list[Result]] = {}
    for result in results:
        kind = (result.statement, result.attack, result.view, result.statistic)
        by_kind.setdefault(kind, []).append(result)
    groups = [Group(min(each, key=_gravity), tuple(each)) for each in by_kind.values()]
    return sorted(groups, key=lambda group: (not group.worst.protected, ORDER.index(group.worst.outcome)))


def _gravity(result: Result) -> tuple[int, float]:
    if result.value is None:
        return ORDER.index(result.outcome), 0.0
    base = 0.0 if result.baseline is None else result.baseline.value
    return ORDER.index(result.outcome), base - result.value.value


def count_words(results: Sequence[Result]) -> str:
    """`1 refuted, 2 found, 14 not found`, of the protected ones."""
    counts = {
        outcome: sum(r.outcome == outcome and r.protected for r in results)
        for outcome in ORDER if outcome != "not applicable"
    }  # fmt: skip
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n) or "nothing was attacked"
