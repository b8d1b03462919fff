"""A person of the company decides about a run: what is asked, what is shown, and what follows from it."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import stat
from pathlib import Path

import pytest
from support.coordinating import Coordinator
from support.deployed import without_seeds
from support.processes import federation, until
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.approvals import MOST_PENDING, Requests
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.client.recording import MOST_LINES
from fedblocks.client.terms_in_words import described
from fedblocks.errors import InputError, LedgerError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.messages import JOIN, KEYS, JoinRequest, KeysRequest, refused
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings


def approval(home: Path, value: str) -> None:
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace('approval = "never"', f'approval = "{value}"'))


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("made") / "run")
    for home in without_seeds(run):
        approval(home, "first")
    return run


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(prepared.path, tmp_path / "run")))


@pytest.fixture
def app(run: RunFolder) -> Coordinator:
    return Coordinator(run)


def company_of(run: RunFolder) -> Company:
    home = run.companies / "company-0"
    return Company(home, load_policy(home / "policy.toml"))


def asked(app: Coordinator, plan: Plan) -> str | None:
    return refused(app.ask(1, JOIN, JoinRequest(plan, app.model.shared).to_record()))


def named(plan: Plan, run: str) -> Plan:
    return plan.changed(run=run)


def command(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exception is None, done.exception
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_first_run_of_a_plan_waits_and_later_ones_do_not(app: Coordinator, run: RunFolder) -> None:
    """Would catch a plan that begins unseen, and a decision about one plan that lets in another."""
    home = run.companies / "company-0"
    assert asked(app, app.plan) == "pending"
    command("agent", "approve", home, app.plan.run, "--by", "ada")
    assert asked(app, app.plan) is None
    assert asked(app, named(app.plan, "again")) is None
    other = app.plan.changed(noise_multiplier=app.plan.noise_multiplier + 1)
    assert asked(app, other) == "pending"
    record = (home / "decisions.jsonl").read_text()
    assert '"approved"' in record
    assert "ada" in record


def test_every_run_waits_where_the_policy_says_so_and_none_where_it_says_never(
    app: Coordinator, run: RunFolder
) -> None:
    home = run.companies / "company-0"
    home_policy = home / "policy.toml"
    home_policy.write_text(home_policy.read_text().replace('approval = "first"', 'approval = "always"'))
    assert asked(app, app.plan) == "pending"
    command("agent", "approve", home, app.plan.run)
    assert asked(app, app.plan) is None
    assert asked(app, named(app.plan, "again")) == "pending"
    home_policy.write_text(home_policy.read_text().replace('approval = "always"', 'approval = "never"'))
    assert asked(app, named(app.plan, "third")) is None


def test_a_denied_run_is_refused_also_while_it_goes_on(app: Coordinator, run: RunFolder) -> None:
    """Would catch a decision that only the next join sees."""
    assert asked(app, app.plan) == "pending"
    for i in range(1, 5):
        policy = run.companies / f"company-{i}" / "policy.toml"
        policy.write_text(policy.read_text().replace('approval = "first"', 'approval = "never"'))
    company = company_of(run)
    company.requests.decide(app.plan.run, "approved", by="ada")
    channels = app.channels()
    request = KeysRequest(app.session(), channels).to_record()
    command("agent", "deny", company.home, app.plan.run, "--why", "not this year")
    assert refused(app.ask(1, KEYS, request)) == "denied"
    assert asked(app, app.plan) == "denied"
    assert refused(app.ask(2, KEYS, request)) is None
    assert app.charges() == 0


def test_waiting_says_nothing_of_rules_or_ledger_and_is_not_counted(app: Coordinator, run: RunFolder) -> None:
    """Would catch an answer that differs with what is spent, and a coordinator that is locked out for asking."""
    home = run.companies / "company-0"
    impossible = app.plan.changed(noise_multiplier=0.0)
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace("most_joins = 20", "most_joins = 2"))
    assert load_policy(policy).most_joins == 2
    assert {asked(app, plan) for plan in (app.plan, impossible) for _ in range(4)} == {"pending"}
    assert (home / "company.log").read_text().count("refused query.join") == 2
    assert len(Requests(home).all()) == 2


def test_a_flood_of_plans_neither_fills_the_disk_nor_locks_out_a_run_that_is_wanted(
    app: Coordinator, run: RunFolder
) -> None:
    """Would catch made-up plans that take every place until a person denies them, and one that is asked for again and
    again but gives way to them; a decision gives way to nothing."""
    home = run.companies / "company-0"
    denied = named(app.plan, "denied")
    assert asked(app, denied) == "pending"
    command("agent", "deny", home, "denied", "--why", "no")
    for i in range(2 * MOST_PENDING):
        assert asked(app, named(app.plan, f"run-{i}")) == "pending"
        assert asked(app, app.plan) == "pending"
    files = list((home / "requests").glob("*"))
    assert len(files) == MOST_PENDING + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert asked(app, denied) == "denied"
    command("agent", "approve", home, app.plan.run)
    assert asked(app, app.plan) is None


def test_every_run_of_a_plan_is_denied_before_it_asks_and_after_another_was_approved(
    app: Coordinator, run: RunFolder, tmp_path: Path
) -> None:
    """Would catch approved terms that nobody can take back, and a denial that only those who have asked meet."""
    home, file = run.companies / "company-0", tmp_path / "plan.json"
    file.write_text(app.plan.model_dump_json())
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace("most_new_plans = 3", "most_new_plans = 9"))
    other = app.plan.changed(noise_multiplier=app.plan.noise_multiplier + 1)
    for plan in (app.plan, other):
        assert asked(app, plan) == "pending"
        command("agent", "approve", home, plan.digest().hex())
    assert asked(app, named(app.plan, "second")) is None
    told = command("agent", "deny", home, "--plan", file, "--why", "no more")
    assert told["every_run_of"] == app.plan.terms_digest().hex()
    assert {asked(app, named(app.plan, name)) for name in (app.plan.run, "second", "third")} == {"denied"}
    assert asked(app, named(other, "second")) is None
    policy.write_text(policy.read_text().replace('approval = "first"', 'approval = "never"'))
    assert asked(app, named(app.plan, "fourth")) == "denied"
    # A decision about one run goes before that about its plan.
    policy.write_text(policy.read_text().replace('approval = "never"', 'approval = "first"'))
    command("agent", "approve", home, app.plan.digest().hex())
    assert asked(app, app.plan) is None
    assert asked(app, named(app.plan, "fifth")) == "denied"
    command("agent", "deny", home, app.plan.digest().hex(), "--every-run", "--why", "none at all")
    assert asked(app, app.plan) == "denied"
    command("agent", "approve", home, "--plan", file)
    assert asked(app, named(app.plan, "sixth")) is None
    policy.write_text(policy.read_text().replace('approval = "first"', 'approval = "always"'))
    assert asked(app, named(app.plan, "seventh")) == "pending"
    lines = (home / "decisions.jsonl").read_text().splitlines()
    assert sum(f'"every_run_of": "{app.plan.terms_digest().hex()}"' in line for line in lines) == 3


def test_what_cannot_be_put_on_record_is_not_decided(app: Coordinator, run: RunFolder) -> None:
    """Would catch an approval that counts though no line tells of it."""
    assert asked(app, app.plan) == "pending"
    company = company_of(run)
    whole = company.decisions.path.read_bytes()
    company.decisions.path.write_bytes(whole[:-20])
    done = CliRunner().invoke(cli, ["agent", "approve", str(company.home), app.plan.run])
    assert isinstance(done.exception, LedgerError)
    company.decisions.path.write_bytes(whole)
    assert [each.decision for each in company.requests.all()] == ["pending"]


def test_plans_in_turn_do_not_fill_the_record_of_decisions(app: Coordinator, run: RunFolder) -> None:
    """Would catch a line for each message of a sender that never asks twice for the same: nothing removes a line."""
    record = run.companies / "company-0" / "decisions.jsonl"
    before = len(record.read_text().splitlines()) if record.exists() else 0
    for i in range(2 * MOST_LINES):
        asked(app, named(app.plan, f"run-{i}"))
    lines = record.read_text().splitlines()[before:]
    told = [line for line in lines if '"asked"' in line or '"refused"' in line]
    assert MOST_PENDING <= len(told) <= MOST_LINES + 1
    assert sum('"flood"' in line for line in told) == 1


def test_the_command_that_is_shown_decides_about_the_plan_that_is_shown(
    app: Coordinator, run: RunFolder
) -> None:
    """Would catch a name of the coordinator's choice that a shell, or the command, takes for something else."""
    company = company_of(run)
    bad = named(app.plan, "x --by director; touch y $(touch z)")
    assert asked(app, bad) == "pending"
    (request,) = company.requests.all()
    (line,) = [line for line in described(company, request) if "agent approve" in line]
    words = shlex.split(line)
    assert words[:4] == ["decide", "fedblocks", "agent", "approve"]
    command(*words[2:])
    (request,) = company.requests.all()
    assert (request.run, request.decision) == (bad.run, "approved")
    assert request.by != "director"
    assert asked(app, named(bad, "other")) is None


