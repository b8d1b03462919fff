"""The forecaster: nothing of the future in the past, forecasts in any unit, scores against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedblocks.blocks import BlockObjective, Schedule, build_model, sample_chain, train
from fedblocks.blocks.families.forecaster import (
    Forecaster,
    ForecasterSettings,
    forecast,
    patches_of,
    series_of,
)
from fedblocks.blocks.forecast_metrics import crps, mase, seasonal_naive
from fedblocks.experiments.baselines.forecasting import (
    QuantileForecaster,
    quantile_score,
    train_quantiles,
    uncut,
)
from fedblocks.settings import NoiseSettings

SMALL = ForecasterSettings(
    context_length=16, horizon=8, patch_size=4, channels=2, hidden_size=16, layers=4, blocks=2, heads=2
)
NOISE = NoiseSettings(P_mean=-0.5, sigma_min=0.01, sigma_max=20, sigma_data=1.0, weight="edm")


def model(features: str = "prefix") -> Forecaster:
    torch.manual_seed(0)
    net = build_model(SMALL.model_copy(update={"features": features}), NOISE)
    assert isinstance(net, Forecaster)
    for p in net.parameters():  # adaLN-zero hides the noise level; move off it
        p.data += 0.05 * torch.randn_like(p)
    return net


def batch(n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 16, generator=g), torch.randn(n, 2, 8, generator=g)


def test_patches_and_series_are_inverse() -> None:
    """Would catch channels and time swapped in a patch."""
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    assert torch.equal(series_of(patches_of(x, 4), 3), x)
    assert torch.equal(patches_of(x, 4)[1, 1], x[1, :, 4:].flatten())


@pytest.mark.parametrize("features", ["raw", "prefix"])
def test_contexts_know_nothing_of_the_future(features: str) -> None:
    """Would catch a leak of targets or of z into the clean stream, and forecasts that read the targets."""
    net, (x, y) = model(features), batch()
    for b in range(2):
        assert torch.equal(net.context(b, x), net.contexts(x)[b])
    chains = [
        sample_chain(net, x, target, torch.Generator().manual_seed(1), 2, draws=3)[-1]
        for target in (y, y + 9)
    ]
    assert chains[0].shape == (18, 2, 8)
    assert torch.equal(*chains)
    clean, _ = net.blocks[0](net.context(0, x), torch.randn(6, 2, 16), torch.randn(6, 16), need_clean=True)
    other, _ = net.blocks[0](net.context(0, x), torch.randn(6, 2, 16), torch.randn(6, 16), need_clean=True)
    assert torch.equal(clean, other)


def test_draws_of_one_window_share_its_context_and_no_other() -> None:
    """Would catch samples paired with the wrong window: only the changed window's samples change."""
    net, (x, y) = model(), batch()
    other = torch.cat([x[:-1], x[-1:] * -2])
    first, second = (
        sample_chain(net, past, y, torch.Generator().manual_seed(1), draws=3)[-1] for past in (x, other)
    )
    torch.testing.assert_close(first[:-3], second[:-3])
    assert not torch.isclose(first[-3:], second[-3:]).all(dim=(1, 2)).any()


def test_forecasts_follow_the_unit_of_the_series() -> None:
    """Would catch a scale or offset that reaches the network: forecasts of a x + b are a forecast + b."""
    net, (x, _) = model(), batch()
    x = x.double()
    a, b = torch.tensor([[3.0], [0.01]]).double(), torch.tensor([[-1000.0], [7.0]]).double()
    plain, moved = (
        forecast(net, past, torch.Generator().manual_seed(1), samples=4, steps_per_block=2)
        for past in (x, a * x + b)
    )
    assert plain.shape == (6, 4, 2, 8)
    torch.testing.assert_close(moved, a * plain + b, rtol=1e-4, atol=1e-4)
    constant = forecast(net, torch.full((1, 2, 16), 0.3).double(), torch.Generator(), samples=2)
    assert torch.equal(constant, torch.full_like(constant, torch.tensor(0.3).item()))


def test_crps_of_a_gaussian_is_its_closed_form() -> None:
    """Oracle (Gneiting & Raftery 2007, eq. 21); unbiased already at two samples."""
    g = torch.Generator().manual_seed(0)
    mu, sigma = 0.7, 2.0
    for y in (-3.0, 0.0, 1.5):
        w = (y - mu) / sigma
        cdf, pdf = 0.5 * math.erfc(-w / math.sqrt(2)), math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
        exact = sigma * (w * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))
        for m, n in ((2, 100_000), (50, 4_000)):
            samples = mu + sigma * torch.randn(n, m, 1, 1, generator=g).double()
            found = crps(samples, torch.full((n, 1, 1), y).double())
            assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(n)


