"""An audit's gate, verdict, sentences and file: made-up results, so that every outcome occurs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedblocks.errors import InputError
from fedblocks.threat_model.audit_file import Audit, Verdict, schema
from fedblocks.threat_model.gate import Gate
from fedblocks.threat_model.intervals import Estimate, mean, proportion
from fedblocks.threat_model.results import FAILED_CONTROL, Result
from fedblocks.threat_model.sentences import ORDER, count_words, grouped, sentence

REPOSITORY = Path(__file__).parents[2]


def result(outcome: str = "not found", successes: int = 0, **changed: Any) -> Result:
    fields: dict[str, Any] = {
        "attack": "linear-span", "adversary": "coordinator", "view": "opened sum", "statement": "reconstruction",
        "statistic": "exact", "unit": "share", "outcome": outcome, "block": 0,
        "value": proportion(successes, 6), "control": proportion(6, 6), "baseline": proportion(0, 6),
        "reason": "a reason" if outcome in ("refuted", "inconclusive", "not applicable") else "",
    }  # fmt: skip
    return Result.model_validate(fields | changed)


def audit(*results: Result, gate: Gate | None = None) -> Audit:
    limits = gate or Gate()
    return Audit(
        version="0", run="run", plan="0" * 64, round=3, blocks=(0,), adversaries=("coordinator",), seed=0,
        minutes=5.0, seconds=1.0, gate=limits, results=results, verdict=Verdict.of(results, limits),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ((result(),), 0),
        ((result("held", statement="conformance", adversary="auditor"),), 0),
        ((result(), result("found", 1, view="release")), 3),
        ((result(), result("partly found", 0, view="release")), 3),
        ((result(), result("refuted", statement="certificate", view="release")), 3),
        ((result(), result("inconclusive", view="release", value=None)), 4),
        ((result("found", 6, view="release"), result("inconclusive", value=None)), 3),
        ((result("found", 6, view="raw", protected=False), result()), 0),
        ((result("found", 6, view="release", statement="property"), result()), 0),
        ((result("found", 6, view="raw", protected=False),), 4),
        ((result("not applicable", value=None),), 4),
        ((), 4),
    ],
)
def test_exit_codes(results: tuple[Result, ...], code: int) -> None:
    """Would catch a pass of an audit that found something, refuted a claim, or attacked nothing."""
    assert Verdict.of(results, Gate()).exit_code == code


def test_a_failed_control_is_open_unless_another_test_of_the_same_view_answers() -> None:
    """Would catch a weak test that fails a whole audit, one covered by another view, one cut short."""

    def member(outcome: str = "not found", reason: str = "", **changed: Any) -> Result:
        fields: dict[str, Any] = {"statement": "membership", "reason": reason} | changed
        return result(outcome, **fields)

    works, failed = member(statistic="RMIA"), f"{FAILED_CONTROL}: its area is 0.55"
    cases = [
        (member("inconclusive", failed, statistic="LiRA"), 0),
        (member("inconclusive", "the time ran out", statistic="LiRA"), 4),
        (member("inconclusive", failed, statistic="LiRA", block=1), 4),
        (member("inconclusive", failed, statistic="LiRA", view="release"), 4),
        (result("inconclusive", reason=failed), 4),
    ]
    assert [audit(works, each).verdict.exit_code for each, _ in cases] == [code for _, code in cases]
    assert audit(member(control=None), cases[0][0]).verdict.exit_code == 4


def membership(value: float, half: float = 0.05) -> Result:
    area = Estimate(value=value, low=value - half, high=value + half, n=100, method="delong")
    return result(
        "found", attack="sum-membership", statement="membership", statistic="AUC", unit="auc", value=area,
        control=None, baseline=None,
    )  # fmt: skip


@pytest.mark.parametrize(("area", "code"), [(0.65, 0), (0.91, 0), (0.94, 3), (0.95, 3)])
def test_membership_fails_where_even_its_lower_end_is_too_high(area: float, code: int) -> None:
    """Would catch a pass of next to no noise, and an epsilon of 8 that fails for what it allows."""
    assert Verdict.of((membership(area),), Gate()).exit_code == code
    assert Verdict.of((membership(area),), Gate(membership=0.55)).exit_code == 3


def gate(tmp_path: Path, text: str) -> Gate:
    (tmp_path / "gate.toml").write_text(text)
    return Gate.load(tmp_path / "gate.toml")


def test_a_limit_on_the_upper_end_fails_what_was_not_found(tmp_path: Path) -> None:
    """0 of 6 is at most 46%: a limit of 10% cannot be met by so few cases."""
    strict = gate(tmp_path, '[[limit]]\nstatement = "reconstruction"\nof = "high"\nmost = 0.1\n')
    verdict = Verdict.of((result(),), strict)
    assert verdict.exit_code == 3
    assert "high 0.4593 is above the limit of 0.1" in verdict.failures[result().key][0]
    assert Verdict.of((result(value=proportion(0, 60)),), strict).exit_code == 0


def test_a_limit_that_concerns_no_result_is_no_pass(tmp_path: Path) -> None:
    """Would catch a gate with a misspelt statistic that passes everything."""
    misspelt = gate(tmp_path, '[[limit]]\nstatistic = "exakt"\nmost = 0.1\n')
    assert Verdict.of((result(),), misspelt).exit_code == 4


@pytest.mark.parametrize(
    ("limit", "results"),
    [
        ({"of": "worst_decile"}, (result(),)),
        ({"attack": "linear-span"}, (result(view="raw", protected=False), result(attack="lm-map"))),
        ({"statement": "membership"}, (result(), result("inconclusive", statement="membership", value=None))),
    ],
)
def test_a_limit_on_a_figure_that_no_result_has_is_no_pass(
    limit: dict[str, str], results: tuple[Result, ...]
) -> None:
    """Would catch a limit on the worst decile of what has none, and one on a view that never fails."""
    limits = Gate.model_validate({"limit": [{"most": 0.1} | limit]})
    verdict = Verdict.of(results, limits)
    assert verdict.exit_code == 4
    assert any("has that figure" in why for why in verdict.inconclusive.values())


def test_a_limit_on_what_does_not_apply_to_the_run_passes() -> None:
    """Would catch a gate for several kinds of runs that none of them can pass."""
    limits = Gate.model_validate({"limit": [{"most": 0.1, "statement": "extraction"}]})
    images = (result(), result("not applicable", statement="extraction", view="run", value=None))
    assert Verdict.of(images, limits).exit_code == 0


def test_a_gate_may_let_findings_and_open_questions_pass(tmp_path: Path) -> None:
    lax = gate(tmp_path, 'found = "passes"\ninconclusive = "passes"\n')
    found = (result("found", 1), result("inconclusive", view="release", value=None))
    assert Verdict.of(found, lax).exit_code == 0
    assert Verdict.of((result("refuted"),), lax).exit_code == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('fond = "fails"', "fond='fails': unknown field"),
        ('[[limit]]\nmost = "much"', "limit.0.most='much'"),
        ("[[limit]]\nmost = nan", "limit.0.most=nan"),
        ('[[limit]]\nof = "mean"\nmost = 1', "limit.0.of='mean'"),
        ('[[limit]]\nstatement = "reconstructions"\nmost = 1', "limit.0.statement='reconstructions'"),
        ("[[limit]]", "limit.0.most"),
        (
            '[[limit]]\nmost = 1\n[[limit]]\nadversary = "cordinator"\nmost = 1',
            "limit.1.adversary='cordinator'",
        ),
        ('[[limit]]\nattack = "linear_span"\nmost = 1', "limit.0.attack='linear_span'"),
        ("[[limit", "--gate="),
    ],
)
def test_a_bad_gate_is_refused_by_field_value_and_rule(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        gate(tmp_path, text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


BENT: dict[str, Callable[[dict[str, Any]], object]] = {
    "a verdict that the results deny": lambda a: a["verdict"].update(ending="passed", failures={}),
    "a result that was changed": lambda a: a["results"][0].update(outcome="not found"),
    "two results of one key": lambda a: a["results"].append(a["results"][0]),
    "an outcome of no meaning": lambda a: a["results"][0].update(outcome="safe"),
    "an interval beside its figure": lambda a: a["results"][0]["value"].update(low=0.9),
    "a text for a number": lambda a: a["results"][0]["value"].update(value="0"),
    "a field that nobody knows": lambda a: a.update(note="all is well"),
    "another format": lambda a: a.update(format=1),
}


@pytest.mark.parametrize("name", BENT)
def test_an_audit_that_does_not_agree_with_itself_is_none(name: str) -> None:
    """Would catch "passed" over a found example in a file that somebody has edited."""
    raw = audit(result("found", 1), result("inconclusive", view="release", value=None)).model_dump(
        mode="json"
    )
    Audit.model_validate_json(json.dumps(raw))
    BENT[name](raw)
    with pytest.raises(ValidationError):
        Audit.model_validate_json(json.dumps(raw))


def test_the_published_schema_is_the_codes() -> None:
    """Would catch a schema in docs/ that machines check against and no file follows."""
    published = json.loads((REPOSITORY / "docs" / "audit.schema.json").read_text())
    assert published == json.loads(json.dumps(schema()))


def test_results_need_what_their_outcome_says() -> None:
    for outcome in ("refuted", "inconclusive", "not applicable"):
        with pytest.raises(ValidationError, match="needs a reason"):
            result(outcome, reason="")
    with pytest.raises(ValidationError, match="needs a value"):
        result("not found", value=None)


def test_what_was_not_found_says_its_upper_limit_and_what_stands_beside() -> None:
    text = sentence(result(wins_at=0.03, ceiling=0.25, worst_decile=0.0))
    assert "0 of 6 (at most 45.9%, 95% interval)" in text
    assert "control without noise 6 of 6" in text
    assert "without the release 0 of 6" in text
    assert "no attack can pass 25%" in text
    assert "starts to win at a noise multiplier of 0.03" in text
    assert "safe" not in text


def test_a_decibel_gain_reads_as_such() -> None:
    gain = mean(np.array([1.0, 2.0, 3.0]))
    text = sentence(
        result(value=gain, unit="dB", statistic="gain over prior-only", control=None, baseline=None)
    )
    assert "+2.0 dB (95% interval -0.5 dB to +4.5 dB)" in text


def test_a_group_stands_for_its_worst_block() -> None:
    """Would catch a leak in one block hidden behind the others."""
    results = [result(block=0), result("found", 2, block=1), result("found", 5, block=2), result(block=3)]
    (group,) = grouped(results)
    assert group.worst.block == 2
    assert group.where == "worst of 4 blocks: 2"
    assert count_words(results) == "2 found, 2 not found"


def test_what_is_to_be_read_first_stands_first() -> None:
    every = [
        result(outcome, 1, view=outcome, value=None if outcome == "not applicable" else proportion(1, 6))
        for outcome in reversed(ORDER)
    ]
    assert [g.worst.outcome for g in grouped(every)] == list(ORDER)
