"""What another process sees of a run while it goes on."""

from __future__ import annotations

from pathlib import Path

from fedblocks.client.app import app
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.server.coordinator import coordinate
from fedblocks.server.events import Event, RoundFinished
from fedblocks.server.grid import GridOver, InProcessGrid
from fedblocks.server.standing import Standing, standing_of
from fedblocks.settings import SimulationSettings


def test_phase_and_blocks_are_those_of_the_round_at_work(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a status that shows the block that was trained before, or a phase that is over."""
    run = prepare(small, tmp_path / "run")
    names = [f"company-{i}" for i in range(small.companies.count)]
    seen: list[tuple[str | None, list[int]]] = []

    class Looking(GridOver):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            standing._write()
            told = run.read_json("status.json") or {}
            seen.append((told["phase"], told["blocks"]))
            return self._grid.send_and_receive(messages, timeout=timeout)

    standing = Standing(run, names, lambda: names)
    trained: list[int] = []

    def tell(event: Event) -> None:
        standing.tell(event)
        if isinstance(event, RoundFinished) and event.round:
            trained.extend(task["block"] for task in event.row["tasks"])

    grid = InProcessGrid(app, len(names), {"run-dir": str(run.path)})
    with standing.written():
        coordinate(standing.watching(Looking(grid)), run, [tell])
    grid.close()
    assert [phase for phase, _ in seen[:5]] == ["join", "keys", "train", "confirm", "unmask"]
    assert [blocks for phase, blocks in seen if phase == "train"] == [[block] for block in trained]
    assert standing_of(run)["phase"] is None


def test_a_phase_lasts_while_any_group_is_in_it(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a group whose end hides that another still waits, in the parallel assignment."""
    run = prepare(small, tmp_path / "run")
    standing = Standing(run, [], list)

    def told() -> str | None:
        standing._write()
        phase: str | None = (run.read_json("status.json") or {})["phase"]
        return phase

    with standing._phase("train"):
        with standing._phase("keys"):
            assert told() == "keys"
        assert told() == "train"
    assert told() is None
