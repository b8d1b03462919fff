"""Certificate and estimate on a small run: what they report of sound steps, of a planted fault and without time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.accounting import epsilon
from fedblocks.protocol.release import release_event
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.attacks import attack, epsilon_certificate
from fedblocks.threat_model.ceilings import (
    event_of_release,
    releases_of,
    tradeoff_of,
    tradeoff_of_run,
)
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.epsilon.defects import DEFECTS
from fedblocks.threat_model.exhibits import Kept
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.sentences import sentence
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.tradeoff import GaussianTradeOff, gaussian_epsilon


@pytest.fixture(scope="module")
def subject(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    run = prepare(small, tmp_path_factory.mktemp("epsilon") / "run")
    simulate(run)
    return Subject.of(RunFolder.existing(Path(run.path)), block=0)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epsilon_certificate, "_REPEATED", 150)
    monkeypatch.setattr(epsilon_certificate, "_MOST_RELEASES", 4)


def results(name: str, subject: Subject) -> list[Result]:
    found: Iterable[Result | Kept] = attack(name).run(subject)
    return [each for each in found if isinstance(each, Result)]


def test_a_sound_run_holds_by_block_and_company(subject: Subject) -> None:
    """Would catch a claim of more than the ledger's, a company left out, and a certificate called an estimate."""
    found = results("epsilon-certificate", subject)
    assert {each.outcome for each in found} == {"held"}
    assert {each.statement for each in found} == {"certificate"}
    companies = {each.company for each in found if "every canary" in each.view}
    assert companies == set(subject.cohort(0))
    for each in found:
        assert each.value is not None
        assert each.control is not None
        assert each.baseline is not None
        assert each.ceiling is not None
        assert each.value.value < each.ceiling <= each.control.value
        assert each.baseline.value == 0
        assert "a lower bound at" in sentence(each)
    sampled = next(each for each in found if "accounted" in each.view)
    whole = event_of_release(subject, 0).times(int(sampled.budget["releases"]))
    assert sampled.ceiling == pytest.approx(epsilon([whole], subject.plan.delta))


def test_an_estimate_says_that_it_is_conditional(subject: Subject) -> None:
    """Would catch an estimate that refutes, and one that is not near the truth of a Gaussian step."""
    found = results("epsilon-estimate", subject)
    claimed = gaussian_epsilon(1 / subject.plan.noise_multiplier, subject.plan.delta)
    assert {each.statement for each in found} == {"estimate"}
    for each in found:
        assert each.outcome == "held"
        assert "conditional" in each.reason
        assert each.value is not None
        assert each.value.low < claimed < each.value.high
    with DEFECTS["noise times .5"].planted():
        above = results("epsilon-estimate", subject)
    assert {each.outcome for each in above} == {"inconclusive"}


def test_missing_noise_is_refuted_in_every_view(subject: Subject) -> None:
    """Would catch an audit that looks at the plan's numbers instead of at the step."""
    with DEFECTS["noise off"].planted():
        found = results("epsilon-certificate", subject)
    assert {each.outcome for each in found} == {"refuted"}
    assert all("is refuted" in each.reason for each in found)


def test_half_the_noise_is_refuted_where_the_example_is_known_to_take_part(subject: Subject) -> None:
    with DEFECTS["noise times .5"].planted():
        found = results("epsilon-certificate", subject)
    assert "refuted" in {each.outcome for each in found if "known" in each.view}


def test_a_claim_beyond_what_canaries_can_show_is_no_failure_and_no_success(subject: Subject) -> None:
    """Epsilon 33 and more. Would catch "held" for want of power, and an audit that is inconclusive for ever."""
    loose = replace(subject, plan=subject.plan.changed(noise_multiplier=0.2))
    found = results("epsilon-certificate", loose)
    assert {each.outcome for each in found} == {"not applicable"}
    assert all(
        re.search(r"[\d,]+ (canaries|releases) cannot refute the claimed", each.reason) for each in found
    )


def test_too_few_releases_to_refute_anything_do_not_make_an_audit_inconclusive(subject: Subject) -> None:
    """Of one release with batches of a tenth, most canaries leave no trace even without noise. Would catch a short
    run whose audit can never pass, however long it takes."""
    training = subject.plan.training.model_dump() | {"rounds": 2, "sampling_rate": 0.1}
    short = replace(subject, plan=subject.plan.changed(training=training, noise_multiplier=0.5))
    found = [each for each in results("epsilon-certificate", short) if "sampled as accounted" in each.view]
    assert {each.outcome for each in found} == {"not applicable"}
    assert all("cannot refute the claimed" in each.reason for each in found)


def test_without_time_nothing_is_said_to_hold(subject: Subject) -> None:
    """Would catch a claim that holds for want of a test."""
    for name in ("epsilon-certificate", "epsilon-estimate"):
        found = results(name, subject.within(Clock(0.0)))
        assert {each.outcome for each in found} == {"inconclusive"}
        assert all(each.reason for each in found)


def test_the_audit_of_the_same_seed_finds_the_same(subject: Subject) -> None:
    """Would catch coins or thresholds that depend on anything but the names of the experiment."""
    first, second = (results("epsilon-estimate", subject) for _ in range(2))
    assert [each.value for each in first] == [each.value for each in second]
    other = results("epsilon-estimate", replace(subject, seed=1))
    assert [each.value for each in first] != [each.value for each in other]


def test_a_plan_without_noise_has_no_epsilon(subject: Subject) -> None:
    loud = replace(subject, plan=subject.plan.changed(noise_multiplier=0.0))
    for name in ("epsilon-certificate", "epsilon-estimate"):
        why = attack(name).applies(loud)
        assert why is not None
        assert "no noise" in why
        assert attack(name).applies(subject) is None


def test_ceilings_are_those_of_the_runs_own_account(subject: Subject) -> None:
    """Would catch amplification in the ceiling of somebody who knows of the part taken, and a run counted short."""
    one = tradeoff_of(subject, 0)
    assert one == GaussianTradeOff(1 / subject.plan.noise_multiplier)
    size = event_of_release(subject, 0).values
    assert event_of_release(subject, 0) == release_event(subject.plan, size)
    assert releases_of(subject, None) == subject.plan.training.releases(subject.plan.model.blocks)
    block, run = tradeoff_of_run(subject, 0).hits(0.01), tradeoff_of_run(subject).hits(0.01)
    assert 0.01 < block <= run
