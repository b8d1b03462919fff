"""The final model reaches every company that has joined, also one that was away when the run ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.serverapp import Grid
from support.deployed import without_seeds
from support.real_companies import NAMES, command, coordinators_own, named, serve_companies

from fedblocks.blocks.model_file import load_model
from fedblocks.client.app import app
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.messages import DELIVER, KEYS
from fedblocks.server.attendance import Patience
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.delivery import DELIVERED_FILE
from fedblocks.server.events import Event, ModelDelivered, RunFinished
from fedblocks.server.grid import GridOver, InProcessGrid
from fedblocks.server.models import card_of
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.standing import standing_of
from fedblocks.settings import SimulationSettings

QUICK = Patience(linger=0.0, retry=0.05, deliver=0.0, poll=0.01)


class Without(GridOver):
    """A grid on which one node is gone once the model is to be delivered; `asked`: deliveries to it."""

    def __init__(self, grid: Grid, node: int) -> None:
        super().__init__(grid)
        self._node, self._gone = node, False
        self.deliveries: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._grid.get_node_ids() if not (self._gone and node == self._node)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        if sent and sent[0].metadata.message_type == DELIVER:
            self._gone = True
            self.deliveries += [message.metadata.dst_node_id for message in sent]
            sent = [message for message in sent if message.metadata.dst_node_id != self._node]
        return self._grid.send_and_receive(sent, timeout=timeout)


@contextmanager
def companies(run: RunFolder) -> Iterator[InProcessGrid]:
    grid = InProcessGrid(app, 5, {"run-dir": str(run.path)})
    try:
        yield grid
    finally:
        grid.close()


def coordinated(run: RunFolder, grid: Grid) -> list[Event]:
    told: list[Event] = []
    coordinate(grid, run, [told.append], patience=QUICK)
    return told


def test_every_company_gets_it_and_one_that_was_away_gets_it_when_the_run_is_resumed(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a copy that is lost with a company's absence, an absence that fails the run, one that is sent again
    to those that have it, and a model that is not the run's last."""
    training = small.training.model_copy(update={"rounds": 1})
    run = prepare(small.model_copy(update={"training": training}), tmp_path / "run")
    homes = without_seeds(run)
    with companies(run) as grid:
        told = coordinated(run, Without(grid, 2))
    assert told[-2] == ModelDelivered(tuple(f"company-{i}" for i in (0, 2, 3, 4)), {"company-1": "no_reply"})
    assert isinstance(told[-1], RunFinished)
    kept = {home.name for home in homes if (home / "models" / "run" / "model.json").is_file()}
    assert kept == {f"company-{i}" for i in (0, 2, 3, 4)}
    assert standing_of(run)["model_with"] == sorted(kept)
    for home in homes:  # as at the end of a run
        (home / "joined.json").unlink()
    with companies(run) as grid:
        again = coordinated(run, grid)
    assert again[-2] == ModelDelivered(tuple(home.name for home in homes), {})
    last = card_of(run)[1]
    for home in homes:
        assert load_model(home / "models" / "run")[1].digest == last.digest
    assert last.digest != card_of(run, 0)[1].digest
    with companies(run) as grid:
        third = Without(grid, 9)
        assert coordinated(run, third)[-2] == again[-2]
        assert third.deliveries == []


def test_a_run_is_done_though_its_model_cannot_be_sent(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a run that fails after its last round, for want of a copy."""
    training = small.training.model_copy(update={"rounds": 1})
    run = prepare(small.model_copy(update={"training": training}), tmp_path / "run")

    class Forgetting(GridOver):
        """The public model is lost before it is needed."""

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            sent = list(messages)
            if sent and sent[0].metadata.message_type == KEYS:
                shutil.rmtree(run.checkpoints / "round-0000", ignore_errors=True)
            return self._grid.send_and_receive(sent, timeout=timeout)

    with companies(run) as grid:
        told = coordinated(run, Forgetting(grid))
    assert isinstance(told[-1], RunFinished)
    assert not any(isinstance(event, ModelDelivered) for event in told)
    assert Checkpoint.load(run.checkpoints).round == 1


@pytest.mark.slow
def test_real_companies_get_it_over_grpc_and_one_that_was_killed_afterwards(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Processes of their own: would catch a stream that ends before the model came, and an agent that has forgotten
    the run by the time that it comes back."""
    homes, plane = tmp_path / "homes", tmp_path / "plane"
    run = prepare(named(small), tmp_path / "run")
    coordinators_own(run, homes)
    serve_companies(run, homes, plane)

    def having() -> list[str]:
        return [name for name in NAMES if (homes / name / "models" / "run" / "model.json").is_file()]

    assert having() == NAMES[:3]
    agent, serve = (
        command("transport", "agent", homes / "delta"),
        command("transport", "serve", run.path, plane),
    )
    try:
        _, said = serve.communicate(timeout=240)
        assert serve.returncode == 0, said
        assert "the final model is with acme, bolt, cobalt, delta" in said
        agent.communicate(timeout=240)
    finally:
        for process in (serve, agent):
            process.kill()
            process.wait()
    assert having() == NAMES
    told = run.read_json(DELIVERED_FILE)
    assert told is not None
    assert told["companies"] == NAMES
    assert (homes / "delta" / "models" / "run" / "metrics.json").is_file()
