"""A run's figures for Prometheus: they agree with its metrics, change nothing of it, and tell nothing private."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import images_file

pytest.importorskip("prometheus_client")

from flwr.app import Context, Message, RecordDict
from prometheus_client.parser import text_string_to_metric_families
from support.real_companies import NAMES, coordinators_own, named, serve_companies

from fedblocks.blocks import digest
from fedblocks.client.agent_metrics import AgentMetrics
from fedblocks.client.app import app
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.dropout import LossyGrid
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.protocol.messages import TRAIN, refused
from fedblocks.protocol.observability import Observability
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.events import RoundFailed, RoundFinished, RunStarted
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.run_metrics import RunMetrics
from fedblocks.settings import DropoutSettings, SimulationSettings

COORDINATOR = {
    "rounds", "round", "running", "rounds_ended", "rounds_failed_in_a_row", "phase", "phase_seconds", "phases",
    "sent_bytes", "received_bytes", "replies_missing", "company_connected", "companies_connected",
    "companies_expected",
}  # fmt: skip
AGENT = {"messages_answered", "messages_refused", "trainings", "connected", "seconds_since_contact"}
_TIMES = re.compile(r"^(fedblocks_\w*(?:seconds_total|seconds_since_contact)\b.*) \S+$", re.MULTILINE)

Samples = dict[tuple[str, str], float]


def figures(text: str) -> Samples:
    """(name, label values) -> value."""
    return {
        (
            sample.name.removeprefix("fedblocks_"),
            ",".join(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lossy(small: SimulationSettings) -> SimulationSettings:
    dropout = DropoutSettings(rate=0.3, phase="train")
    companies = small.companies.model_copy(update={"dropout": dropout})
    return small.model_copy(update={"companies": companies, "seed": 3})


def watched(settings: SimulationSettings, folder: Path) -> tuple[RunFolder, str, str]:
    """A run with both sides' figures at its end."""
    run, ours, theirs = prepare(settings, folder), Observability("0"), Observability("0")
    metrics = RunMetrics(ours, expected=["acme"], connected=lambda: ["acme"])
    counted = AgentMetrics(theirs, connected=lambda: True).counted(app)
    grid = InProcessGrid(counted, settings.companies.count, {"run-dir": str(run.path)})  # type: ignore[arg-type]
    losing = LossyGrid(grid, settings.companies.dropout, settings.seed)
    try:
        coordinate(metrics.timed(losing), run, [metrics])
    finally:
        grid.close()
    return run, ours.text().decode(), theirs.text().decode()


@pytest.fixture(scope="module")
def seen(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str, str]:
    return watched(lossy(small), tmp_path_factory.mktemp("watched") / "run")


def test_the_coordinators_figures_are_those_of_its_run(
    seen: tuple[RunFolder, str, str], small: SimulationSettings, tmp_path: Path
) -> None:
    """Against metrics.jsonl; and the run is, bit for bit, the one that nobody watched."""
    run, text, _ = seen
    found, rows = figures(text), run.metrics()[1:]
    assert (found["coordinator_rounds", ""], found["coordinator_round", ""]) == (4, 4)
    for status in {row["status"] for row in rows}:
        expected = sum(row["status"] == status for row in rows)
        assert found["coordinator_rounds_ended_total", status] == expected
    lost = sum(phase == TRAIN for row in rows for phase, _ in row["absent"].values())
    assert lost > 0
    assert found["coordinator_replies_missing_total", "train"] == lost
    assert found["coordinator_phases_total", "train"] == 4
    assert found["coordinator_phases_total", "join"] == 1
    assert all(
        found["coordinator_phase", phase] == 0 for phase in ("join", "keys", "train", "confirm", "unmask")
    )
    assert found["coordinator_phase_seconds_total", "train"] > 0
    state = Checkpoint.load(run.checkpoints).model
    names = sum(t.numel() * 4 for t in state.blocks[0].values())
    assert (
        found["coordinator_sent_bytes_total", "train"] > 20 * names * 0.9
    )  # 5 companies, 4 rounds, a block each
    assert found["coordinator_received_bytes_total", "train"] > 0
    assert found["coordinator_running", ""] == 0
    plain = prepare(lossy(small), tmp_path / "run")
    simulate(plain)
    other = Checkpoint.load(plain.checkpoints).model
    assert digest(state.shared, *state.blocks) == digest(other.shared, *other.blocks)


def test_the_agents_figures_are_what_it_answered(seen: tuple[RunFolder, str, str]) -> None:
    """Of all five companies together, whether or not a reply was lost on its way."""
    found = figures(seen[2])
    assert found["agent_messages_answered_total", "join"] == 5
    assert found["agent_messages_answered_total", "train"] == found["agent_trainings_total", ""] == 20
    assert not any(name == "agent_messages_refused_total" for name, _ in found)
    assert found["agent_seconds_since_contact", ""] >= 0


