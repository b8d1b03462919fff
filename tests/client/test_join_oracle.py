"""What a coordinator learns of a company's ledger by asking it to join: next to nothing, and that slowly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.coordinating import Coordinator

from fedblocks.client import app as client_app
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import PrivacyError, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy import composition
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.ledger_room import remaining
from fedblocks.protocol.messages import JOIN, TRAIN, JoinRequest, refused
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings

ELSEWHERE = GaussianSteps(sampling_rate=0.5, noise_multiplier=4.0, steps=9, dimension=100)
DAY = 86400.0


def company_of(run: RunFolder, clock: Any = None, **policy: Any) -> Company:
    home = run.companies / "company-0"
    company = Company(home, load_policy(home / "policy.toml").model_copy(update=policy))
    return company if clock is None else replace(company, clock=clock)


@pytest.fixture
def app(small: SimulationSettings, tmp_path: Path) -> Coordinator:
    """Company 0 has spent something in a run that is none of this coordinator's business."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    with company_of(app.run).ledger() as ledger:
        ledger.charge(run="elsewhere", round=1, block="b", release_id="x", terms=Terms(ELSEWHERE, 1))
    return app


def one_round(app: Coordinator, noise: float) -> Plan:
    training = app.plan.training.model_copy(update={"rounds": 1})
    return app.plan.model_copy(update={"training": training, "noise_multiplier": noise})


def bisected(app: Coordinator, messages: int) -> tuple[float, float]:
    """The attack: the noise at which a plan of one round begins to fit, halved by every answer. (low, high)"""
    low, high = 0.2, 20.0  # the first costs more than any ceiling, the last next to nothing
    for _ in range(messages):
        middle = (low * high) ** 0.5
        request = JoinRequest(one_round(app, middle), app.model.shared)
        code = refused(app.ask(1, JOIN, request.to_record()))
        if code == "too_many":
            continue
        low, high = (low, middle) if code is None else (middle, high)
    return low, high


def test_bisecting_what_was_spent_elsewhere_gets_three_answers_a_day(app: Coordinator) -> None:
    """Would catch joins without a limit: 14 messages found the spent epsilon to a hundredth."""
    low, high = bisected(app, 40)
    assert high / low == pytest.approx((20 / 0.2) ** (1 / 8))
    # What is left of the ceiling is then known no better than this: the costs of the two plans around it.
    costs = [
        epsilon([GaussianSteps(sampling_rate=0.5, noise_multiplier=noise, steps=1)], 1e-5)
        for noise in (low, high)
    ]
    assert costs[0] > 1.5 * costs[1]
    assert refused(app.ask(1, JOIN, JoinRequest(app.plan, app.model.shared).to_record())) == "too_many"


def test_rules_budget_and_a_lost_ledger_are_refused_alike(app: Coordinator) -> None:
    """Would catch a code by which a coordinator tells a spent budget from a rule, also where the run has begun."""
    codes = {
        "budget": refused(app.ask(1, JOIN, JoinRequest(app.plan, app.model.shared).to_record())),
        "rule": refused(app.ask(1, JOIN, JoinRequest(one_round(app, 0.0), app.model.shared).to_record())),
    }
    (app.run.companies / "company-0" / "ledger.sqlite").unlink()
    last = one_round(app, 20.0)
    codes["lost"] = refused(app.ask(1, JOIN, JoinRequest(last, app.model.shared).to_record()))
    assert codes == dict.fromkeys(codes, "privacy")
    log = (app.run.companies / "company-0" / "company.log").read_text()
    for reason in ("past the ceiling", "adds no noise", "is missing"):
        assert reason in log


