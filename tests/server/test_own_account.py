"""A run of real companies: its report, its account and its models say what the coordinator knows, and no more."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from support.commands import Machine, run_command
from support.real_companies import NAMES, coordinators_own, named, serve_companies

from fedblocks.client.company import Company
from fedblocks.client.decisions import verify
from fedblocks.client.policy import load_policy
from fedblocks.errors import RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.composition import run_epsilon
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.protocol.ledger_statement import signed
from fedblocks.server.own_account import own_accounts, planned
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.report import write_report

UNTRUE = (
    "This was a simulation", "held-out private", "held out", "private data</dt>", "fedblocks audit", "with-reference",
    "epsilon spent", "fedblocks simulate", "has been audited", "company-0",
)  # fmt: skip


@pytest.fixture(scope="module", params=["in process", pytest.param("processes", marks=pytest.mark.slow)])
def real(
    request: pytest.FixtureRequest, small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Path]:
    """A finished run of four companies of which the coordinator's folder has nothing but their roster, and the folder
    of their homes. Run by function calls, or by processes over loopback of which one is killed after round one."""
    folder = tmp_path_factory.mktemp("real")
    run, homes = prepare(named(small), folder / "run"), folder / "homes"
    if request.param == "in process":
        simulate(run)
        coordinators_own(run, homes)
    else:
        coordinators_own(run, homes)
        serve_companies(run, homes, folder / "plane")
    return run, homes


def test_the_coordinators_account_is_an_upper_limit_of_every_ledger(real: tuple[RunFolder, Path]) -> None:
    """By the companies' roster names; against the releases in their own ledgers, which no coordinator can see."""
    run, homes = real
    found = own_accounts(run)
    assert [each.company for each in found] == NAMES
    plan = run.plan()
    for each in found:
        ledger = read_ledger(homes / each.company / "ledger.sqlite")
        assert each.summed <= len(ledger.rows) <= each.most
        event = ledger.rows[0].event.times(each.most)
        assert each.epsilon == pytest.approx(run_epsilon(event, plan.delta))
        assert 0 < each.epsilon <= planned(plan, 4).epsilon
    assert 0 < min(each.summed for each in found) < 4
    assert any(each.absent for each in found)


def test_the_report_of_a_real_run_tells_no_more_than_the_coordinator_knows(
    real: tuple[RunFolder, Path],
) -> None:
    run, _ = real
    text = write_report(run).read_text("utf-8")
    assert [word for word in UNTRUE if word in text] == []
    for said in (
        *NAMES,
        "coordinator’s own account",
        "on public data",
        "no audit of this run",
        "A real run cannot be repeated",
    ):
        assert said in text
    assert f"{run.metrics()[4]['quality']['public'][-1]:.1%}" in text
    cell, last = r"<td[^>]*>(\d+)</td>", r"<td[^>]*>([\d.]+)</td>"
    rows = re.findall(rf'<tr><th scope="row">(\w+)</th>{cell}{cell}{cell}\n{last}', text)
    assert [row[0] for row in rows] == NAMES
    for row, each in zip(rows, own_accounts(run), strict=True):
        assert tuple(map(int, row[1:4])) == (each.summed, each.absent, each.most)
        assert each.epsilon <= float(row[4]) <= each.epsilon * 1.01


def test_what_lies_in_a_real_runs_folder_from_elsewhere_is_not_shown(
    real: tuple[RunFolder, Path], small: SimulationSettings, tmp_path: Path
) -> None:
    """A result, homes and held-out quality of invented companies; would catch the report of phantom companies."""
    whole = write_report(real[0]).read_text("utf-8")
    copy = tmp_path / real[0].path.name
    shutil.copytree(real[0].path, copy)
    phantom = prepare(small, tmp_path / "phantom")
    shutil.copytree(phantom.companies, copy / "companies")
    shutil.copy(phantom.evaluation / "heldout.npz", copy / "evaluation")
    (copy / "result.json").write_text(json.dumps({"seconds": 5.0, "accuracy_non_private": 0.9}))
    rows = RunFolder(copy).metrics()
    for row in rows:
        row["quality"]["heldout"] = [0.987, 0.987]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(RunFolder(copy)).read_text("utf-8")
    # Of the metrics the page has a digest.
    digests = re.compile("[0-9a-f]{16,64}")
    assert digests.sub("", text) == digests.sub("", whole.replace(str(real[0].path), str(copy)))


def test_a_simulation_served_to_real_companies_is_none(
    real: tuple[RunFolder, Path], small: SimulationSettings, tmp_path: Path
) -> None:
    """Its homes have no ledger; a simulation of one's own has, and stays one, before its first round too."""
    simulated = prepare(small, tmp_path / "run")
    assert simulated.simulated()
    shutil.copy(real[0].metrics_file, simulated.metrics_file)
    for name in NAMES:
        (simulated.companies / name).mkdir()
        (simulated.companies / name / "policy.toml").touch()
    assert not simulated.simulated()
    (simulated.path / "result.json").write_text("{}")
    assert simulated.simulated()
    (simulated.path / "result.json").unlink()
    (simulated.companies / "acme" / "ledger.sqlite").touch()
    assert simulated.simulated()


