"""Outcomes of an attack at their limits, and what is said of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedblocks.threat_model.attack_budget import AttackBudget
from fedblocks.threat_model.metrics import Score
from fedblocks.threat_model.verdicts import Evidence, Verdict, sentences

BY = "LM-MAP (6 starts of 16 steps on the noise draws, then 30 steps on everything)"


def score(mean: float, low: float, high: float) -> Score:
    return Score(mean, low, high, high, 6)


def evidence(**changed: Any) -> Evidence:
    """Of six cases, none recovered, under a control that succeeded."""
    values: dict[str, Any] = {
        "cases": 6, "exact": 0, "control_exact": 3, "reidentified": 1, "reidentified_by_prior": 0,
        "gain": score(-0.2, -1.0, 0.5),
    }  # fmt: skip
    return Evidence(**values | changed)


@pytest.mark.parametrize(
    ("changed", "outcome", "controlled", "said"),
    [
        (
            {"exact": 2, "control_exact": 5, "gain": score(20, 10.04, 30)}, "recovered", True,
            ("Recovered 2 of 6 exactly by BY; +20.0 dB over prior-only (95% interval +10.0 to +30.0). Control "
            "without noise: 5 of 6 exact."),
        ),
        (
            {"gain": score(2, 0.51, 3)}, "partly recovered", True,
            ("Partly recovered by BY: none of 6 exactly, but +2.0 dB over prior-only (95% interval +0.5 to +3.0) and "
            "1 of 6 re-identified. Control without noise: 3 of 6 exact."),
        ),
        (
            {"control_exact": None, "reidentified": 2, "gain": score(0.2, -0.5, 1)}, "partly recovered", False,
            ("Partly recovered by BY: none of 6 exactly, but +0.2 dB over prior-only (95% interval -0.5 to +1.0) and "
            "2 of 6 re-identified."),
        ),
        (
            {"gain": score(0.6, 0.5, 0.7)}, "not recovered", True,
            ("Not recovered by BY: none of 6 exactly; +0.6 dB over prior-only (95% interval +0.5 to +0.7). Control "
            "without noise: 3 of 6 exact."),
        ),
        (
            {"control_exact": 2, "reidentified": 0, "reidentified_by_prior": 3}, "inconclusive", False,
            ("Inconclusive: the control failed. BY recovers 2 of 6 even without noise, so its failure on the release "
            "(-0.2 dB over prior-only (95% interval -1.0 to +0.5)) says nothing."),
        ),
        (
            {"control_exact": None}, "inconclusive", False,
            ("Inconclusive: the control failed. BY recovers 0 of 6 even without noise, so its failure on the release "
            "(-0.2 dB over prior-only (95% interval -1.0 to +0.5)) says nothing."),
        ),
    ],
)  # fmt: skip
def test_what_is_judged_stored_and_said(
    changed: dict[str, Any], outcome: str, controlled: bool, said: str
) -> None:
    """Would catch a limit that has moved, a number that is not kept, a sentence that does not follow from them."""
    verdict = Verdict.of(evidence(**changed))
    assert verdict.outcome == outcome
    kept = verdict.to_json()
    assert kept["recovered"] == (outcome in ("recovered", "partly recovered"))
    assert kept["control_recovered"] == controlled
    assert not any(isinstance(value, str) and value != outcome for value in kept.values())
    view = {"name": "opened_sum", "gain": {"psnr": verdict.evidence.gain.to_json()}} | kept
    settings = {"budget": vars(AttackBudget())}
    audit = json.loads(json.dumps({"attack": "LM-MAP", "settings": settings, "views": [view]}))
    assert Verdict.from_json(audit["views"][0]) == verdict
    title = "The securely opened sum, all examples but one known to the attacker"
    assert sentences(audit) == [(title, said.replace("BY", BY))]


def test_an_outcome_stays_as_it_was_judged() -> None:
    """Would catch a report that judges anew, by limits of another version, what the audit has said already."""
    verdict = Verdict.of(evidence())
    kept = verdict.to_json() | {"outcome": "inconclusive", "gain": {"psnr": verdict.evidence.gain.to_json()}}
    assert Verdict.from_json(kept).outcome == "inconclusive"
