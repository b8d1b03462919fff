"""The guard on public data: what it measures in every family, and how a run that is driven apart ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import Variant

from fedblocks.blocks import BlockObjective, Seeded, digest
from fedblocks.blocks.examples import Examples
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.guard import Guard, first_loss
from fedblocks.settings import GuardSettings, SimulationSettings, validated
from fedblocks.threat_model.report import write_report
from fedblocks.threat_model.transcript import Transcript


def test_it_is_what_the_blocks_minimise_and_rises_with_damage(variant: Variant) -> None:
    """Oracle: the objective of training, block by block. Would catch another loss (the mixed objective has two), a
    block that is left out, and other noise at every look."""
    model = variant.model()
    inputs, targets = variant.examples(20)
    guard = Guard(GuardSettings(), Examples(inputs, targets), BlockObjective(), seed=3)
    source = Seeded(torch.Generator().manual_seed(3))
    with torch.no_grad():
        own = [
            BlockObjective()(model.eval(), block=b, inputs=inputs, targets=targets, source=source).mean()
            for b in range(len(model.blocks))
        ]
    first = guard.loss(model)
    assert first == pytest.approx(float(torch.stack(own).mean()), rel=1e-4)
    assert not guard.look(1, model, first).past
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.mul_(float("nan"))
    assert guard.look(2, model, first).past


def driven_apart(small: SimulationSettings, guard: dict[str, object]) -> SimulationSettings:
    raw = small.model_dump(mode="json")
    changes = {"server_optimizer": "fedavg", "server_learning_rate": 1e4, "evaluate_every": 4}
    raw["training"] |= changes | {"interface": True}
    return validated(SimulationSettings, raw | {"guard": guard})


@pytest.mark.parametrize("action", ["stop", "flag", "off"])
def test_a_run_that_is_driven_apart_ends_by_name_with_the_model_before(
    small: SimulationSettings, tmp_path: Path, action: str
) -> None:
    """Would catch a guard that lets the ruined round stand, loses the sum that was opened, or ends a run that asks
    for a mark alone."""
    raw = small.model_dump(mode="json")
    raw["training"] |= {
        "server_optimizer": "fedavg",
        "server_learning_rate": 1e4,
        "evaluate_every": 4,
        "interface": True,
    }
    raw["guard"] = {"public_loss": action, "limit": 1.5}
    run = prepare(validated(SimulationSettings, raw), tmp_path / "run")
    if action == "stop":
        with pytest.raises(
            ProtocolError, match=r"round 1: .* checkpoints/round-0000 is the model"
        ) as stopped:
            simulate(run)
        assert stopped.value.code == "public_loss_rose"
        rows = run.metrics()
        assert [row["status"] for row in rows[1:]] == ["public_loss_rose"]
        assert rows[1]["guard"]["flagged"]
        assert rows[1]["quality"] == rows[0]["quality"]
        kept, last = (Checkpoint.load(run.checkpoints, r) for r in (0, 1))
        assert digest(*kept.model.blocks) == digest(*last.model.blocks)
        assert not last.optimizers[0]
        assert [h.status for h in Transcript.of(run).headers] == ["discarded"]
        assert "public_loss_rose" in write_report(run).read_text()
        return
    result = simulate(run)
    rows = run.metrics()
    assert result["rounds_done"] == 4
    assert result["rounds_past_the_guard"] == (1 if action == "flag" else 0)
    assert [row["round"] for row in rows if "guard" in row] == ([4] if action == "flag" else [])
    assert (first_loss(run) is None) == (action == "off")
    page = write_report(run).read_text()
    assert ("public loss" in page) == (action == "flag")


def test_a_stopped_run_that_is_gone_on_with_begins_with_the_next_round(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a round that everybody pays for again, and a limit that is forgotten."""
    run = prepare(driven_apart(small, {"public_loss": "stop"}), tmp_path / "run")
    for round_ in (1, 2):
        with pytest.raises(ProtocolError, match=f"round {round_}: "):
            simulate(run)
    assert [row["round"] for row in run.metrics()] == [0, 1, 2]
