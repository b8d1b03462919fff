"""Quality by company and by class in the report: on what was held out, with intervals that flags come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.blocks import Denoiser, Metric, build_model, merge
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.sampler import sample_chain
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.report.check import lines_of
from fedblocks.threat_model.report.facts import Point, Utility
from fedblocks.threat_model.report.measures import Measure, change_interval
from fedblocks.threat_model.report.parted import LEAST, half_width
from fedblocks.threat_model.report.subgroups import OWN, TRAINED, subgroups
from fedblocks.threat_model.report.write import render


@pytest.fixture(scope="module")
def run(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    found = prepare(small, tmp_path_factory.mktemp("groups") / "run")
    simulate(found)
    return found


def right(run: RunFolder, round_: int | None, images: np.ndarray, labels: np.ndarray) -> float:
    """The share that the chain's last block answers rightly, from the checkpoint and the arrays alone."""
    plan = run.plan()
    saved = Checkpoint.load(run.checkpoints) if round_ is None else Checkpoint.load(run.checkpoints, round_)
    model = build_model(plan.model, plan.noise)
    merge(model, saved.model.shared, *saved.model.blocks)
    generator = torch.Generator().manual_seed(run.settings().seed)
    with torch.no_grad():
        answers = sample_chain(model.eval(), torch.tensor(images), torch.tensor(labels), generator)[-1]
    return float((answers.argmax(1).numpy() == labels).mean())


def test_quality_by_company_is_that_of_its_own_held_out_examples(run: RunFolder) -> None:
    """Would catch figures of examples that a company trained on, of another company's, or of another model."""
    report, page = (written := render(run, drawn=False)).report, written.page
    assert report.quality is not None
    [groups] = [each for each in report.quality.subgroups if each.of == "company"]
    assert groups.data == OWN
    assert {g.name for g in groups.groups} == {path.stem for path in run.own_heldout.glob("*.npz")}
    texts = lines_of(page)
    for g in groups.groups:
        with np.load(run.own_heldout / f"{g.name}.npz") as file:
            images, labels = file["inputs"], file["targets"]
        assert g.examples == len(labels)
        assert (g.before, g.after) == (right(run, 0, images, labels), right(run, None, images, labels))
        assert (g.change_low, g.change_high) == change_interval(g.before, g.after, g.examples)
        assert g.lost == (g.change_high is not None and g.change_high < 0)
        at = texts.index(g.name)
        assert texts[at + 1 : at + 4] == [f"{g.examples}", f"{g.before:.1%}", f"{g.after:.1%}"]
    assert groups.worst_decile == pytest.approx(np.quantile([g.after for g in groups.groups], 0.1))
    assert groups.worst_decile_before == pytest.approx(np.quantile([g.before for g in groups.groups], 0.1))


@pytest.mark.slow
def test_a_run_that_kept_no_held_out_examples_by_company_says_so(run: RunFolder, tmp_path: Path) -> None:
    """Would catch figures of training examples that pass for held-out ones."""
    old = RunFolder(Path(shutil.copytree(run.path, tmp_path / "old")))
    shutil.rmtree(old.own_heldout)
    [groups] = [g for g in subgroups(old, Measure(Metric("accuracy", True, "share"))) if g.of == "company"]
    assert groups.data == TRAINED
    assert sum(g.examples for g in groups.groups) == sum(
        len(Examples.load(home / "data.npz")) for home in old.homes()
    )
    assert TRAINED in " ".join(lines_of(render(old, drawn=False).page))


@pytest.mark.slow
def test_a_changed_number_in_the_metrics_moves_the_intervals_of_the_steps(
    run: RunFolder, tmp_path: Path
) -> None:
    """Would catch a flag that is kept where the figure that it stands beside has changed."""
    other = RunFolder(Path(shutil.copytree(run.path, tmp_path / "other")))
    rows = other.metrics()
    rows[-1]["quality"]["heldout"] = [0.9, 0.2]
    other.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    page = " ".join(lines_of(render(other, drawn=False).page))
    assert "A block that hurts" in page
    at = page.index("A block that hurts")
    assert "block 1 loses 70.0 points (95% interval of the step −" in page[at : at + 400], page[at : at + 400]
    rows[-1]["quality"]["heldout"] = [0.2, 0.9]
    other.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert "A block that hurts" not in " ".join(lines_of(render(other, drawn=False).page))


@pytest.mark.parametrize(
    ("halves", "flagged"), [((0.1,), True), ((0.31,), False), ((), False)], ids=["sure", "chance", "unknown"]
)
def test_a_block_of_any_metric_hurts_only_where_its_interval_excludes_nothing(
    halves: tuple[float, ...], flagged: bool
) -> None:
    """Would catch a flag for a difference that chance makes as often, or of which nothing is known."""
    point = Point(3, (2.5, 2.8), ())
    bits = Measure(Metric("bits_per_token", False, "bits"))
    found = Utility(True, bits, (point, point), (), None, 500, 0, halves)
    assert bool(found.losing_blocks()) == flagged


class _Known(Denoiser):
    """Answers with the mean of the inputs plus an offset: its quality over examples is known beforehand."""

    def __init__(self, offset: float) -> None:
        torch.nn.Module.__init__(self)
        self._offset = offset

    def chain_quality(
        self, inputs: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> list[float]:
        column = inputs[:, 0] if self._offset == 0 else inputs[:, 1]
        return [float(column.mean())]


_Known.__abstractmethods__ = frozenset()


def test_the_interval_of_a_change_contains_the_true_one_as_often_as_it_says() -> None:
    """Would catch parts that are counted as examples, a wrong number of degrees of freedom, or a lost factor."""
    draw = np.random.default_rng(0)
    before, after = _Known(0), _Known(1)
    hits = 0
    for _ in range(400):
        data = torch.tensor(draw.normal(0, 1, (60, 2)) + draw.normal(0, 1, (60, 1)))
        part = Examples(data, torch.zeros(60))
        half = half_width(before, after, part, 0)
        assert half is not None
        change = float((data[:, 1] - data[:, 0]).mean())  # the true change is 0
        hits += abs(change) <= half
    assert 0.92 <= hits / 400 <= 0.98
    few = Examples(torch.zeros(LEAST - 1, 2), torch.zeros(LEAST - 1))
    assert half_width(before, after, few, 0) is None