def test_crps_is_the_mean_over_all_pairs() -> None:
    """Would catch a wrong weight in the sorted form; one sample scores its absolute error."""
    x, y = torch.randn(3, 5, 2, 4).double(), torch.randn(3, 2, 4).double()
    pairs = (x[:, :, None] - x[:, None]).abs().sum(dim=(1, 2)) / (5 * 4)
    expected = ((x - y[:, None]).abs().mean(dim=1) - pairs / 2).mean(dim=(1, 2))
    torch.testing.assert_close(crps(x, y), expected)
    torch.testing.assert_close(crps(x[:, :1], y), (x[:, 0] - y).abs().mean(dim=(1, 2)))


def test_mase_is_its_definition() -> None:
    """Would catch a wrong season, scale or average; a series that repeats itself has none."""
    x, y = (v.double() for v in batch())
    naive = seasonal_naive(x, 8, season=3)
    expected = np.zeros(6)
    for n in range(6):
        for c in range(2):
            for h in range(8):
                assert naive[n, c, h] == x[n, c, 13 + h % 3]
            scale = np.mean([abs(float(x[n, c, t] - x[n, c, t - 3])) for t in range(3, 16)])
            expected[n] += np.mean([abs(float(y[n, c, h] - naive[n, c, h])) for h in range(8)]) / scale / 2
    np.testing.assert_allclose(mase(naive, y, x, season=3).numpy(), expected)
    torch.testing.assert_close(mase(naive * 5 + 1, y * 5 + 1, x * 5 + 1, 3), mase(naive, y, x, 3))
    periodic = torch.arange(15).remainder(3).double().expand(1, 2, 15)
    assert mase(y[:1], y[:1], periodic, season=3).isnan().all()


def test_training_finds_the_law_of_the_future() -> None:
    """Would catch a sampler or preconditioning that leaves the spread wrong: the future is the last value
    plus noise of a known deviation, so the best CRPS is that of a Gaussian."""
    g = torch.Generator().manual_seed(0)
    deviation = 0.5

    def pairs(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 1, 8, generator=g)
        return x, x[..., -1:] + deviation * torch.randn(n, 1, 4, generator=g)

    settings = SMALL.model_copy(update={"context_length": 8, "horizon": 4, "channels": 1, "layers": 2})
    torch.manual_seed(0)
    net = build_model(settings, NOISE)
    train(
        net, *pairs(4000), objective=BlockObjective(weight="edm"), generator=g,
        schedule=Schedule(steps=150, batch_size=64, learning_rate=1e-2),
    )  # fmt: skip
    x, y = pairs(200)
    samples = sample_chain(net, x, y, g, 6, draws=10)[-1]
    best = deviation / math.sqrt(math.pi)
    assert best * 0.9 < float(net.score(samples, y).mean()) < best * 1.2
    spread = samples.unflatten(0, (200, 10)).std(dim=1).mean()
    assert abs(float(spread) / deviation - 1) < 0.25


def test_quantile_baseline_scores_as_crps_does() -> None:
    """Oracle: many quantiles of a Gaussian have its CRPS; and the uncut nets have the layers they claim."""
    levels = (torch.arange(2000).double() + 0.5) / 2000
    quantiles = torch.special.ndtri(levels).view(1, -1, 1, 1)
    exact = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    assert float(quantile_score(quantiles, torch.zeros(1, 1, 1).double(), levels)) == pytest.approx(
        exact, rel=1e-3
    )
    for layers in (2, 4):
        assert [len(block.layers) for block in uncut(SMALL, NOISE, layers).blocks] == [layers]


def test_quantile_baseline_learns() -> None:
    """Would catch a baseline that is handicapped by a defect: it must beat a constant forecast by far."""
    torch.manual_seed(0)
    x = torch.randn(1000, 2, 16)
    y = x[..., -8:] + 0.1 * torch.randn(1000, 2, 8)
    net = QuantileForecaster(SMALL)
    schedule = Schedule(steps=100, batch_size=32, learning_rate=5e-3)
    before = quantile_score(net(x), y, net.levels).mean().item()
    train_quantiles(net, x, y, schedule, torch.Generator().manual_seed(0))
    assert quantile_score(net(x), y, net.levels).mean().item() < 0.5 * before
