"""The coordinator as a service: whatever is planned is taken up, and what must not be repeated waits for a person.

The processes of runs are stand-ins that end as a run's may; the service, its signals and its files are the real ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.federation import COMPANIES

from fedblocks.errors import RunError
from fedblocks.experiments.simulation.planning import for_companies, plan_run
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.secure_aggregation import Identity, Roster
from fedblocks.server.queue import finished, held, hold, planned, release
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.standing import standing_of
from fedblocks.server.unattended import Service
from fedblocks.settings import SimulationSettings

_RUN = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
what = folder.name.partition("-")[2]
times = folder / "times"
times.write_text(times.read_text() + "x" if times.is_file() else "x")
metrics = folder / "metrics.jsonl"
def rounds(last):
    task = {"block": 0, "status": "done", "survivors": ["acme"]}
    more = [task | {"round": r, "absent": {}, "tasks": [task | {"round": r}]} for r in range(1, last + 1)]
    rows = [{"round": 0}] + more
    metrics.write_text("".join(json.dumps(row) + "\\n" for row in rows))
if what == "fails":
    print(json.dumps({"failed": "stopped", "message": "round 1 failed: acme: its data are missing", "exit_code": 3}))
    sys.exit(3)
if what == "unusable":
    print(json.dumps({"message": "roster: another one"}))
    sys.exit(2)
if what == "damaged":
    metrics.write_text("{}\\n{}\\n")
    sys.exit(1)
if what == "stopped":
    sys.exit(130)
if what == "broken" or (what == "killed" and len(times.read_text()) < 3):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "long":
    print("begun", file=sys.stderr, flush=True)
    Path(folder, "up").touch()
    time.sleep(600)
rounds(4)
print(json.dumps({"rounds_done": 4}))
"""


@pytest.fixture(scope="module")
def public(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    roster = Roster({name: Identity.generate().public for name in COMPANIES})
    return plan_run(for_companies(small, roster), roster, tmp_path_factory.mktemp("planned") / "run")


class Runs:
    """A folder of runs, and what the service tells of them; SIGTERM once `last` has been told."""

    def __init__(self, folder: Path, public: RunFolder) -> None:
        self.path, self.plane, self._public = folder / "runs", folder / "plane", public
        self.plane.mkdir()
        self.told: list[tuple[str, str, str]] = []

    def plan(self, *names: str) -> None:
        for i, name in enumerate(names):
            shutil.copytree(self._public.path, self.path / name)
            os.utime(self.path / name / "plan.json", (1e9 + i, 1e9 + i))

    def run(self, name: str) -> RunFolder:
        return RunFolder.existing(self.path / name)

    def serve(self, last: tuple[str, str]) -> list[tuple[str, str, str]]:
        def tell(what: str, run: str, state: str, why: str) -> None:
            if what == "run":
                self.told.append((run, state, why))
            if run == last[0] and state in (last[1], "waits"):
                os.kill(os.getpid(), signal.SIGTERM)

        def command(run: RunFolder) -> Sequence[str]:
            return [sys.executable, "-c", _RUN, str(run.path)]

        Service(self.plane, self.path, command, None, tell).run()
        return self.told


@pytest.fixture
def runs(tmp_path: Path, public: RunFolder) -> Runs:
    return Runs(tmp_path, public)


def test_runs_are_taken_up_in_the_order_of_their_plans_and_no_failure_ends_the_service(runs: Runs) -> None:
    """Would catch a failed run that is begun again by itself, which charges everybody, one that blocks the next, and
    a killed one that is forgotten."""
    runs.plan("z-fails", "y-stopped", "x-unusable", "v-damaged", "w-killed", "a-done")
    told = runs.serve(last=("a-done", "done"))
    assert [(run, state) for run, state, _ in told] == [
        ("z-fails", "begun"),
        ("z-fails", "waits"),
        ("y-stopped", "begun"),
        ("y-stopped", "waits"),
        ("x-unusable", "begun"),
        ("x-unusable", "waits"),
        ("v-damaged", "begun"),
        ("v-damaged", "waits"),
        *[("w-killed", "begun"), ("w-killed", "again")] * 2,
        ("w-killed", "begun"),
        ("w-killed", "done"),
        ("a-done", "begun"),
        ("a-done", "done"),
    ]
    assert [run.path.name for run in planned(runs.path)] == []
    why = held(runs.run("z-fails"))
    assert why is not None
    assert why["why"] == "round 1 failed: acme: its data are missing"
    assert standing_of(runs.run("y-stopped"))["waits"]["why"] == "stopped"
    assert standing_of(runs.run("a-done"))["waits"] is None
    assert "SIGKILL" in {run: why for run, state, why in told if state == "again"}["w-killed"]


def test_a_run_that_dies_again_and_again_waits_for_a_person(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a service that begins the same crash for ever."""
    monkeypatch.setattr("fedblocks.server.unattended._FIRST_PAUSE", 0.01)
    runs.plan("a-broken")
    assert runs.serve(last=("a-broken", "waits"))[-1][2].startswith("its process has ended 5 times")
    assert len((runs.path / "a-broken" / "times").read_text()) == 5


def test_sigterm_ends_the_run_in_hand_which_does_not_wait_for_a_person(runs: Runs) -> None:
    """Would catch a restart of the machine after which nothing goes on by itself, or a process left behind."""
    runs.plan("a-long")
    assert [state for _, state, _ in runs.serve(last=("a-long", "begun"))] == ["begun"]
    assert held(runs.run("a-long")) is None
    assert [run.path.name for run in planned(runs.path)] == ["a-long"]


def test_one_service_a_folder(runs: Runs) -> None:
    """The lock is another process's; would catch two services that serve one run each, on one port."""
    script = (
        "import sys; from pathlib import Path; from fedblocks.server.run_lock import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'coordinator.lock'): print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(runs.plane)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            with pytest.raises(RunError, match=f"process {other.pid} is at work here"):
                runs.serve(last=("", ""))
        finally:
            other.kill()


def test_what_is_no_run_of_real_companies_is_left_alone(
    runs: Runs, small: SimulationSettings, tmp_path: Path
) -> None:
    """Simulations, damaged folders and finished or held runs; a mark that is taken away lets a run go on."""
    runs.plan("a-first", "b-second")
    prepare(small.model_copy(update={"name": "x"}), runs.path / "simulated")
    (runs.path / "damaged").mkdir()
    (runs.path / "damaged" / "plan.json").write_text("{")
    subprocess.run([sys.executable, "-c", _RUN, runs.path / "b-second"], check=True, capture_output=True)
    assert [run.path.name for run in planned(runs.path)] == ["a-first"]
    assert finished(runs.run("b-second"))
    hold(runs.run("a-first"), "why")
    assert planned(runs.path) == []
    assert release(runs.run("a-first"))
    assert not release(runs.run("a-first"))
    assert [run.path.name for run in planned(runs.path)] == ["a-first"]
