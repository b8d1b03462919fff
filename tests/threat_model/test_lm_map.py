"""LM-MAP and its prediction through the run's own mechanism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks import lm_map, posterior_prediction
from fedblocks.threat_model.attacks.lm_map import ATTACK
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject

WIDE = {"model": {"hidden_size": 48, "heads": 4}, "pretraining": {"steps": 20}}


def subject_of(small: SimulationSettings, folder: Path, **changed: dict[str, object]) -> Subject:
    raw = small.model_dump()
    for part, fields in changed.items():
        raw[part] |= fields
    return Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)


@pytest.fixture(scope="module")
def wide(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Wide enough to be searched; attacks leave it as it is."""
    return subject_of(small, tmp_path_factory.mktemp("wide"), **WIDE)


def results(subject: Subject, seconds: float = 300.0) -> list[Result]:
    return [each for each in ATTACK.run(subject.within(Clock(seconds))) if isinstance(each, Result)]


def test_one_and_two_unknown_examples_come_back_without_noise_and_not_with_it(
    wide: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a likelihood of another clip or another noise, and an attack that reads the truth."""
    monkeypatch.setattr(lm_map, "_CASES", {"raw": 2, "release": 2, "sum": 1})
    assert ATTACK.applies(wide) is None
    found = results(wide)
    exact = {each.view: each for each in found if "exactly" in each.statistic}
    labels = {each.view: each for each in found if "labels" in each.statistic}
    assert len(exact) == len(labels) == 3
    for view, each in exact.items():
        assert each.value is not None
        reached = each.control or each.value
        assert reached.value >= 0.6
        assert (each.control is None) == (not each.protected)
        if each.protected:
            assert each.value.value == 0.0
            assert each.outcome == "not found"
        else:
            assert each.outcome == "found"
        own = labels[view].control or labels[view].value
        assert own is not None
        assert own.value >= 0.6


def test_a_clock_that_runs_out_says_nothing(wide: Subject) -> None:
    """Would catch "not found" by an attack that had no time."""
    found = results(wide, 1e-3)
    assert {each.outcome for each in found} <= {"inconclusive", "found"}
    assert any("the time ran out after 1 of" in each.reason for each in found)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"model": {"image_size": 16, "patch_size": 4}}, "unknowns with nothing to start from"),
        ({"model": {"image_size": 24, "patch_size": 4}}, "unknowns an example"),
        ({"training": {"local_steps": 2}, "privacy": {"clip_quantile": 0.5}}, "the clip moves"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_numbers(
    small: SimulationSettings, tmp_path: Path, changed: dict[str, dict[str, object]], why: str
) -> None:
    """Would catch a search that cannot end, reported as one that found nothing."""
    assert why in str(ATTACK.applies(subject_of(small, tmp_path, **changed)))


def test_a_prediction_says_where_there_is_nothing_to_predict(wide: Subject) -> None:
    """Would catch an audit that ends in an error for a plan without noise, or for a company without examples."""
    attack = posterior_prediction.ATTACK
    silent = replace(wide, plan=wide.plan.changed(noise_multiplier=0.0))
    assert "adds no noise" in str(attack.applies(silent))
    first = next(iter(wide.private))
    fewer = replace(wide, private=wide.private | {first: wide.private[first][:0]})
    found = {each.company: each for each in attack.run(fewer) if isinstance(each, Result)}
    assert found[first].reason == f"{first} holds no example"
    assert {each.outcome for name, each in found.items() if name != first} <= {"not found", "partly found"}


def test_every_company_gets_its_prediction(wide: Subject) -> None:
    """Would catch a prediction that forgets the plan's noise: without it, every company is predicted to lose all."""
    attack = posterior_prediction.ATTACK
    assert attack.applies(wide) is None
    found = [each for each in attack.run(wide) if isinstance(each, Result)]
    assert {each.company for each in found} == set(wide.private)
    for each in found:
        assert each.statement == "prediction"
        assert each.value is not None
        assert abs(each.value.value) < 3.0
        assert each.wins_at is not None
        assert each.wins_at < wide.plan.noise_multiplier