def test_no_figure_tells_of_the_data(
    seen: tuple[RunFolder, str, str], small: SimulationSettings, tmp_path: Path
) -> None:
    """A run on other private data, as many or fewer, shows the same figures but for times; and there are no others
    than those listed here. Would catch a loss, a batch's size, an epsilon or a number of examples in a metric."""
    for text, known, side in ((seen[1], COORDINATOR, "coordinator"), (seen[2], AGENT, "agent")):
        names = {f.name.removeprefix("fedblocks_") for f in text_string_to_metric_families(text)}
        assert names <= {f"{side}_{name}" for name in known}
    other = images_file(tmp_path / "other.npz", n=120, seed=9)
    private = small.data.private.model_copy(update={"source": str(other)})
    changed = lossy(small).model_copy(update={"data": small.data.model_copy(update={"private": private})})
    run, ours, theirs = watched(changed, tmp_path / "run")
    assert run.metrics()[4]["quality"] != seen[0].metrics()[4]["quality"]
    for one, two in ((seen[1], ours), (seen[2], theirs)):
        assert _TIMES.sub(r"\1", one) == _TIMES.sub(r"\1", two)
        assert _TIMES.sub(r"\1", one) != one
    quality = seen[0].metrics()[4]["quality"]
    assert not any(np.isclose(v, quality["public"][-1]) for v in figures(seen[1]).values())


def test_refusals_count_by_their_code_and_strange_messages_as_one(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """A company whose policy refuses the plan; would catch a time series for every name that somebody invents."""
    run, theirs = prepare(small, tmp_path / "run"), Observability("0")
    policy = run.companies / "company-2" / "policy.toml"
    policy.write_text(re.sub(r"epsilon_ceiling = .*", "epsilon_ceiling = 0.01", policy.read_text()))
    now = [5.0]
    metrics = AgentMetrics(theirs, connected=lambda: False, clock=lambda: now[0])
    counted = metrics.counted(app)
    assert np.isnan(figures(theirs.text().decode())["agent_seconds_since_contact", ""])
    grid = InProcessGrid(counted, 5, {"run-dir": str(run.path)})  # type: ignore[arg-type]
    try:
        with pytest.raises(ProtocolError):
            coordinate(grid, run)
    finally:
        grid.close()
    now[0] = 12.5
    for kind in ("query.one", "query.two"):
        reply = counted(Message(RecordDict(), 1, kind), Context(1, 1, {}, RecordDict(), {}))
        assert refused(reply.content) is not None
    found = figures(theirs.text().decode())
    codes = {key: value for key, value in found.items() if key[0] == "agent_messages_refused_total"}
    name = "agent_messages_refused_total"
    assert codes == {(name, "privacy,join"): 1, (name, "unknown_message,other"): 2}
    assert found["agent_trainings_total", ""] == 0
    assert found["agent_seconds_since_contact", ""] == 0
    now[0] = 20.0
    assert figures(theirs.text().decode())["agent_seconds_since_contact", ""] == 7.5
    assert theirs.health() == "not_connected"


def test_health_tells_of_rounds_that_fail_and_of_companies_that_are_missing() -> None:
    there = ["acme", "bolt", "cobalt"]
    seen = Observability("0")
    metrics = RunMetrics(seen, expected=NAMES, connected=lambda: there, least=3)
    metrics(RunStarted(9, 0))
    assert seen.health() is None
    for round_ in (1, 2):
        metrics(RoundFinished({"round": round_, "status": "too_few"}))
    assert seen.health() is None
    metrics(RoundFailed(3, {}, 3))
    assert seen.health() == "rounds_fail"
    metrics(RoundFinished({"round": 4, "status": "done"}))
    assert seen.health() is None
    there.pop()
    assert seen.health() == "companies_missing"
    found = figures(seen.text().decode())
    assert found["coordinator_companies_connected", ""] == 2
    assert [found["coordinator_company_connected", name] for name in NAMES] == [1, 1, 0, 0]


@pytest.mark.slow
def test_both_sides_show_their_figures_while_they_run(small: SimulationSettings, tmp_path: Path) -> None:
    """`--metrics` of the two commands, a process a party; would catch an option that is not wired up."""
    run, homes = prepare(named(small), tmp_path / "run"), tmp_path / "homes"
    coordinators_own(run, homes)
    shown = serve_companies(run, homes, tmp_path / "plane", metrics=True, lose_one=False)
    ours, theirs = (figures(shown[name][0]) for name in ("serve", NAMES[0]))
    assert ours["coordinator_round", ""] >= 1  # the line that says a round is over comes before its figure
    assert ours["coordinator_companies_connected", ""] == 4
    assert theirs["agent_connected", ""] == 1
    assert theirs["agent_trainings_total", ""] >= 2
    assert [shown[name][1] for name in ("serve", NAMES[0])] == ["ok\n", "ok\n"]