def test_a_companys_signed_statement_stands_beside_the_coordinators_account(
    real: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    """Made by the company's command from its own ledger; a figure that somebody else changed, another run's and
    another company's are refused by the file's name."""
    run, homes = RunFolder(tmp_path / "run"), real[1]
    shutil.copytree(real[0].path, run.path)
    folder = run.path / "statements"
    folder.mkdir()
    words = ["ledger", "statement", str(homes / "acme"), run.plan().run, str(folder / "acme.json"), "--json"]
    done = run_command(words, tmp_path, Machine())
    assert done.exit_code == 0, done.stderr
    ledger = read_ledger(homes / "acme" / "ledger.sqlite")
    said = json.loads(done.stdout)
    assert said["releases"] == len(ledger.rows)
    assert ledger.spent.epsilon <= said["epsilon"] <= ledger.spent.epsilon * 1.01
    assert (folder / "acme.json").stat().st_mode & 0o777 == 0o600
    found = {each.company: each.statement for each in own_accounts(run)}
    assert found["acme"] is not None
    assert found["acme"].epsilon == said["epsilon"]
    assert [name for name, statement in found.items() if statement is None] == NAMES[1:]
    assert f"({said['releases']} releases)" in write_report(run).read_text("utf-8")
    company = Company(homes / "acme", load_policy(homes / "acme" / "policy.toml"))
    assert said["record"] == (verify(company.home).head if company.decisions.kept else "")
    assert run_command(words, tmp_path, Machine()).exit_code == 2  # the file is there already
    text = (folder / "acme.json").read_text()
    for name, changed, word in (
        ("acme", text.replace(f'"releases": {said["releases"]}', '"releases": 1'), "bad_signature"),
        ("acme", text.replace(f'"run": "{run.plan().run}"', '"run": "other"'), "run='other'"),
        ("acme", "{}", "not a company's statement"),
        ("bolt", text, "company='acme'"),
    ):
        assert changed != text or name != "acme"
        (folder / f"{name}.json").write_text(changed)
        with pytest.raises(RunError, match=re.escape(word)) as refused:
            own_accounts(run)
        assert f"{name}.json" in str(refused.value)
        (folder / "acme.json").write_text(text)


def test_a_statement_of_an_earlier_round_is_shown_as_out_of_date(
    real: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    """Would catch a coordinator that shows what a company said of round 1 in the report of round 2."""
    run, homes = RunFolder(tmp_path / "run"), real[1]
    shutil.copytree(real[0].path, run.path)
    folder = run.path / "statements"
    folder.mkdir()
    summed = {each.company: each.summed for each in own_accounts(run)}
    for name, less in (("acme", 0), (NAMES[1], 1)):
        company = Company(homes / name, load_policy(homes / name / "policy.toml"))
        said = signed(
            company.member(), run=run.plan().run, releases=summed[name] - less, epsilon=1.0, delta=1e-5,
            account="any", record="0" * 64,
        )  # fmt: skip
        (folder / f"{name}.json").write_text(said.model_dump_json())
    assert {each.company for each in own_accounts(run) if each.out_of_date} == {NAMES[1]}
    done = run_command(["account", "--spent", str(run.path), "--json"], tmp_path, Machine())
    told = {row["company"]: row["statement"] for row in json.loads(done.stdout)["coordinators_account"]}
    assert [told[name]["out_of_date"] for name in ("acme", NAMES[1])] == [False, True]
    assert write_report(run).read_text("utf-8").count("out of date") == 1


def test_the_account_of_a_real_run_is_labelled_as_the_coordinators(
    real: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    run, _ = real
    done = run_command(["account", "--spent", str(run.path), "--json"], tmp_path, Machine())
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert "companies" not in told
    expected = {each.company: each for each in own_accounts(run)}
    assert [row["company"] for row in told["coordinators_account"]] == NAMES
    for row in told["coordinators_account"]:
        each = expected[row["company"]]
        assert (row["releases_at_most"], row["epsilon_at_most"]) == (each.most, each.epsilon)
        assert row["rounds_to_go"] == 0
        assert "coordinator's own account" in row["source"]
    shown = run_command(["account", "--spent", str(run.path)], tmp_path, Machine())
    assert "own account" in shown.stderr
    assert "Spent so far" not in shown.stderr


def test_a_failed_round_may_have_charged_whoever_does_not_lack(
    real: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    """Who was missing before training may have trained in an attempt before; who was in no round owes nothing."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(real[0].path, run.path)
    absent = {"acme": ["query.keys", "no_reply"], "bolt": ["query.train", "no_reply"]}
    failed = {
        "round": 1,
        "block": 0,
        "status": "too_few",
        "survivors": [],
        "absent": absent,
        "update_norm": 0.0,
    }
    rows = [run.metrics()[0], {**failed, "tasks": [failed]}]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [each.most for each in own_accounts(run)] == [1, 1, 1, 1]
    done = failed | {
        "status": "done",
        "survivors": ["bolt", "cobalt"],
        "absent": {"delta": ["query.keys", "no_reply"]},
    }
    rows[1] = done | {"tasks": [done]}
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {each.company: each.most for each in own_accounts(run)} == {
        "acme": 0,
        "bolt": 1,
        "cobalt": 1,
        "delta": 1,
    }
    assert own_accounts(run)[0].epsilon == 0
    (run.path / "plan.json").write_text(run.plan().changed(noise_multiplier=0).model_dump_json())
    assert [each.epsilon for each in own_accounts(run)] == [0, math.inf, math.inf, math.inf]
    assert "This run has no differential privacy" in write_report(run).read_text("utf-8")
