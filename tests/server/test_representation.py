"""representation.json: what a run of a pretrained model leaves behind of before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pretrained_runs import pretrained_run

from fedblocks import load_run
from fedblocks.blocks import build_model, merge
from fedblocks.errors import ProtocolError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.evaluation import Evaluator
from fedblocks.server.representation import FILE, Representation
from fedblocks.threat_model.report import write_report


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_run_of_a_pretrained_model_says_what_became_of_it(kind: str, tmp_path: Path) -> None:
    """Would catch before and after that are exchanged, figures on other data than the public set, an untrained block
    that has changed, and a file that a resumed end does not make up for."""
    run = prepare(
        pretrained_run(kind, tmp_path, training={"blocks": [1]}, guard={"public_loss": "flag"}),
        tmp_path / "run",
    )
    simulate(run)
    found = Representation.read(run)
    assert found is not None
    rows = run.metrics()
    public = Evaluator.of(run.evaluation, 0, run.plan().model).sets["public"]
    assert (found.round, found.examples) == (2, len(public))
    assert found.before.public_loss == pytest.approx(rows[0]["public_loss"])
    assert found.after.public_loss == pytest.approx(rows[2]["guard"]["public_loss"])
    assert found.cka[0] == pytest.approx(1.0)  # only block 1 was trained
    assert 0 < found.cka[1] <= 1
    assert found.before.accuracy + found.learnt - found.forgotten == pytest.approx(found.after.accuracy)
    if kind == "encoder":
        assert found.before.accuracy == pytest.approx(rows[0]["quality"]["public"][-1])
        assert found.after.accuracy == pytest.approx(rows[2]["quality"]["public"][-1])
    (run.path / FILE).unlink()
    simulate(run)
    assert Representation.read(run) == found
    assert load_run(run.path).representation() == found
    # The model in memory is that of the last round, whatever was measured in between.
    model = build_model(run.plan().model, run.plan().noise)
    last = Checkpoint.load(run.checkpoints).model
    merge(model, last.shared, *last.blocks)
    evaluator = Evaluator.of(run.evaluation, run.settings().seed, run.plan().model)
    assert evaluator.quality(model) == rows[2]["quality"]
    page = write_report(run).read_text()
    assert "Representation kept" in page
    assert "no privacy is spent" in page
    (run.path / FILE).write_text(json.dumps({"round": 2}))
    with pytest.raises(RunError, match=r"representation\.json"):
        write_report(run)


def test_a_run_that_the_guard_stops_says_it_of_the_model_it_keeps(tmp_path: Path) -> None:
    guard = {"public_loss": "stop", "limit": 1.05}
    apart = {"server_learning_rate": 1e4, "server_optimizer": "fedavg"}
    run = prepare(pretrained_run("vision", tmp_path, training=apart, guard=guard), tmp_path / "run")
    with pytest.raises(ProtocolError, match="public_loss_rose"):
        simulate(run)
    found = Representation.read(run)
    assert found is not None
    assert found.before == found.after
    assert found.cka == pytest.approx((1.0, 1.0))
