"""The cells of a sweep: all of them, each once, and bad input refused before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedblocks.cli.main import app
from fedblocks.errors import InputError
from fedblocks.experiments.sweep.grid import Axis, Grid, baseline


def test_every_combination_is_a_cell_of_its_own_name() -> None:
    """Would catch a combination that is left out, or two cells that share a folder or a row."""
    grid = Grid.of("digits", ["privacy.epsilon=1,8,none", "model.blocks=1,3"], seeds=2)
    runs = [cell for cell in grid.cells if cell.kind == "run"]
    found = {(c.settings.privacy.epsilon, c.settings.model.blocks, c.settings.seed) for c in runs}
    assert found == {(e, b, s) for e in (1.0, 8.0, None) for b in (1, 3) for s in (0, 1)}
    assert len(runs) == len(found) == len({cell.name for cell in runs})
    assert len({cell.digest for cell in grid.cells}) == len(grid.cells)
    assert all(cell.axes["privacy.epsilon"] == cell.settings.privacy.epsilon for cell in runs)
    for cell in runs:
        assert cell.settings.privacy.i_accept_no_dp == (cell.settings.privacy.epsilon is None)


def test_baselines_are_shared_by_all_epsilons_and_by_nothing_else() -> None:
    """Would catch a baseline per epsilon, or one that stands for another model or seed."""
    grid = Grid.of("digits", ["privacy.epsilon=1,8,none", "model.blocks=1,3"], seeds=2)
    for kind in ("pooled", "alone"):
        own = [cell for cell in grid.cells if cell.kind == kind]
        assert sorted((c.settings.model.blocks, c.settings.seed) for c in own) == [
            (1, 0),
            (1, 1),
            (3, 0),
            (3, 1),
        ]
        assert all(c.axes == {"model.blocks": c.settings.model.blocks} for c in own)
        assert {baseline(kind, c).digest for c in grid.cells if c.kind == "run"} == {c.digest for c in own}
    assert not [c for c in Grid.of("digits", ["model.blocks=1"], baselines=False).cells if c.kind != "run"]


def test_a_sweep_is_named_by_what_it_varies_so_that_more_of_it_goes_on_in_the_same_folder() -> None:
    """Would catch a sweep that begins anew for one more value or seed, or goes on with other settings."""
    first = Grid.of("digits", ["privacy.epsilon=1,8"], seeds=1).digest
    assert first == Grid.of("digits", ["privacy.epsilon=1,3,8"], seeds=3, baselines=False).digest
    assert first != Grid.of("digits", ["privacy.epsilon=1,8"], overrides=["training.rounds=9"]).digest
    assert first != Grid.of("digits", ["privacy.delta=1e-5,1e-6"]).digest


def test_cells_judge_their_model_seldom_unless_that_is_asked_for() -> None:
    """Would catch a sweep that spends a seventh of its time on points of curves that nobody draws, one that is deaf
    to what the user says, and a cell that judges its model more often than its preset."""

    def every(*overrides: str) -> set[int]:
        grid = Grid.of("digits", ["privacy.epsilon=1,8"], overrides=overrides)
        return {cell.settings.training.evaluate_every for cell in grid.cells}

    assert every() == {12}  # of 240 rounds
    assert every("training.rounds=9") == {1}
    assert every("training.evaluate_every=1") == {1}
    assert every("training.evaluate_every=50") == {50}


def test_commas_within_brackets_and_quotes_belong_to_a_value() -> None:
    """Would catch a list that is cut into pieces."""
    assert Axis.of("training.server_betas=[0.9, 0.99],[0.5,0.5]").values == ("[0.9, 0.99]", "[0.5,0.5]")
    assert Axis.of('data.public.source="a,b",c').values == ('"a,b"', "c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--over", "privacy.epsilo=1,3"], "privacy.epsilo=1: unknown field"),
        (["--over", "privacy.epsilon="], "a value is missing"),
        (["--over", "privacy.epsilon"], "expected field=value,value"),
        ([], "an empty grid"),
        (["--over", "privacy.epsilon=3,3.0"], "two cells of one name"),
        (["--over", "privacy.epsilon=1", "--over", "privacy.epsilon=3"], "named twice"),
        (["--over", "privacy.epsilon=1", "--set", "privacy.epsilon=3"], "an axis of the grid"),
        (["--over", "seed=1,2"], "--seeds"),
        (["--over", "privacy.epsilon=1,-2"], "privacy.epsilon=-2"),
        (["--over", "model.blocks=1,2"], "must be a multiple of blocks"),
    ],
)
def test_bad_input_is_refused_with_exit_code_2_and_nothing_is_begun(
    words: list[str], message: str, tmp_path: Path
) -> None:
    """Would catch a sweep that begins with the cells that can be used, or a complaint that names no rule."""
    done = CliRunner().invoke(app, ["sweep", "digits", *words, "--runs-dir", str(tmp_path / "runs")])
    assert isinstance(done.exception, InputError), done.output
    assert message in str(done.exception)
    assert not (tmp_path / "runs").exists()