def test_a_request_is_shown_in_words_with_its_epsilon_on_this_ledger(
    app: Coordinator, run: RunFolder
) -> None:
    """Oracle: the ledger's own check of the plan. Would catch a figure of the coordinator's, or none."""
    company = company_of(run)
    assert asked(app, app.plan) == "pending"
    (shown,) = command("agent", "pending", company.home)["pending"]  # type: ignore[misc]
    from fedblocks.client.readiness import planned_terms

    with company.ledger() as ledger:
        expected = ledger.check_plan(app.plan.run, planned_terms(app.plan))
    assert shown["epsilon_after"] == pytest.approx(expected)
    assert shown["epsilon_spent"] == 0
    assert (shown["rounds"], shown["blocks"], shown["minimum_cohort"]) == (4, 2, 3)
    text = CliRunner().invoke(cli, ["agent", "pending", str(company.home)]).stderr
    for words in ("4 rounds", "epsilon    0 spent now", "own noise suffices", "no example", "agent approve"):
        assert words in text
    policy = company.home / "policy.toml"
    policy.write_text(policy.read_text().replace("minimum_cohort = 3", "minimum_cohort = 4"))
    (shown,) = command("agent", "pending", company.home)["pending"]  # type: ignore[misc]
    assert "minimum_cohort=3 is below" in shown["refused"]


