"""Against whom a figure holds: shared noise that tolerates no colluder is a weaker promise, and says so."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from typer.testing import CliRunner

from fedblocks.blocks import build_model
from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.accounting import epsilon, guarantee
from fedblocks.privacy.accounting import shown as shown_as
from fedblocks.privacy.adversaries import ANYONE, COORDINATOR, UNKNOWN, seen_by_company
from fedblocks.privacy.composition import COMPOSITIONS, Terms
from fedblocks.privacy.events import GaussianSteps, NoNoise, SharedSkellamSteps, SkellamSteps
from fedblocks.privacy.ledger import Ledger
from fedblocks.protocol.release import block_size, secure_step
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.report import write_report

DELTA = 1e-5
ALONE = ["privacy.mode=secure_step", "privacy.colluders=0"]
OWN = GaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=10)
OLD = SkellamSteps(sampling_rate=0.1, steps=10, l2=1000.0, l1=30_000.0, variance=4e6, beta=2.0**-40)


def shared(shares: int, colluders: int) -> SharedSkellamSteps:
    return SharedSkellamSteps(**vars(OLD), shares=shares, colluders=colluders)


def command(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_five_companies_at_epsilon_8_mean_9_and_a_half_against_one_of_them() -> None:
    """Oracle: Gaussian noise of the four shares that a company does not know, by two accountants of other make.

    Skellam noise of this size is Gaussian to 1e-4, so the figures agree to the accountants' own differences. Would
    catch the coordinator's figure passed off as everybody's: 7.99 where 9.46 holds.
    """
    settings = load_settings("digits", ALONE)
    model = build_model(settings.model, settings.noise)
    plan = make_plan(settings, model, "r")
    event = secure_step(plan, block_size(model, 0, plan.training), 5).event
    assert (event.shares, event.colluders) == (5, 0)
    steps = plan.training.releases(plan.model.blocks)
    whole = guarantee([event.times(steps)], DELTA)
    assert whole.against == COORDINATOR
    assert whole.epsilon == pytest.approx(7.99, abs=0.03)
    assert whole.epsilon_against_company == pytest.approx(9.46, abs=0.03)

    noise, rate = plan.noise_multiplier * math.sqrt(4 / 5), plan.training.sampling_rate
    accountant = RdpAccountant([1 + i / 10 for i in range(1, 300)])
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    accountant.compose(step, steps)
    assert whole.epsilon_against_company == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
    # And truly more than the coordinator's figure: even the tight account of what a company sees is above it.
    prv = PRVAccountant()
    prv.history = [(noise, rate, steps)]
    tight = prv.get_epsilon(DELTA, eps_error=0.05)
    assert whole.epsilon < tight < whole.epsilon_against_company
    assert f"epsilon={whole.epsilon:.3f}"[:-1] in str(whole)
    assert "against: the coordinator alone" in str(whole)
    assert "against a company that takes part: epsilon=9.4" in str(whole)


@pytest.mark.parametrize(
    ("events", "against", "more"),
    [
        ([], ANYONE, False),
        ([OWN], ANYONE, False),
        ([NoNoise(steps=1)], ANYONE, False),
        ([shared(5, 1)], "the coordinator together with up to 1 companies that take part", False),
        (
            [shared(5, 3), OWN, shared(5, 2)],
            "the coordinator together with up to 2 companies that take part",
            False,
        ),
        ([shared(5, 0)], COORDINATOR, True),
        ([shared(5, 1), shared(5, 0)], COORDINATOR, True),
        ([shared(1, 0)], COORDINATOR, False),
        ([shared(5, 2), OLD], UNKNOWN, True),
    ],
)
def test_the_weakest_release_says_whom_all_hold_against(events: list[Any], against: str, more: bool) -> None:
    found = guarantee(events, DELTA)
    assert found.against == against
    assert (found.epsilon_against_company > found.epsilon) == more
    assert ("against a company that takes part: epsilon" in str(found)) == more


def test_a_company_faces_all_shares_but_its_own() -> None:
    for shares in (2, 3, 5, 100):
        seen = seen_by_company(shared(shares, 0))
        assert isinstance(seen, SkellamSteps)
        assert seen.variance == pytest.approx(OLD.variance * (1 - 1 / shares))
    costs = [epsilon([seen_by_company(shared(n, 0))], DELTA) for n in (2, 3, 5, 100)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] > epsilon([OLD], DELTA)
    assert math.isinf(epsilon([seen_by_company(OLD)], DELTA))


@pytest.mark.parametrize("rule", COMPOSITIONS)
@pytest.mark.parametrize("groups", [[5, 3, 4], [3, 5, 5], [5, 5, 3], [1, 3, 5], [3, 1, 5]])
def test_groups_of_unequal_size_count_as_the_smallest_in_which_others_are(
    tmp_path: Path, rule: str, groups: list[int]
) -> None:
    """Would catch the first group's number taken for all, and a company alone, which faces nobody, for the worst."""

    def seen(name: str, sizes: list[int]) -> float:
        with Ledger.open(tmp_path / name, "acme", 50.0, DELTA, rule=rule) as ledger:
            for n, size in enumerate(sizes):
                terms = Terms(shared(size, 0), 3)
                ledger.charge(run="r", round=n, block="b", release_id=str(n), terms=terms)
            return ledger.spent().epsilon_against_company

    assert seen("unequal", groups) == seen("smallest", [3] * 3) > seen("equal", [5] * 3)


