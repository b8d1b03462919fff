"""Whether a company is ready: what can be refused is refused before a charge, with a code, and at the start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.coordinating import Coordinator
from typer.testing import CliRunner

from fedblocks.blocks.examples import Examples
from fedblocks.cli.main import app as cli
from fedblocks.client import app as client_app
from fedblocks.client import readiness
from fedblocks.client.ceilings import growth
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.client.readiness import planned_terms
from fedblocks.client.training import train_block
from fedblocks.errors import BudgetExceeded, FedblocksError, PolicyRefusal, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.protocol.messages import JOIN, TRAIN, JoinRequest, refused
from fedblocks.settings import SimulationSettings

NOW = 1_700_000_000.0  # 2023-11-14, 22:13 UTC
YEAR = 365 * 86400


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(small, tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def coordinator(prepared: Path, tmp_path: Path) -> Coordinator:
    from fedblocks.server.run_folder import RunFolder

    shutil.copytree(prepared, tmp_path / "run")
    return Coordinator(RunFolder(tmp_path / "run"))


@pytest.fixture
def home(coordinator: Coordinator) -> Path:
    return coordinator.run.companies / "company-0"


def company(home: Path, at: float = NOW, **rules: Any) -> Company:
    return Company(home, load_policy(home / "policy.toml").model_copy(update=rules), clock=lambda: at)


def removed(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_other_arrays(path: Path) -> None:
    np.savez(path, images=np.zeros((4, 8, 8)), labels=np.zeros(4, dtype=np.int64))


def of_another_shape(path: Path) -> None:
    Examples(torch.zeros(20, 1, 9, 9), torch.zeros(20, dtype=torch.int64)).save(path)


def not_finite(path: Path) -> None:
    data = Examples.load(path)
    data.inputs[0, 0, 0, 0] = float("nan")
    data.save(path)


def out_of_range(path: Path) -> None:
    data = Examples.load(path)
    data.targets[0] = 10
    data.save(path)


WRONG = [removed, cut_short, of_other_arrays, of_another_shape, not_finite, out_of_range]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_data_that_cannot_be_trained_on_are_found_at_the_start_at_join_and_before_a_charge(
    coordinator: Coordinator, home: Path, wrong: Callable[[Path], None]
) -> None:
    """Would catch data that are first read at the first training, when the others have been charged."""
    request = coordinator.train_request(coordinator.session()).to_record()
    wrong(home / "data.npz")
    if wrong is not removed:
        (home / "data.npz").chmod(0o600)
    with pytest.raises(ProtocolError) as caught:
        company(home).startable()
    assert caught.value.code == "no_data"
    assert len(str(caught.value).splitlines()) == 1
    join = JoinRequest(coordinator.plan, coordinator.model.shared).to_record()
    assert refused(coordinator.ask(1, TRAIN, request)) == "no_data"
    assert refused(coordinator.ask(1, JOIN, join)) == "privacy"  # the one code of a join
    assert coordinator.charges() == 0


def test_an_agent_without_data_does_not_start(home: Path) -> None:
    """Would catch an agent that connects, takes part and ends "done" without a byte of data."""
    policy = home / "policy.toml"
    kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
    policy.write_text("\n".join(kept))
    (home / "data.npz").unlink()
    done = CliRunner().invoke(cli, ["transport", "agent", str(home)])
    assert isinstance(done.exception, ProtocolError)
    assert "company import" in str(done.exception)


def test_data_that_change_in_mid_run_are_refused_before_a_charge_and_the_old_ones_go_on(
    coordinator: Coordinator, home: Path
) -> None:
    """Would catch a file replaced under a run; the same examples in another file are no change."""
    request = coordinator.train_request(coordinator.session()).to_record()
    path = home / "data.npz"
    old = Examples.load(path)
    Examples(old.inputs, old.targets.flip(0)).save(path)
    assert refused(coordinator.ask(1, TRAIN, request)) == "data_changed"
    assert coordinator.charges() == 0
    assert (
        refused(coordinator.ask(1, JOIN, JoinRequest(coordinator.plan, coordinator.model.shared).to_record()))
        == "privacy"
    )
    another = coordinator.plan.changed(run="another")
    company(home).ready(another)  # another run begins with what is there now
    np.savez(path, inputs=old.inputs.numpy(), targets=old.targets.numpy())  # not compressed: other bytes
    path.chmod(0o600)
    assert refused(coordinator.ask(1, TRAIN, request)) is None
    assert coordinator.charges() == 1


def test_held_out_examples_that_change_in_mid_run_are_refused_too(
    coordinator: Coordinator, home: Path
) -> None:
    """Would catch examples that are moved between what is trained on and what judges, after the run was joined."""
    request = coordinator.train_request(coordinator.session()).to_record()
    Examples.load(home / "data.npz")[slice(0, 5)].save(home / "held_out.npz")
    assert refused(coordinator.ask(1, TRAIN, request)) == "data_changed"
    (home / "held_out.npz").write_bytes(b"torn")
    assert refused(coordinator.ask(1, TRAIN, request)) == "no_data"
    assert coordinator.charges() == 0
    (home / "held_out.npz").unlink()
    assert refused(coordinator.ask(1, TRAIN, request)) is None


def test_a_join_that_is_refused_fixes_no_data(coordinator: Coordinator, home: Path) -> None:
    """Would catch a company that mends its data after a refusal and can never join that run."""
    rules = home / "policy.toml"
    text = rules.read_text()
    rules.write_text(text.replace("epsilon_ceiling = 8.0", "epsilon_ceiling = 0.1"))
    join = JoinRequest(coordinator.plan, coordinator.model.shared).to_record()
    assert refused(coordinator.ask(1, JOIN, join)) == "privacy"
    old = Examples.load(home / "data.npz")
    Examples(old.inputs, old.targets.flip(0)).save(home / "data.npz")
    rules.write_text(text)
    assert refused(coordinator.ask(1, JOIN, join)) is None


def code_of(home: Path, plan: Any, at: float = NOW, joining: bool = False, **rules: Any) -> str | None:
    try:
        company(home, at, **rules).ready(plan, joining=joining)
    except FedblocksError as error:
        return error.code
    return None


def test_hours_trainings_a_day_and_room_are_looked_at_before_each_round(
    coordinator: Coordinator, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a limit that is only looked at when a run is joined, or that is counted twice."""
    plan = coordinator.plan
    assert code_of(home, plan, hours=("22:00", "23:00")) is None
    assert code_of(home, plan, hours=("08:00", "18:00")) == "closed"
    assert code_of(home, plan, hours=("08:00", "18:00"), joining=True) is None
    own = company(home, most_rounds_a_day=2)
    for _ in range(2):
        own.ready(plan)
        own.ready(plan)
        own.count_round()
    assert code_of(home, plan, most_rounds_a_day=2) == "too_many"
    assert code_of(home, plan, at=NOW + 86400, most_rounds_a_day=2) is None
    with pytest.raises(ProtocolError):
        own.count_round()
    full = SimpleNamespace(free=1 << 20)
    monkeypatch.setattr(readiness.shutil, "disk_usage", lambda path: full)
    assert code_of(home, plan) == "no_room"


