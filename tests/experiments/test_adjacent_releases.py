"""The test of two laws that `bench sensitivity` puts to releases: it finds a false account, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedblocks.experiments.bench.sensitivity.arrangements import ARRANGEMENTS
from fedblocks.experiments.bench.sensitivity.last_bit import aimed
from fedblocks.experiments.bench.sensitivity.releases import verdict

NOISE, ACCOUNTED = 4.0, 0.927  # the Gaussian mechanism at delta 1e-5


def samples(shift: float, count: int = 2_000) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    return shift + NOISE * rng.standard_normal(count), NOISE * rng.standard_normal(count)


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0])
def test_what_moves_by_the_clip_is_not_rejected(shift: float) -> None:
    assert not verdict(*samples(shift), ACCOUNTED, 1e-5).rejected


@pytest.mark.parametrize("shift", [10.0, -10.0])
def test_what_moves_by_ten_clips_is_rejected(shift: float) -> None:
    """Would catch a test that could not find a false account."""
    assert verdict(*samples(shift), ACCOUNTED, 1e-5).rejected


def test_the_aim_finds_the_output_where_most_change_sides() -> None:
    before = {i: torch.tensor([1.0, 2.0]) for i in range(4)}
    after = {i: torch.tensor([1.0, 3.0 if i < 3 else 2.0]) for i in range(5)}
    found = aimed(before, after)
    assert (found.output, found.low, found.spacing) == (1, 2.0, 1.0)
    assert found.directions == {0: 1.0, 1: 1.0, 2: 1.0}


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("n", [1, 2, 3, 1_000])
def test_arrangements_have_as_many_finite_gradients_as_asked(name: str, n: int) -> None:
    table = ARRANGEMENTS[name](n)
    assert table.shape == (n, 2)
    assert torch.isfinite(table).all()
