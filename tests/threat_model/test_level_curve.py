"""The curve of noise levels: its slopes against forward derivatives, and what of it is computed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jvp

from fedblocks.threat_model.level_curve import LevelCurve
from fedblocks.threat_model.unmixing import levels_on

WIDTH = 12


def curve(calls: list[int] | None = None) -> LevelCurve:
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Linear(4, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)).double().requires_grad_(False)
    )
    powers = torch.arange(4, dtype=torch.float64)

    def at(levels: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(levels))
        found: Tensor = net((levels[:, None] * powers + powers).sin())
        return found

    return LevelCurve(at, (-1.0, 2.0))


def test_its_slopes_are_derivatives() -> None:
    """Oracle: forward differentiation. Would catch a search that steps the wrong way."""
    own, levels = curve(), torch.tensor([-0.7, 0.3, 1.9], dtype=torch.float64)
    with torch.no_grad():  # as attacks run
        c, slope = own.with_slope(levels)
    expected = jvp(own.at, (levels,), (torch.ones_like(levels),))
    torch.testing.assert_close(c, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(slope, expected[1], rtol=1e-12, atol=1e-14)
    assert not slope.requires_grad


def test_levels_are_found_and_the_grid_is_computed_once() -> None:
    """Would catch a search that ends early, and thousands of levels computed again for every sum."""
    calls: list[int] = []
    own = curve(calls)
    truth = torch.tensor([-0.4321, 1.2345], dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = torch.randn(40, 2, generator=draw, dtype=torch.float64) @ own.at(truth)
        found, c, outside = levels_on(own, gradient, 2)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
        torch.testing.assert_close(c, own.at(truth), rtol=0, atol=1e-9)
        assert float(outside.max()) < 1e-10
    assert sum(count > 100 for count in calls) == 1
    assert len(calls) < 3 * 12
