"""The simulation without the protocol: its bits, what it leaves out, and how it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedblocks.blocks import digest
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings, read_simulation, validated
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.report import write_report
from fedblocks.threat_model.report.assemble import assemble
from fedblocks.threat_model.report.facts import read_facts

CASES: dict[str, dict[str, Any]] = {
    "all, no noise": {
        "training": {"assignment": "all", "rounds": 2},
        "privacy": {"epsilon": None, "noise_multiplier": None, "i_accept_no_dp": True},
    },
    "several local steps, pulled": {"training": {"local_steps": 3, "proximal": 0.5, "rounds": 2}},
    "lost in training": {"companies": {"dropout": {"rate": 0.3, "phase": "train"}}},
}
MORE: dict[str, dict[str, Any]] = {
    "sequential": {},
    "parallel": {"training": {"assignment": "parallel"}, "companies": {"count": 6}},
    "shares of one noise": {"privacy": {"mode": "secure_step", "dropouts": 1}},
    "lost in confirming": {"companies": {"dropout": {"rate": 0.3, "phase": "confirm"}}},
    "cohorts drawn": {"companies": {"count": 8, "per_round": 4, "dropout": {"rate": 0.2, "phase": "keys"}}},
    "fewer threads": {"workers": 1},
}


def changed(settings: SimulationSettings, **changes: Any) -> SimulationSettings:
    def merged(raw: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        return raw | {k: merged(raw[k] or {}, v) if isinstance(v, dict) else v for k, v in change.items()}

    return validated(SimulationSettings, merged(settings.model_dump(), changes))


def bits(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def rounds(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


@pytest.fixture(scope="module")
def finished(
    small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    """A run without the protocol, and its result; nobody changes it."""
    run = prepare(changed(small, protocol="off"), tmp_path_factory.mktemp("off") / "run")
    return run, simulate(run)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_it_gives_the_bits_of_the_simulation_with_the_protocol(
    case: str, small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a training, a noise, a rounding or a loss of its own: model and metrics must be the same."""
    settings = changed(small, **(CASES | MORE)[case])
    runs = [
        prepare(changed(settings, protocol=protocol), tmp_path / protocol / "run")
        for protocol in ("on", "off")
    ]
    for run in runs:
        simulate(run)
    assert bits(runs[0]) == bits(runs[1])
    assert rounds(runs[0]) == rounds(runs[1])
    if "lost" in case:
        assert any(row["absent"] for row in rounds(runs[1])[1:])


def test_nothing_of_the_protocol_is_there_and_the_run_says_so(
    finished: tuple[RunFolder, dict[str, Any]],
) -> None:
    """Would catch an epsilon that no ledger has, or a folder that could be taken for a run with the protocol."""
    run, result = finished
    assert result["protocol"] == "off"
    assert result["guarantee"] == "without the protocol: no guarantee was accounted at companies"
    assert result["epsilon"] == {}
    assert "delta" not in result
    assert read_simulation(run.path).protocol == "off"
    found = {path.name for path in run.path.rglob("*") if path.is_file()}
    assert not found & {"ledger.sqlite", "steps.sqlite", "identity.key", "roster.toml", "company.log"}
    assert not run.releases.exists()
    assert run.simulated()
    assert json.loads((run.path / "result.json").read_text())["protocol"] == "off"


def test_it_goes_on_where_it_was_interrupted(
    finished: tuple[RunFolder, dict[str, Any]], small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a resumed run that draws other batches, or begins anew."""
    cut = prepare(changed(small, protocol="off"), tmp_path / "run")

    class Interrupted(Exception):
        pass

    def stop(event: Any) -> None:
        if getattr(event, "round", 0) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        simulate(cut, [stop])
    assert Checkpoint.load(cut.checkpoints).round == 2
    simulate(cut)
    assert bits(cut) == bits(finished[0])


def test_settings_with_the_protocol_are_dumped_as_before(small: SimulationSettings) -> None:
    """Would catch digests of sweeps and plans that change because there is a mode that they do not use."""
    assert "protocol" not in small.model_dump(mode="json")
    assert changed(small, protocol="off").model_dump(mode="json")["protocol"] == "off"


def test_what_only_ledgers_can_pay_for_is_refused(small: SimulationSettings) -> None:
    """Would catch a federated evaluation that silently does not take place."""
    with pytest.raises(InputError, match="evaluation"):
        changed(small, protocol="off", evaluation={"noise_multiplier": 20.0, "every": 2})


def test_it_is_not_served_to_real_companies(finished: tuple[RunFolder, dict[str, Any]]) -> None:
    """Would catch a run for studies that is offered to companies of flesh and blood."""
    with pytest.raises(InputError, match="protocol"):
        RunFolder.deployable(finished[0].path)


def test_the_report_opens_with_that_and_an_audit_is_refused(
    finished: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch the plan's epsilon on the first page of a run that nobody has accounted."""
    run = RunFolder(Path(shutil.copytree(finished[0].path, tmp_path / "run")))
    page = write_report(run).read_text("utf-8")
    assert "This run is without the protocol: no guarantee was accounted at companies." in page
    with pytest.raises(RunError, match="without the protocol"):
        audit_run(run, AuditDesign(minutes=0.1))


def test_settings_that_are_changed_afterwards_promise_nothing(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a run without ledgers that is said to have kept its plan's epsilon, as one with the protocol or
    as one of real companies, once its settings no longer say that it had none."""
    run = prepare(changed(small, protocol="off", training={"rounds": 1}), tmp_path / "run")
    simulate(run)
    settings = run.path / "simulation.toml"
    settings.write_text(settings.read_text("utf-8").replace('protocol = "off"', 'protocol = "on"'), "utf-8")
    assert read_simulation(run.path).protocol == "on"
    for _ in range(2):
        facts = read_facts(run)
        promise = assemble(run, facts, None, None).promise
        assert (facts.real, facts.unprotected, promise.private, promise.epsilon) == (False, True, False, None)
        with pytest.raises(RunError, match="without the protocol"):
            audit_run(run, AuditDesign(minutes=0.1))
        (run.path / "result.json").unlink(missing_ok=True)