def test_a_refused_join_composes_as_much_whatever_was_spent(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch work on the message's path that hangs on what is left: its time is an answer too."""
    composed: list[object] = []
    monkeypatch.setattr(composition, "epsilon", lambda *v: (composed.append(v), epsilon(*v))[1])
    app = Coordinator(prepare(small, tmp_path / "run"))
    asked = JoinRequest(one_round(app, 0.3), app.model.shared).to_record()
    counts = []
    for noise in (None, 40.0, 9.0, 4.0):
        if noise is not None:
            spent = replace(ELSEWHERE, noise_multiplier=noise)
            with company_of(app.run).ledger() as ledger:
                ledger.charge(
                    run=f"{noise}", round=1, block="b", release_id=f"{noise}", terms=Terms(spent, 1)
                )
        composed.clear()
        assert refused(app.ask(1, JOIN, asked)) == "privacy"
        counts.append(len(composed))
    assert counts == [1] * 4
    assert "past the ceiling" in (app.run.companies / "company-0" / "company.log").read_text()


def test_a_broken_join_is_refused_alike_whether_its_budget_is_there_or_not(app: Coordinator) -> None:
    """Would catch the attack by order: a check between rules and ledger, whose code says that the rules let it pass.

    One plan, so one of the day's new plans, and of each answer the code alone.
    """
    broken: dict[str, Any] = {"x": torch.zeros(1)}
    codes = {
        (what, state): refused(app.ask(1, JOIN, JoinRequest(plan, shared).to_record()))
        for what, plan in {
            "rule": one_round(app, 0.0),
            "spent": app.plan,
            "fits": one_round(app, 20.0),
        }.items()
        for state, shared in {"broken": broken, "true": app.model.shared}.items()
        if (what, state) != ("fits", "true")
    }
    assert codes == dict.fromkeys(codes, "privacy")


@pytest.mark.parametrize("place", ["model_of", "rehearse", "check_part", "own_terms"])
@pytest.mark.parametrize("error", [MemoryError(), ProtocolError("late", "x"), RuntimeError("privacy")])
def test_whatever_refuses_a_join_has_one_code(
    app: Coordinator, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    """Would catch a check whose own code leaves the company; the reason is in its log."""

    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(client_app, place, failing)
    request = JoinRequest(one_round(app, 20.0), app.model.shared)
    assert refused(app.ask(1, JOIN, request.to_record())) == "privacy"
    assert type(error).__name__ in (app.run.companies / "company-0" / "company.log").read_text()


def test_a_join_under_the_name_of_a_run_leaves_that_run_its_shared_state(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch another coordinator that stops a run by joining under its name, with a state of its own."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    request = app.train_request(app.session())
    other = Coordinator(app.run)
    plan = app.plan.model_copy(
        update={"training": app.plan.training.model_copy(update={"message_timeout": 5.0})}
    )
    moved = {name: value + 1 for name, value in app.model.shared.items()}
    for intruding in (JoinRequest(plan, moved), JoinRequest(app.plan, moved)):
        assert refused(other.ask(1, JOIN, intruding.to_record())) is None
    assert refused(app.ask(1, TRAIN, request.to_record())) is None


def test_a_training_that_the_budget_refuses_says_no_more_than_a_rule(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """What another run spends between join and training shows as the same code."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    request = app.train_request(app.session()).to_record()
    company = company_of(app.run)
    fits = remaining(read_ledger(company.home / "ledger.sqlite"), ELSEWHERE, company.policy.epsilon_ceiling)
    with company.ledger() as ledger:
        ledger.charge(run="elsewhere", round=1, block="b", release_id="x", terms=Terms(ELSEWHERE, fits))
    assert refused(app.ask(1, TRAIN, request)) == "privacy"
    assert app.charges() == 1


def test_what_the_ledger_cannot_take_in_is_refused_as_a_rule_is(app: Coordinator) -> None:
    """Would catch the code of an input error raised by the ledger: it would tell what the ledger is like."""
    company = company_of(app.run)
    odd = GaussianSteps(
        sampling_rate=0.1, noise_multiplier=20.0, steps=1
    )  # of real numbers: not to be charged
    with pytest.raises(PrivacyError) as refusal, company.ledger() as ledger:
        ledger.charge(run="r", round=2, block="b", release_id="y", terms=Terms(odd, 1))
    assert refusal.value.code == "privacy"


def test_joins_are_counted_before_anything_else_and_refused_ones_too(app: Coordinator) -> None:
    """Would catch a count that a refusal, an error or a restart undoes."""
    bad = JoinRequest(one_round(app, 0.0), app.model.shared).to_record()
    for _ in range(20):
        assert refused(app.ask(1, JOIN, bad)) == "privacy"
    assert refused(app.ask(1, JOIN, bad)) == "too_many"
    fresh = Coordinator(app.run)  # other contexts, as after a restart of the company's node
    assert refused(fresh.ask(1, JOIN, bad)) == "too_many"
    assert refused(fresh.ask(2, JOIN, bad)) == "privacy"


def test_the_limits_are_of_a_day_and_of_the_policy(app: Coordinator) -> None:
    now = [20_000 * DAY]
    company = company_of(app.run, lambda: now[0], most_joins=5, most_new_plans=2)

    def join(noise: float) -> str:
        try:
            company.count_join(one_round(app, noise))
        except ProtocolError as error:
            return error.code
        return ""

    assert [join(noise) for noise in (1.0, 2.0, 3.0)] == ["", "", "too_many"]
    # A run that is joined again after a crash is no new plan.
    assert [join(noise) for noise in (1.0, 2.0, 1.0)] == ["", "", "too_many"]
    now[0] += DAY - 1
    assert join(1.0) == "too_many"
    now[0] += 1
    assert [join(noise) for noise in (3.0, 1.0, 2.0)] == ["", "", "too_many"]