def test_a_decision_names_one_request(app: Coordinator, run: RunFolder) -> None:
    company = company_of(run)
    with pytest.raises(InputError, match="none waits"):
        company.requests.decide("nothing", "approved", by="ada")
    other = app.plan.changed(noise_multiplier=app.plan.noise_multiplier + 1)
    assert {asked(app, plan) for plan in (app.plan, other)} == {"pending"}
    with pytest.raises(InputError, match="several plans"):
        company.requests.decide(app.plan.run, "approved", by="ada")
    company.requests.decide(other.digest().hex()[:12], "approved", by="ada")
    assert asked(app, other) is None
    assert asked(app, app.plan) == "pending"


def test_a_request_that_somebody_has_changed_is_none(app: Coordinator, run: RunFolder) -> None:
    """Would catch an approval that is moved to another plan."""
    company = company_of(run)
    assert asked(app, app.plan) == "pending"
    (path,) = (company.home / "requests").iterdir()
    request = json.loads(path.read_text())
    other = app.plan.changed(noise_multiplier=app.plan.noise_multiplier + 1)
    path.write_text(json.dumps(request | {"plan": other.model_dump_json(), "decision": "approved"}))
    assert asked(app, app.plan) == "pending"
    assert asked(app, other) == "pending"


@pytest.mark.slow
def test_daemons_wait_for_a_person_take_part_in_run_after_run_and_end_when_told(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """`agent up` in processes. Would catch an agent that ends with its first run, or begins one unseen."""
    with federation(small, tmp_path, rounds=2) as made:
        approval(made.homes[0], "first")
        for home in made.homes:  # two runs
            policy = home / "policy.toml"
            policy.write_text(policy.read_text().replace("epsilon_ceiling = 8.0", "epsilon_ceiling = 99.0"))
        agents = [made.start("agent", "up", home, "--json-log", "--json") for home in made.homes]
        serve = made.serve()
        requests = Requests(made.homes[0])
        until(requests.all, "the request is kept")
        assert made.rounds() == 0
        found = command("agent", "status", made.homes[0])
        assert (found["running"], found["pending"], found["run"]) == (True, 1, None)
        command("agent", "approve", made.homes[0], requests.all()[0].run)
        assert serve.end() == 0
        assert "a person of this company has not decided yet (pending)" in serve.said
        until(lambda: command("agent", "status", made.homes[0])["runs_done"] == 1, "the first run is counted")
        second = RunFolder(tmp_path / "second")
        made.again(second, "second")
        serve = made.serve()
        assert serve.end() == 0
        for agent in agents:
            agent.kill(signal.SIGTERM)
        assert [agent.end() for agent in agents] == [0] * 3
        assert [json.loads(agent.out.read_text())["runs"] for agent in agents] == [2] * 3
        assert command("agent", "status", made.homes[0])["running"] is False
        lines = (made.homes[0] / "company.log").read_text().splitlines()
        assert all({"time", "level", "message"} <= json.loads(line).keys() for line in lines)
        assert [len(made.rows(i)) for i in range(3)] == [4] * 3
