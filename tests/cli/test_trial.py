"""`fedblocks trial` with real processes: from nothing to a finished run, and back after whatever interrupts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from support.processes import until, without_texts
from support.trials import living, rows_of

from fedblocks.blocks.examples import Examples
from fedblocks.client.company import Company
from fedblocks.client.decisions import verify
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.preparation import read_inputs
from fedblocks.experiments.trial.preparing import Wish
from fedblocks.server.run_folder import RunFolder

NAMES = ["acme", "bravo", "charlie"]
QUICK = (*SMALL, 'data.private.source="digits"')
START = "import sys; from fedblocks.cli.main import main; sys.argv[0] = 'fedblocks'; main()"


class Trial:
    """One call of the command; what it says is in files."""

    def __init__(self, folder: Path, *words: str) -> None:
        number = len(list(folder.parent.glob("*.err")))
        self.out, self.err = (folder.parent / f"{number}.{kind}" for kind in ("out", "err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "trial", str(folder), *words, "--json"],
                stdout=out, stderr=err, env=os.environ | {"COLUMNS": "200"},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.err.read_text()

    def end(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text().splitlines()[-1])
        return found


@contextmanager
def ended(*trials: Trial) -> Iterator[None]:
    try:
        yield
    finally:
        for each in trials:
            if each.process.poll() is None:
                each.process.kill()
            each.process.wait()


def wished(*changes: str) -> list[str]:
    sets = [word for value in (*QUICK, *changes) for word in ("--set", value)]
    return [*NAMES, "--preset", "digits", *sets, "--port", str(free_port())]


def rounds(folder: Path) -> int:
    return sum(path.read_text().count("\n") - 1 for path in (folder / "runs").glob("*/metrics.jsonl"))


def charged(folder: Path) -> list[int]:
    found = []
    for name in NAMES:
        with Company.deployed(folder / name).ledger() as ledger:
            found.append(len(ledger.rows()))
    return found


@pytest.mark.slow
def test_one_command_goes_from_kits_to_a_finished_run(tmp_path: Path) -> None:
    """Agents and a coordinator in processes of their own, the preset's own private data, approvals on record.

    Would catch a run that is not that of the kits, companies that train on other examples than the simulation's, and
    processes that stay.
    """
    folder = tmp_path / "trial"
    trial = Trial(folder, *wished(), "--yes")
    with ended(trial):
        assert trial.end() == 0, trial.said
    assert not living(folder)
    assert without_texts(trial.said)
    found = trial.result
    assert (found["rounds"], found["rounds_done"]) == (4, 4)
    run = RunFolder.existing(Path(found["run"]))
    assert [row["survivors"] for row in run.metrics()[1:]] == [NAMES] * 4
    assert not run.companies.exists()
    dealt = read_inputs(Wish(preset="digits", changes=QUICK).settings(NAMES)).companies.values()
    for name, expected in zip(NAMES, dealt, strict=True):
        company = Company.deployed(folder / name)
        own = [Examples.load(company.home / file) for file in ("data.npz", "held_out.npz")]
        assert rows_of(*own) == rows_of(expected)
        assert found["companies"][name]["examples"] == len(own[0])
        assert (company.home / "models" / run.path.name / "model.json").is_file()
        assert 0 < found["companies"][name]["epsilon"] <= company.policy.epsilon_ceiling
        assert f"{name} is connected" in trial.said
        assert f"adding or removing one example of {name}" in trial.said
        verify(company.home)
        decisions = (company.home / "decisions.jsonl").read_text()
        assert '"what":"approved"' in decisions.replace('": "', '":"')
        assert (company.home / "agent.out").stat().st_mode & 0o077 == 0
    assert "round 4 of 4" in trial.said
    again = Trial(folder)
    with ended(again):
        assert again.end() == 0, again.said
    assert charged(folder) == [4] * 3


@pytest.mark.slow
def test_whatever_ends_a_trial_no_process_is_left_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Killed while people decide, an agent that crashes, SIGTERM in mid-run. Would catch an exit code 0 of a run that
    is not over, a crash without a name, and rounds that are lost or paid for twice."""
    folder = tmp_path / "trial"
    first = Trial(folder, *wished("training.rounds=40", "training.evaluate_every=40"))
    with ended(first):
        until(lambda: first.said.count("waits for a person") == 3 or first.process.poll(), "asked", 900)
        shown = re.findall(r"fedblocks (agent approve \S+ [0-9a-f]{12})", first.said)
        assert len(shown) == 3, first.said
        command = [sys.executable, "-c", START, *shown[0].split()]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 0
        assert len(living(folder)) >= 4
        first.process.kill()
        until(lambda: not living(folder), "agents and coordinator have ended with it", 300)
    assert rounds(folder) <= 0

    second = Trial(folder, "--yes")
    with ended(second):
        until(lambda: rounds(folder) >= 2 or second.process.poll() is not None, "two rounds", 900)
        assert "acme is asked" not in second.said  # it has decided
        assert "bravo is asked" in second.said
        (agent,) = (
            pid for pid, line in living(folder).items() if "guarded agent up" in line and "bravo" in line
        )
        os.kill(agent, signal.SIGKILL)
        assert second.end() == 3, second.said
    assert "agent_ended: bravo's agent was ended by SIGKILL" in second.said
    assert second.result["exit_code"] == 3
    assert not living(folder)

    third = Trial(folder)
    with ended(third):
        before = rounds(folder)
        until(lambda: rounds(folder) >= before + 2 or third.process.poll() is not None, "two more", 900)
        busy = Trial(folder)
        with ended(busy):
            assert busy.end() == 2
        assert "is at work here" in busy.said
        third.process.send_signal(signal.SIGTERM)
        assert third.end(300) == 130, third.said
    assert "the same command goes on" in third.said
    assert not living(folder)
    assert rounds(folder) < 40

    fourth = Trial(folder)
    with ended(fourth):
        assert fourth.end() == 0, fourth.said
    assert fourth.result["rounds_done"] == 40
    assert max(charged(folder)) <= 41  # a round in vain for the agent that was killed, at most
    assert min(charged(folder)) >= 40
    assert not living(folder)


@pytest.mark.slow
def test_a_run_that_a_company_refuses_does_not_end_with_0(tmp_path: Path) -> None:
    """A policy that is tightened after the check. Would catch a trial that is done when its coordinator has ended."""
    folder = tmp_path / "trial"
    trial = Trial(folder, *wished())
    with ended(trial):
        until(lambda: trial.said.count("waits for a person") == 3 or trial.process.poll(), "asked", 900)
        policy = folder / "charlie/policy.toml"
        policy.write_text(policy.read_text().replace("most_steps = 1000000", "most_steps = 1"))
        for line in re.findall(r"fedblocks (agent approve \S+ [0-9a-f]{12})", trial.said):
            subprocess.run([sys.executable, "-c", START, *line.split()], check=True, capture_output=True)
        assert trial.end() == 3, trial.said
    assert "the coordinator ended with exit code 3" in trial.said
    assert "charlie" in trial.result["message"]
    assert not living(folder)
    assert charged(folder) == [0] * 3
