"""A release without noise is written down, shows as infinite everywhere, and ends every finite promise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.coordinating import Coordinator
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import BudgetExceeded
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.accounting import epsilon, guarantee
from fedblocks.privacy.composition import COMPOSITIONS, Terms
from fedblocks.privacy.events import EpochGaussian, Event, GaussianSteps, NoNoise, SkellamSteps
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.ledger_room import remaining
from fedblocks.protocol.messages import refused
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.report import write_report

DELTA = 1e-5
BARE = NoNoise(steps=2)
QUIET = GaussianSteps(sampling_rate=0.01, noise_multiplier=30.0, steps=1, dimension=100)
SKELLAM = SkellamSteps(sampling_rate=0.1, steps=1, l2=1000.0, l1=30_000.0, variance=4e8, beta=2.0**-40)


def company(run: RunFolder, number: int = 0) -> Company:
    home = run.companies / f"company-{number}"
    return Company(home, load_policy(home / "policy.toml"))


def strict(text: str) -> Any:
    """JSON as the standard has it: Python would read and write Infinity and NaN too."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def command(*words: object) -> Any:
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.exception
    return strict(done.stdout)


@pytest.mark.parametrize(
    "others", [[], [QUIET], [SKELLAM], [EpochGaussian(noise_multiplier=9.0, epochs=1), SKELLAM]]
)
def test_its_epsilon_is_infinite_beside_any_others(others: list[Event]) -> None:
    """Would catch an accountant that leaves out what it does not know."""
    assert math.isinf(epsilon([*others, BARE], DELTA))
    assert math.isinf(epsilon([BARE, *others], 0.999))
    assert "epsilon=infinite" in str(guarantee([*others, BARE], DELTA))


@pytest.mark.parametrize("rule", COMPOSITIONS)
def test_it_is_recorded_past_any_ceiling_and_nothing_fits_after_it(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, "acme", 0.0, DELTA, rule=rule) as ledger:
        ledger.check_plan("bare", Terms(BARE, 2))
        charged = ledger.charge(run="bare", round=1, block="b", release_id="1", terms=Terms(BARE, 2))
        assert (charged.epsilon_before, charged.epsilon_after) == (0.0, math.inf)
        ledger.charge(run="bare", round=2, block="b", release_id="2", terms=Terms(BARE, 2))
    with Ledger.open(path, "acme", 1e308, DELTA, rule=rule) as ledger:
        assert [row.epsilon_after for row in ledger.rows()] == [math.inf] * 2
        assert math.isinf(ledger.spent().epsilon)
        assert remaining(read_ledger(path), QUIET, 1e308) == 0
        for use in (
            lambda: ledger.charge(run="r", round=1, block="b", release_id="3", terms=Terms(QUIET, 1)),
            lambda: ledger.check_plan("r", Terms(QUIET, 1)),
        ):
            with pytest.raises(
                BudgetExceeded, match=r"row 1 \(run 'bare'\) was released without noise.*infinite"
            ):
                use()
        assert ledger.verify().rows == 2


@pytest.fixture(scope="module")
def bare(
    small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    """A whole run without noise, as its settings accept."""
    privacy = small.privacy.model_copy(update={"epsilon": None, "i_accept_no_dp": True})
    run = prepare(small.model_copy(update={"privacy": privacy}), tmp_path_factory.mktemp("bare") / "run")
    return run, simulate(run)


def test_a_run_without_noise_is_charged_by_every_company(bare: tuple[RunFolder, dict[str, Any]]) -> None:
    """Would catch what a review found: a noise-free release of everything, and a ledger that says 0."""
    run, result = bare
    for number in range(5):
        with company(run, number).ledger() as ledger:
            assert [row.event for row in ledger.rows()] == [NoNoise(steps=1)] * 4
    assert result["epsilon"] == {f"company-{i}": None for i in range(5)}
    assert strict((run.path / "result.json").read_text())["epsilon"]["company-0"] is None


def test_every_command_shows_it_as_infinite(bare: tuple[RunFolder, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = bare
    shown = command("ledger", "show", run.path)["ledgers"][0]
    assert shown["epsilon"] is None
    assert [row["epsilon_after"] for row in shown["rows"]] == [None] * 4
    assert command("ledger", "verify", run.path)["ok"]
    assert command("account", "digits", "--spent", run.path)["companies"][0]["epsilon"] is None
    assert command("account", "digits", "--spent", run.path)["companies"][0]["rounds_left"] == 0
    for words in (["ledger", "show"], ["account", "digits", "--spent"]):
        assert "infinite" in CliRunner().invoke(cli, [*words, str(run.path)]).output
    command("ledger", "export", run.path, tmp_path / "rows.jsonl")
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        assert strict(line)["epsilon_after"] is None
    page = write_report(run).read_text()
    assert "unbounded from now on" in page


def test_a_plan_with_noise_is_refused_after_one_without(small: SimulationSettings, tmp_path: Path) -> None:
    """The attack: everything is released without noise, then a plan promises epsilon 8 as if nothing had been."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    policy = app.run.companies / "company-0" / "policy.toml"
    policy.write_text("i_accept_no_dp = true\n" + policy.read_text().replace("i_accept_no_dp = false\n", ""))
    promised = app.plan
    app.plan = promised.model_copy(update={"noise_multiplier": 0.0, "run": "bare"})
    with company(app.run).ledger() as ledger:
        ledger.charge(run="bare", round=1, block="block-0", release_id="1", terms=Terms(NoNoise(steps=1), 4))
    assert refused(app.join()[1]) is None
    app.plan = promised
    replies = app.join()
    assert [refused(replies[node]) is None for node in (1, 2)] == [False, True]
    log = (app.run.companies / "company-0" / "company.log").read_text()
    assert "was released without noise, so epsilon is infinite" in log


def test_without_the_policys_consent_nothing_is_released_or_charged(
    small: SimulationSettings, tmp_path: Path
) -> None:
    app = Coordinator(prepare(small, tmp_path / "run"))
    app.plan = app.plan.model_copy(update={"noise_multiplier": 0.0})
    assert {refused(reply) for reply in app.join().values()} == {"privacy"}
    assert app.charges() == 0
