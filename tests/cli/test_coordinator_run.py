"""A coordinator's own commands: a plan without a private byte; a run that can be looked at, stopped and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from support.processes import federation, until
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.errors import InputError, RunError
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.standing import standing_of
from fedblocks.server.stream import ServiceSettings
from fedblocks.settings import SimulationSettings, is_simulation


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli, [*map(str, words)])


def sets(*more: str) -> list[str]:
    return [word for value in (*SMALL, *more) for word in ("--set", value)]


@pytest.mark.slow
def test_a_run_is_planned_looked_at_stopped_and_gone_on_with(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Three companies that the coordinator did not make. Would catch a plan that needs private data, a status that
    shows numbers for names, and a stop that the agents take for the end."""
    with federation(small, tmp_path, rounds=1) as made:
        shutil.copy(made.run.roster_file, made.plane / "roster.toml")
        done = invoke(
            "coordinator", "plan", "digits", "--folder", made.plane, "--runs-dir", tmp_path / "runs",
            *sets("training.rounds=40", 'data.private.source="/nowhere"'), "--json",
        )  # fmt: skip
        assert done.exception is None, done.exception
        planned = json.loads(done.stdout)
        assert planned["companies"] == ["company-0", "company-1", "company-2"]
        run = RunFolder.existing(Path(planned["folder"]))
        assert not is_simulation(run.path)
        assert not run.companies.exists()
        assert [path.name for path in run.evaluation.iterdir()] == ["public.npz"]
        assert standing_of(run)["state"] == "prepared"
        made.companies, made.run = made.homes, run

        agents = [made.start("agent", "up", home, "--json") for home in made.homes]
        command = made.start("coordinator", "run", run.path, made.plane, "--json")
        until(lambda: made.rounds() >= 3, "three rounds")
        until(lambda: standing_of(run)["state"] == "running", "the status follows")
        found = standing_of(run)
        assert found["running"] is True
        assert {name: company["connected"] for name, company in found["companies"].items()} == dict.fromkeys(
            planned["companies"], True
        )
        stopped = json.loads(invoke("coordinator", "stop", run.path, "--json").stdout)
        assert stopped["stopped"] is True
        assert command.end() == 130
        assert all(agent.running for agent in agents)
        assert standing_of(run)["running"] is False
        assert isinstance(invoke("coordinator", "stop", run.path).exception, RunError)
        again = invoke("coordinator", "run", run.path, made.plane)
        assert isinstance(again.exception, InputError)
        assert "--resume" in str(again.exception)
        command = made.start("coordinator", "run", run.path, made.plane, "--resume", "--json")
        assert command.end(90) == 0
        assert json.loads(command.out.read_text())["rounds_done"] == 40
        found = standing_of(run)
        assert (found["state"], found["rounds_done"], found["running"]) == ("finished", 40, False)
        text = " ".join(invoke("coordinator", "status", run.path).stderr.split())
        assert "finished, round 40 of 40" in text
        assert "at most" in text
        spent = json.loads(invoke("coordinator", "status", run.path, "--json").stdout)["epsilon"]
        assert set(spent) == set(planned["companies"])
        assert all(0 < each["at_most"] <= 8 for each in spent.values())
        assert "finished" in invoke("coordinator", "watch", run.path).stderr


def test_a_plan_needs_a_roster_that_fits_it(tmp_path: Path) -> None:
    (tmp_path / "plane").mkdir()
    done = invoke(
        "coordinator", "plan", "digits", "--folder", tmp_path / "plane", "--runs-dir", tmp_path / "runs"
    )
    assert isinstance(done.exception, InputError)
    assert "fedblocks coordinator install" in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_a_coordinators_folder_begins_with_settings_that_load(tmp_path: Path) -> None:
    """Would catch a first file that the service refuses, one that others can read, one overwritten."""
    folder = tmp_path / "my plane"
    done = invoke("coordinator", "init", folder, "--listen", "127.0.0.1:9555", "--json")
    assert json.loads(done.stdout)["listen"] == "127.0.0.1:9555"
    assert ServiceSettings.load(folder).listen == "127.0.0.1:9555"
    assert folder.stat().st_mode & 0o077 == 0
    before = (folder / "transport.toml").read_text()
    assert all(f"{name} =" in before for name in ServiceSettings.model_fields)
    assert isinstance(invoke("coordinator", "init", folder).exception, InputError)
    assert (folder / "transport.toml").read_text() == before
    assert isinstance(
        invoke("coordinator", "init", tmp_path / "other", "--listen", "host").exception, InputError
    )
    assert not (tmp_path / "other").exists()
