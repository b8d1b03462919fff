"""The adversaries, as data: what each sees, what it controls, how many companies help it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Sees = Literal["single updates", "opened sums", "all rounds", "released model", "its own step"]
Controls = Literal["weights", "cohort", "plan"]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """`colluders`: companies that tell it their data and noise; none: all but the victim.

    `protected`: whether a run of the plan shows it what it sees, rather than an experiment alone.
    """

    name: str
    title: str
    sees: frozenset[Sees]
    controls: frozenset[Controls] = frozenset()
    colluders: int | None = 0
    protected: bool = True


_ALL = (
    Adversary(
        name="insider",
        title="Someone who reads one company's update before it is masked, without clipping or noise",
        sees=frozenset({"single updates"}),
        protected=False,
    ),
    Adversary(
        name="coordinator",
        title="The coordinator: it follows the protocol and keeps every opened sum",
        sees=frozenset({"opened sums", "all rounds", "released model"}),
    ),
    Adversary(
        name="colluding-coordinator",
        title="The coordinator together with all companies but the victim",
        sees=frozenset({"single updates", "opened sums", "all rounds", "released model"}),
        colluders=None,
    ),
    Adversary(
        name="malicious-coordinator",
        title="A coordinator that makes weights, cohorts and plans up to learn more",
        sees=frozenset({"opened sums", "all rounds", "released model"}),
        controls=frozenset({"weights", "cohort", "plan"}),
        colluders=None,
    ),
    Adversary(
        name="user",
        title="Anyone who is given the final model",
        sees=frozenset({"released model"}),
    ),
    Adversary(
        name="auditor",
        title="The company itself, which tests its own step against what was promised",
        sees=frozenset({"its own step", "single updates"}),
        colluders=None,
    ),
)

ADVERSARIES = {each.name: each for each in _ALL}


def adversary(name: str) -> Adversary:
    """The adversary of this name. Raises: InputError if there is none."""
    if name not in ADVERSARIES:
        raise InputError("adversary", name, f"expected one of {', '.join(ADVERSARIES)}")
    return ADVERSARIES[name]
