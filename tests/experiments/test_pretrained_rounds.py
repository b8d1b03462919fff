"""Rounds of the pretrained families over the whole protocol, where the blocks differ in size."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pretrained_runs import pretrained_run

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate


@pytest.mark.parametrize("mode", ["local", "secure_step"])
@pytest.mark.parametrize("blocks", [[0], [1], None])
@pytest.mark.parametrize("kind", ["vision", "decoder"])
def test_any_block_may_be_the_one_that_trains(
    kind: str, blocks: list[int] | None, mode: str, tmp_path: Path
) -> None:
    """Would catch a check before a round that asks for another block than those that train: a last block is smaller,
    and its noise is accounted by the largest."""
    settings = pretrained_run(
        kind, tmp_path, trains="bias", training={"blocks": blocks}, privacy={"mode": mode, "colluders": 1}
    )
    result = simulate(prepare(settings, tmp_path / "runs"))
    assert (result["rounds_done"], result["rounds_failed"], result["refusals"]) == (2, {}, {})
