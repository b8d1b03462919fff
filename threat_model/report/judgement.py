"""What an epsilon and a delta are worth, in plain words.

Of two equally likely worlds, with one example and without it, the best test is right with probability at most
(exp(epsilon) + delta) / (1 + exp(epsilon)) (Kairouz, Oh, Viswanath 2015): the certainty that the promise allows. The
bands are this package's own; no standard sets any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...privacy.accounting import round_up

FAIR = 3.0
MOST_USEFUL = 10.0
"""The largest epsilon that a report lets pass as a promise at all; above it, others must say why they accept it."""
MEANINGLESS = 20.0
_BANDS = (
    (1.0, "strong"),
    (FAIR, "fair"),
    (MOST_USEFUL, "weak as a worst case"),
    (MEANINGLESS, "very weak"),
    (math.inf, "no protection worth the name"),
)
_LARGEST_DELTA = 1e-2  # where the number of examples is not known


@dataclass(frozen=True)
class Judgement:
    """`good` none: neither to be refused nor to be passed without a word. `caution`: passed, but with a word.
    `topic`: the answer in a few words; `text`: in full."""

    good: bool | None
    topic: str
    text: str
    caution: bool = False


def certainty(epsilon: float, delta: float = 0.0) -> float:
    """The most that a test of even odds can be right by the promise alone."""
    if epsilon > 700:
        return 1.0
    return min(1.0, (math.exp(epsilon) + delta) / (1 + math.exp(epsilon)))


def judge_epsilon(epsilon: float | None) -> Judgement:
    """None: no finite epsilon is known."""
    if epsilon is None or not math.isfinite(epsilon):
        return Judgement(False, "no finite ε holds", "There is no promise: no finite ε is known.")
    word = next(word for most, word in _BANDS if epsilon <= most)
    sure = percent_below_one(certainty(epsilon))
    text = (
        f"As a promise, ε = {number(epsilon)} is {word}: by it alone, someone with even odds on whether one example "
        f"was used could become {sure} sure"
    )
    shown = f"ε = {number(epsilon)}"
    if epsilon > MEANINGLESS:
        return Judgement(False, f"{shown} is {word}", f"{text}, so it rules nothing out.")
    if epsilon > MOST_USEFUL:
        return Judgement(None, f"{shown} is {word}", f"{text}. Somebody must say why that is accepted.")
    within = f"{shown} is within this gate's limit of {MOST_USEFUL:g}"
    if epsilon > FAIR:
        return Judgement(True, f"{within}, but {word}", f"{text}.", caution=True)
    return Judgement(True, f"{within}, a {word} promise", f"{text}.")


def judge_delta(delta: float, examples: int | None) -> Judgement:
    """`examples`: of the company with the most; none where nobody knows here."""
    if examples is None:
        text = (
            f"δ = {plain(delta)} is the chance at which the promise may fail altogether; each company has to hold it "
            "against its own number of examples n: it should be well below 1/n."
        )
        if delta > _LARGEST_DELTA:
            text = f"δ = {plain(delta)} is far too large for any data set: {text}"
            return Judgement(False, f"δ = {plain(delta)} is too large for any data set", text)
        return Judgement(None, f"δ = {plain(delta)} is for each company to hold against its own 1/n", text)
    exposed = delta * examples
    if exposed >= 1:
        return Judgement(
            False,
            f"δ = {plain(delta)} makes the promise void",
            f"δ = {plain(delta)} makes the promise void: a system that published {math.floor(exposed):,} of "
            f"{examples:,} examples outright could keep it.",
        )
    if exposed > 0.1:
        return Judgement(
            None,
            f"δ = {plain(delta)} is large beside 1/n",
            f"δ = {plain(delta)} is {exposed:.2g} of 1/n for n = {examples:,} examples; below a tenth is usual.",
        )
    text = f"δ = {plain(delta)} is {exposed:.2g} of 1/n for the largest company's n = {examples:,} examples."
    return Judgement(True, "δ is small beside 1/n", text)


def plain(value: float) -> str:
    """1e-5 rather than 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def number(epsilon: float) -> str:
    """Rounded up: a shown epsilon is never below the one spent."""
    return f"{round_up(epsilon):g}"


def percent_below_one(share: float) -> str:
    """A certainty that is not one is never shown as 100%."""
    if share < 0.995:
        return f"{100 * share:.0f}%"
    for digits in range(1, 10):
        shown = f"{100 * share:.{digits}f}"
        if float(shown) < 100:
            return f"{shown}%"
    return "practically 100%"
