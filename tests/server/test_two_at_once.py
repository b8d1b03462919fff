"""Two messages at once to a company, through a real SuperLink and SuperNodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import two_at_once
from support.deployed import project_of, unguarded, without_seeds

from fedblocks.experiments.bench.transport_flower import flower_run
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow


@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
def test_two_sets_of_survivors_at_once(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a company whose state is lost, or split in two, on the way through Flower: it would sign both sets
    and give seed and key of the company that is in the one and not in the other."""
    four = small.companies.model_copy(update={"count": 4})
    run = prepare(small.model_copy(update={"companies": four}), tmp_path / "run")
    out, project = tmp_path / "out.json", project_of(two_at_once.__file__, tmp_path / "app")
    nodes = list(map(unguarded, without_seeds(run)))
    printed = flower_run(project, nodes, f'run-dir="{run.path}" out="{out}"', tmp_path)
    assert out.is_file(), printed
    result = json.loads(out.read_text())
    assert result["signed_both"] == result["opened_both"] == 0, result
    assert "second_set" in result["codes"], result