def test_releases_of_one_plan_are_alike_whatever_the_number_of_companies() -> None:
    """Groups differ by one company, and what a run is held to may not."""
    assert shared(4, 1) == shared(5, 1) != shared(5, 2)
    assert shared(4, 1).to_json() != shared(5, 1).to_json()


@pytest.fixture(scope="module")
def alone(
    small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    """A whole run in which five companies share noise and tolerate no colluder."""
    privacy = small.privacy.model_copy(update={"mode": "secure_step", "colluders": 0})
    run = prepare(small.model_copy(update={"privacy": privacy}), tmp_path_factory.mktemp("alone") / "run")
    return run, simulate(run)


def test_every_place_that_prints_the_figure_says_against_whom(
    alone: tuple[RunFolder, dict[str, Any]],
) -> None:
    run, result = alone
    home = run.companies / "company-0"
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        spent = ledger.spent()
        assert [row.event.shares for row in ledger.rows() if isinstance(row.event, SharedSkellamSteps)] == [
            5
        ] * 4
    both = [spent.epsilon, spent.epsilon_against_company]
    assert both[1] > 1.1 * both[0]
    assert result["epsilon"]["company-0"] == both[0]
    assert result["epsilon_against_a_company"] == both[1]
    assert result["epsilon_holds_against"] == COORDINATOR

    shown = command("ledger", "show", run.path)["ledgers"][0]
    (left, *_) = command("account", "--spent", run.path)["companies"]
    for found in (shown, left):
        assert [found["epsilon"], found["epsilon_against_company"], found["against"]] == [*both, COORDINATOR]
    planned = command("account", "--spent", run.path)
    assert [planned["epsilon"], planned["epsilon_against_company"]] == pytest.approx(both)
    assert planned["against"] == COORDINATOR
    for words in (["ledger", "show"], ["account", "--spent"]):
        text = " ".join(CliRunner().invoke(cli, [*words, str(run.path)]).output.split())
        assert "the coordinator alone" in text
        assert shown_as(both[1]) in text


@pytest.mark.parametrize("ledgers", [True, False])
def test_the_report_says_it_too(
    alone: tuple[RunFolder, dict[str, Any]], tmp_path: Path, ledgers: bool
) -> None:

    run = RunFolder(tmp_path / "run")
    shutil.copytree(alone[0].path, run.path)
    if not ledgers:
        shutil.rmtree(run.companies)
    page = write_report(run).read_text()
    figure = shown_as(alone[1]["epsilon_against_a_company"])
    assert page.count(figure) >= 3
    assert "It holds against the coordinator only" in page
    assert "a company that takes part knows its own share of the noise" in " ".join(page.split())


def test_a_run_that_tolerates_one_has_one_figure(small: SimulationSettings, tmp_path: Path) -> None:
    privacy = small.privacy.model_copy(update={"mode": "secure_step"})
    run = prepare(small.model_copy(update={"privacy": privacy}), tmp_path / "run")
    result = simulate(run)
    assert "epsilon_against_a_company" not in result
    assert result["epsilon_holds_against"].startswith("the coordinator together with up to 1")
    assert "It holds against the coordinator only" not in write_report(run).read_text()
