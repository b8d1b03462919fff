"""What is made up for one company is refused by the company's own code, and a company that takes it is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedblocks.client import app as client_app
from fedblocks.client.company import Company
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.secure_aggregation import Session, wire
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model import made_up
from fedblocks.threat_model.attacks.made_up_for_one import ATTACK
from fedblocks.threat_model.subject import Subject

CODES = {
    "another model than the session's": "wrong_session",
    "a session for a model of its own": "wrong_session",
    "a cohort below the minimum": "small_cohort",
    "another cohort in a later round": "bad_session",
    "a threshold of two": "low_threshold",
    "a plan of its own": "bad_signature",
    "a session for another plan": "bad_session",
    "a plan without noise": "privacy",
}


@pytest.fixture(scope="module")
def run(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return prepare(small, tmp_path_factory.mktemp("made") / "run")


def files_of(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def test_every_attempt_ends_in_its_code_and_the_run_is_left_alone(run: RunFolder) -> None:
    """Would catch a refusal of something else than the attempt, and an audit that charges the run's companies."""
    before = files_of(run)
    results = list(ATTACK.run(Subject.of(run)))
    found = {each.statistic.removeprefix("refused: "): each.reason for each in results}
    assert found == {name: f"the company refused: {code}" for name, code in CODES.items()}
    assert {each.outcome for each in results} == {"held"}
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("name", "weaken"),
    [
        ("another cohort in a later round", (client_app, "_only_cohort", lambda *given: None)),
        ("a plan of its own", (made_up.ChannelKey, "check", lambda *given: None)),
        ("a session for a model of its own", (wire, "same", lambda *given: True)),
    ],
)
def test_a_company_without_the_check_is_found_out(
    name: str, weaken: tuple[object, str, object], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an attempt that is refused for another reason than its own: a seeded defect in the company's code
    must change the answer."""
    with made_up.rebuilt(run, Subject.of(run).model, 0) as coordinator:
        monkeypatch.setattr(*weaken)
        try:
            code = made_up.ATTEMPTS[name][0](coordinator)
        except ProtocolError as error:
            code = error.code
    assert code != CODES[name]


def test_companies_that_cannot_train_show_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a model of its own that is "refused" by companies that would not have trained any."""
    monkeypatch.setattr(client_app, "train_block", lambda *given: 1 / 0)
    (result,) = ATTACK.run(Subject.of(run))
    assert result.outcome == "inconclusive"
    assert "refused to train in an honest round" in result.reason


def test_a_refusal_for_another_reason_shows_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a check that is gone while something else fails: a bad message, a full disk."""
    original = client_app._only_cohort

    def broken(company: Company, session: Session) -> None:
        if session.round > 1:
            raise OSError("no space left")
        original(company, session)

    monkeypatch.setattr(client_app, "_only_cohort", broken)
    found = {each.statistic: each for each in ATTACK.run(Subject.of(run))}
    other = found.pop("refused: another cohort in a later round")
    assert other.outcome == "inconclusive"
    assert "where bad_session was expected" in other.reason
    assert {each.outcome for each in found.values()} == {"held"}


def test_companies_that_refuse_everything_show_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch refusals that are counted although the companies would have refused an honest run too."""
    monkeypatch.setattr(client_app, "rehearse", lambda *given: 1 / 0)
    (result,) = ATTACK.run(Subject.of(run))
    assert (result.outcome, result.reason) == (
        "inconclusive", "an honest message was refused too: privacy: company-0 refused an honest message, query.join"
    )  # fmt: skip
