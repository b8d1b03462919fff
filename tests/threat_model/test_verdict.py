"""From scores of members and others to an outcome."""

from __future__ import annotations

import numpy as np
import pytest

from fedblocks.threat_model.membership.verdict import judged, powerless
from fedblocks.threat_model.roc import auc


@pytest.mark.parametrize(
    ("cases", "shift", "cut_short", "outcome"),
    [
        (400, 0.0, "", "not applicable"),
        (10, 0.0, "", "inconclusive"),  # too few to say so
        (400, 0.0, "the time ran out", "inconclusive"),
        (400, 1.0, "", "not found"),  # the control works
    ],
)
def test_only_a_control_that_surely_fails_is_a_reason_why_a_test_does_not_apply(
    cases: int, shift: float, cut_short: str, outcome: str
) -> None:
    """Would catch a pass for a test with too few cases or too little time."""
    rng = np.random.default_rng(0)
    control = auc(rng.standard_normal(cases) + shift, rng.standard_normal(cases))
    members, others = rng.standard_normal((2, cases))
    found = judged(members, others, control=control, ceiling=None, cut_short=cut_short)
    assert powerless(found, control, "the others hide one").outcome == outcome
