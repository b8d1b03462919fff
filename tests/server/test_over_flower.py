"""Runs over Flower by fedblocks' own commands alone: a SuperLink, SuperNodes and a coordinator in real processes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from support.faults import Fault
from support.federation import COMPANIES
from support.flower_processes import (
    PATIENT,
    Command,
    FlowerFederation,
    flower_federation,
    ready,
    rounds_of,
    until,
)

from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.server.queue import held
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.standing import standing_of
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow


def statuses(run: RunFolder) -> list[str]:
    return [row["status"] for row in run.metrics()[1:]]


def charged(federation: FlowerFederation) -> dict[str, int]:
    return {name: len(federation.rows(name)) for name in COMPANIES}


def link_pid(service: Command) -> int:
    """Of the SuperLink that the service has started last, as it says."""
    ups = [line["why"] for line in service.lines if (line["what"], line["state"]) == ("superlink", "up")]
    return int(ups[-1].rpartition(" ")[2])


def test_from_provision_to_a_finished_run_over_flower(
    small: SimulationSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that people do, by commands: keys made at home, requests, kits, data, approvals, five rounds. Would
    catch whatever a kit lacks, and a step that needs Flower's own commands."""
    started, at = time.monotonic(), dict[str, float]()

    def reached(what: str) -> None:
        at[what] = time.monotonic() - started

    homes = {name: tmp_path / name for name in COMPANIES}
    federation, plane, office = (
        FlowerFederation(tmp_path, tmp_path / "plane", homes),
        tmp_path / "plane",
        tmp_path / "office",
    )
    (office / "requests").mkdir(parents=True)
    (office / "federation.toml").write_text(
        f'name = "example"\ncompanies = {list(COMPANIES)}\n[coordinator]\naddress = "127.0.0.1:{free_port()}"\n'
        f'superlink_port = {free_port()}\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    try:
        for name, home in homes.items():
            federation.told("company", "init", home, "--name", name)
            asked = federation.told("company", "request", home, "--company", name)
            shutil.copy(asked["request"], office / "requests")
        asked = federation.told("coordinator", "request", plane, "--host", "127.0.0.1")
        shutil.copy(asked["request"], office / "requests")
        made = federation.told("provision", office / "federation.toml")
        spoken = made["fingerprints"]["provisioner"]
        for name, home in homes.items():
            federation.told("company", "install", made["kits"][name], home, "--fingerprint", spoken)
        federation.told("coordinator", "install", made["kits"]["coordinator"], plane, "--fingerprint", spoken)
        reached("kits installed")
        service = federation.start("coordinator", "up", plane, "--runs-dir", tmp_path / "runs", "--json")
        sets = [
            word for value in (*SMALL, "training.rounds=5", "evaluation.every=5") for word in ("--set", value)
        ]
        planned = federation.told(
            "coordinator", "plan", "digits", "--folder", plane, "--runs-dir", tmp_path / "runs", *sets
        )
        run = RunFolder.existing(Path(planned["folder"]))
        for home in homes.values():
            assert small.data.private is not None
            federation.told(
                "company", "import", small.data.private.source, home, "--model", run.path / "plan.json"
            )
            federation.told("ledger", "create", home)
        reached("data imported")
        nodes = [federation.start("supernode", home) for home in homes.values()]
        for home in homes.values():
            until(
                lambda home=home: list((home / "requests").glob("*")), "the run asks for approval", said=nodes
            )
            federation.told("agent", "approve", home, run.plan().run)
        reached("approved")
        until(lambda: rounds_of(run) >= 1, "the first round", said=[service, *nodes])
        reached("first round")
        until(
            lambda: not standing_of(run)["running"] and rounds_of(run) >= 5, "the end", said=[service, *nodes]
        )
        until(lambda: service.lines[-1]["state"] == "done", "the service says so", 60)
        reached("finished")
        assert all(node.running for node in nodes)
        service.signal(signal.SIGTERM)
        assert service.end(120) == 0
    finally:
        federation.stop()
    assert statuses(run) == ["done"] * 5
    assert run.metrics()[-1]["survivors"] == list(COMPANIES)
    assert charged(federation) == dict.fromkeys(COMPANIES, 6)  # five rounds and the evaluation
    assert run.metrics()[-1]["evaluation"]["status"] == "done"
    assert all((home / "models" / run.path.name / "model.json").is_file() for home in homes.values())
    assert standing_of(run)["state"] == "finished"
    with capsys.disabled():
        print(" ".join(f"{what}: {seconds:.0f} s;" for what, seconds in at.items()))


@pytest.mark.fault("SuperLink killed and restarted (Flower)", ends="finished", in_vain=1, per="a kill")
def test_a_superlink_that_is_killed_costs_no_round_under_the_service(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Killed three times, at whatever phase. Would catch a run that ends with its SuperLink, nodes that do not come
    back by themselves, and a release that is charged twice."""
    with flower_federation(tmp_path) as federation:
        run = ready(federation, small, rounds=4)
        service = federation.start(
            "coordinator", "up", federation.plane, "--runs-dir", tmp_path / "runs", "--json"
        )
        nodes = federation.nodes()
        for done in (0, 1, 2):
            until(
                lambda done=done: rounds_of(run) >= done and _joined(run),
                f"round {done}",
                said=[service, *nodes],
            )
            time.sleep(7.0 * done)  # so that each kill meets another phase
            os.kill(link_pid(service), signal.SIGKILL)
        until(lambda: rounds_of(run) >= 4, "the end", said=[service, *nodes])
        until(lambda: service.lines[-1]["state"] == "done", "the service says so", 60)
        assert all(node.running for node in nodes)
        downs = [line for line in service.lines if (line["what"], line["state"]) == ("superlink", "down")]
        assert len(downs) == 3
        service.signal(signal.SIGTERM)
        assert service.end(180) == 0
        fault.books(run, list(federation.homes.values()), rounds=4, faults=3)


def _joined(run: RunFolder) -> bool:
    return bool(run.read_json("cohort.json"))


@pytest.mark.fault("coordinator killed with its SuperLink (Flower)", ends="resumed", in_vain=1)
def test_a_coordinator_that_is_killed_with_its_superlink_goes_on_with_resume(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """`coordinator run` keeps a SuperLink of its own. Would catch a SuperLink left behind that holds the port, a
    Flower run that nobody ends, and `stop` and `--resume` that work on the data plane alone."""
    with flower_federation(tmp_path) as federation:
        run, plane = ready(federation, small, rounds=3), federation.plane
        nodes = federation.nodes()
        first = federation.start("coordinator", "run", run.path, plane, "--over", "flower", "--json")
        until(lambda: rounds_of(run) >= 1, "the first round", said=[first, *nodes])
        found = standing_of(run)
        assert {name: company["connected"] for name, company in found["companies"].items()} == dict.fromkeys(
            COMPANIES, True
        )
        first.signal(signal.SIGKILL)
        first.process.wait()
        again = federation.start("coordinator", "run", run.path, plane, "--resume", "--json")
        until(lambda: rounds_of(run) >= 2, "the second round", said=[again, *nodes])
        stopped = federation.told("coordinator", "stop", run.path)
        assert stopped["stopped"] is True
        assert again.end() == 130
        last = federation.start("coordinator", "run", run.path, plane, "--resume", "--json")
        assert last.end() == 0, last.said
        assert last.lines[-1]["rounds_done"] == 3
        fault.books(run, list(federation.homes.values()), rounds=3)
        assert all(node.running for node in nodes)


def test_a_company_whose_data_change_stops_the_run_by_name(small: SimulationSettings, tmp_path: Path) -> None:
    """Under the service the run then waits for a person. Would catch Flower's `finished:completed` for a run that has
    failed, and others that are charged for it."""
    with flower_federation(tmp_path) as federation:
        run = ready(federation, small, rounds=3)
        service = federation.start(
            "coordinator", "up", federation.plane, "--runs-dir", tmp_path / "runs", "--json"
        )
        nodes = federation.nodes()
        until(lambda: rounds_of(run) >= 1, "the first round", said=[service, *nodes])
        data = federation.homes["bravo"] / "data.npz"
        kept = data.read_bytes()
        _doubled(data)
        until(
            lambda: service.lines[-1]["state"] == "waits",
            "the run waits for a person",
            said=[service, *nodes],
        )
        assert "bravo: its data are not those with which the run began" in service.lines[-1]["why"]
        why: Any = held(run)
        assert why["why"] == service.lines[-1]["why"]
        done = rounds_of(run)
        assert max(charged(federation).values()) <= done + 1
        data.write_bytes(kept)
        federation.told("coordinator", "resume", run.path)
        until(lambda: rounds_of(run) >= 3, "the end", said=[service, *nodes])
        assert statuses(run) == ["done"] * 3


def _doubled(data: Path) -> None:
    with np.load(data) as file:
        arrays = {name: np.concatenate([file[name], file[name]]) for name in ("inputs", "targets")}
    with data.open("wb") as out:
        np.savez_compressed(out, **arrays)


def test_without_anybody_the_patience_of_the_folder_counts(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a run over Flower that waits for ever though `gather` is set, and numbers in place of names."""
    with flower_federation(tmp_path) as federation:
        run = ready(federation, small, rounds=1)
        with (federation.plane / "transport.toml").open("a") as file:
            file.write("gather = 5\n")
        command = federation.start("coordinator", "run", run.path, federation.plane, "--json")
        assert command.end(PATIENT) == 2
        assert "acme, bravo, charlie missing after 5 s" in command.lines[-1]["message"]