def test_a_training_uses_no_more_cores_than_the_policy_allows(
    coordinator: Coordinator, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a rule that is written down and never applied."""
    path, seen = home / "policy.toml", []

    def watched(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())  # that of this thread
        return train_block(*arguments)

    monkeypatch.setattr(client_app, "train_block", watched)
    path.write_text(f"threads = 2\n{path.read_text()}")
    request = coordinator.train_request(coordinator.session()).to_record()
    assert refused(coordinator.ask(1, TRAIN, request)) is None
    assert seen == [2]


def test_a_policy_that_is_tightened_in_mid_run_is_seen_with_the_next_message(
    coordinator: Coordinator, home: Path
) -> None:
    """Would catch a policy that is read once, and a tightened rule that is noticed after the charge."""
    request = coordinator.train_request(coordinator.session()).to_record()
    path = home / "policy.toml"
    text = path.read_text()
    rules = (
        "minimum_noise_multiplier = 999.0",
        "epsilon_ceiling_run = 0.01",
        "most_steps = 1",
        "shared_states = []",
    )
    for tighter in rules:
        name = tighter.split(" ")[0]
        kept = [line for line in text.splitlines() if line.split(" ")[0] != name]
        path.write_text("\n".join([tighter, *kept]))
        assert refused(coordinator.ask(1, TRAIN, request)) == "privacy", tighter
        assert coordinator.charges() == 0
    path.write_text(text)
    assert refused(coordinator.ask(1, TRAIN, request)) is None


@pytest.mark.parametrize("composition", ["runs", "renyi"])
def test_a_runs_growth_is_that_of_the_ledger(tmp_path: Path, composition: str) -> None:
    """Oracle: the ledger's own figures. Would catch a run counted twice once it has begun, or not at all."""
    from fedblocks.privacy.ledger import Ledger

    terms = Terms(GaussianSteps(sampling_rate=0.1, noise_multiplier=3.0, steps=5, dimension=100), 10)
    path, clock = tmp_path / "ledger.sqlite", [NOW]
    with Ledger.open(path, "acme", 50.0, 1e-5, lambda: clock[0], rule=composition) as ledger:
        for name, day in (("old", -400), ("recent", -30), ("now", 0)):
            clock[0] = NOW + day * 86400
            whole = ledger.check_plan(name, terms)
            start = ledger.spent().epsilon
            expected = growth(read_ledger(path), name, terms, NOW)
            assert expected.by_run == 0
            assert expected.to_come == pytest.approx(whole - start)
            for i in range(4):
                ledger.charge(run=name, round=i, block="b", release_id=f"{name}{i}", terms=terms)
                found = growth(read_ledger(path), name, terms, NOW)
                assert found.by_run + found.to_come == pytest.approx(whole - start)
        spent = ledger.spent().epsilon
    after = read_ledger(path)
    first = [row.epsilon_after for row in after.rows if row.run == "old"][-1]
    assert growth(after, "now", terms, NOW).in_a_year == pytest.approx(spent - first)
    assert growth(after, "now", terms, NOW + YEAR + 1).in_a_year == 0


def test_a_run_or_a_year_past_its_ceiling_is_refused_while_the_ledger_has_room(
    coordinator: Coordinator, home: Path
) -> None:
    """Would catch a ceiling that is never looked at, and one that counts what was spent years ago."""
    plan = coordinator.plan
    cost = growth(read_ledger(home / "ledger.sqlite"), plan.run, planned_terms(plan), NOW).to_come
    assert 0 < cost <= 8
    for rule in ("epsilon_ceiling_run", "epsilon_ceiling_year"):
        company(home, **{rule: cost * 1.001}).ready(plan)
        with pytest.raises(BudgetExceeded, match=rule):
            company(home, **{rule: cost * 0.999}).ready(plan)
    other = Terms(GaussianSteps(sampling_rate=0.5, noise_multiplier=4.0, steps=9, dimension=100), 1)
    with company(home, NOW - YEAR - 60, epsilon_ceiling=99.0).ledger() as ledger:
        ledger.charge(run="elsewhere", round=1, block="b", release_id="x", terms=other)
    room = growth(read_ledger(home / "ledger.sqlite"), plan.run, planned_terms(plan), NOW).to_come * 1.001
    company(home, NOW, epsilon_ceiling=99.0, epsilon_ceiling_year=room).ready(plan)
    with pytest.raises(BudgetExceeded, match="epsilon_ceiling_year"):
        company(home, NOW - 120, epsilon_ceiling=99.0, epsilon_ceiling_year=room).ready(plan)


def test_a_refusal_names_the_rule_to_the_company_and_a_code_to_others(
    coordinator: Coordinator, home: Path
) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        company(home, minimum_noise_multiplier=99.0).ready(coordinator.plan)
    assert (caught.value.rule, caught.value.code) == ("minimum_noise_multiplier", "privacy")
