"""A whole run with evaluations: the opened figures are those of the held-out examples, with their noise."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from support.deployed import without_seeds

from fedblocks.blocks import build_model, digest, merge
from fedblocks.blocks.examples import Examples
from fedblocks.client.app import app
from fedblocks.client.evaluating import summed
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.protocol.evaluation import evaluation_event, evaluation_run
from fedblocks.protocol.messages import EVALUATE
from fedblocks.server.attendance import Patience
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.grid import GridOver, InProcessGrid
from fedblocks.server.own_account import planned
from fedblocks.server.reasons import evaluation_in_words
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.standing import standing_of
from fedblocks.settings import SimulationSettings, validated
from fedblocks.threat_model.report import write_report

QUICK = Patience(linger=0.0, retry=0.05, deliver=0.0, poll=0.01)


def judging(small: SimulationSettings, rounds: int = 4, **told: Any) -> SimulationSettings:
    raw = small.model_dump()
    raw["evaluation"] = {"noise_multiplier": 4.0, "every": 1, **told}
    raw["training"] |= {"rounds": rounds}
    raw["companies"]["held_out"] = 0.5
    return validated(SimulationSettings, raw)


def truth(run: RunFolder, round_: int) -> np.ndarray[Any, Any]:
    """(scores, examples) of all companies' held-out examples under the model of a round."""
    plan, state = run.plan(), Checkpoint.load(run.checkpoints, round_).model
    model = build_model(plan.model, plan.noise).eval()
    merge(model, state.shared, *state.blocks)
    parts = [Examples.load(home / "held_out.npz") for home in run.homes()]
    total: np.ndarray[Any, Any] = np.sum([summed(model, part, plan) for part in parts], axis=0)
    return total


@pytest.fixture(scope="module", params=["local", pytest.param("secure_step", marks=pytest.mark.slow)])
def run(
    request: pytest.FixtureRequest, small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    settings = judging(small)
    if request.param == "secure_step":
        raw = settings.model_dump()
        raw["privacy"] |= {"mode": "secure_step", "dropouts": 1}
        raw["training"]["local_steps"] = 1
        settings = validated(SimulationSettings, raw)
    made = prepare(settings, tmp_path_factory.mktemp("judged") / "run")
    simulate(made)
    return made


def test_the_opened_figures_are_the_true_ones_with_noise_of_the_deviation_that_is_said(
    run: RunFolder,
) -> None:
    """Of a seeded run: would catch sums over training examples, of another round's model, or without any noise."""
    errors = []
    for round_ in (3, 4):
        found = run.metrics()[round_]["evaluation"]
        assert found["status"] == "done"
        assert len(found["survivors"]) == 5
        seen = np.array([found["scores"], found["examples"]])
        errors += list((seen - truth(run, round_)) / found["deviation"])
    assert max(map(abs, errors)) < 4.5
    assert min(map(abs, errors)) > 1e-4


def test_each_company_is_charged_for_each_evaluation_within_its_ceiling(run: RunFolder) -> None:
    """Would catch an evaluation that nobody pays for, and an epsilon of the plan that leaves it out."""
    plan = run.plan()
    for home in run.homes():
        ledger = read_ledger(home / "ledger.sqlite")
        rows = [row for row in ledger.rows if row.run == evaluation_run(plan.run)]
        assert [(row.round, row.block) for row in rows] == [(r, "evaluation") for r in range(1, 5)]
        assert {row.event for row in rows} == {evaluation_event(plan, 5)}
        assert ledger.spent.epsilon == pytest.approx(planned(plan, 5).epsilon)
        assert ledger.spent.epsilon <= 8


def test_report_and_status_show_it(run: RunFolder) -> None:
    found = standing_of(run)["evaluation"]
    assert found == run.metrics()[-1]["evaluation"]
    said = evaluation_in_words(found)
    assert f"round 4: {said}" in write_report(run).read_text()


def test_no_held_out_example_has_any_part_in_training(small: SimulationSettings, tmp_path: Path) -> None:
    """To the last bit, as a simulation's noise is seeded: would catch one that enters a batch or a norm."""
    first = prepare(judging(small, rounds=2, every=0), tmp_path / "first")
    second = RunFolder(Path(shutil.copytree(first.path, tmp_path / "second")))
    for home in second.homes():
        data = Examples.load(home / "held_out.npz")
        Examples(-data.inputs, data.targets.flip(0)).save(home / "held_out.npz")
    for made in (first, second):
        simulate(made)
    models = [Checkpoint.load(made.checkpoints).model for made in (first, second)]
    assert len({digest(*model.blocks) for model in models}) == 1
    norms = [
        [task["update_norm"] for row in made.metrics()[1:] for task in row["tasks"]]
        for made in (first, second)
    ]
    assert norms[0] == norms[1]


class Deaf(GridOver):
    """Two of the companies do not answer in an evaluation."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = [m for m in messages if m.metadata.message_type != EVALUATE or m.metadata.dst_node_id > 2]
        return self._grid.send_and_receive(sent, timeout=timeout)


def test_an_evaluation_that_fails_opens_nothing_and_stops_nothing(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Real companies, of whom too few answer: would catch a run that ends for want of a figure, and a sum of few."""
    run = prepare(judging(small, rounds=1), tmp_path / "run")
    without_seeds(run)
    grid = InProcessGrid(app, 5, {"run-dir": str(run.path)})
    try:
        coordinate(Deaf(grid), run, patience=QUICK)
    finally:
        grid.close()
    row = run.metrics()[-1]
    assert row["status"] == "done"
    assert row["evaluation"] == {
        "metric": "accuracy",
        "status": "too_few",
        "absent": {f"company-{i}": [EVALUATE, "no_reply"] for i in range(2)},
    }
    assert "was not evaluated" in evaluation_in_words(row["evaluation"])


@pytest.mark.slow
def test_it_is_the_same_over_grpc_and_by_groups(small: SimulationSettings, tmp_path: Path) -> None:
    """To the last bit on either transport; and with companies in groups, whose sums are added."""
    runs = [prepare(judging(small, rounds=2), tmp_path / "a")]
    runs.append(RunFolder(Path(shutil.copytree(runs[0].path, tmp_path / "b"))))
    for made, transport in zip(runs, ("grid", "grpc"), strict=True):
        simulate(made, transport=transport)  # type: ignore[arg-type]
    found = [[row["evaluation"] for row in made.metrics()[1:]] for made in runs]
    assert found[0] == found[1]
    raw = judging(small, rounds=2).model_dump()
    raw["training"]["assignment"] = "parallel"
    raw["companies"]["count"] = 6
    grouped = prepare(validated(SimulationSettings, raw), tmp_path / "c")
    simulate(grouped)
    last = grouped.metrics()[-1]["evaluation"]
    assert len(last["survivors"]) == 6
    true = truth(grouped, 2)
    assert abs(last["examples"] - true[1]) < 4.5 * last["deviation"]
