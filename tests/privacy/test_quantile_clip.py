"""The clip that follows a quantile: where it goes, what it costs, what its noise is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from torch import nn

from fedblocks.errors import InputError, PrivacyError
from fedblocks.experiments.presets import load_settings
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.privacy.mechanisms.gaussian import grid
from fedblocks.privacy.quantile_clip import QuantileClip
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import PoissonSampling


def of(within: int, examples: int, clip: float = 1.0) -> ClippedSum:
    return ClippedSum(torch.zeros(3), clip, examples, within)


def test_the_clip_rises_while_too_many_are_clipped_and_falls_while_too_few() -> None:
    """Closed form of one step, without noise: exp(-0.2 (share - quantile))."""
    rule, randomness = QuantileClip(quantile=0.5, count_noise=0.0), Randomness.from_seed(0, "q")
    assert rule.next(of(0, 100), 100, randomness) == pytest.approx(math.exp(0.1))
    assert rule.next(of(100, 100), 100, randomness) == pytest.approx(math.exp(-0.1))
    assert rule.next(of(50, 100, 3.0), 100, randomness) == pytest.approx(3.0)


def test_it_does_not_rise_above_a_companys_own_bound() -> None:
    rule = QuantileClip(quantile=0.9, count_noise=0.0, largest=1.05)
    clips = [1.0]
    for _ in range(3):
        clips.append(rule.next(of(0, 100, clips[-1]), 100, Randomness.from_seed(0, "q")))
    assert clips[1:] == [1.05] * 3


def test_it_settles_at_the_quantile_of_the_norms() -> None:
    """Would catch a count of the clipped instead of the others, or a clip that is not handed on."""
    layer, x = nn.Linear(5, 1, bias=False), torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    clips = []

    class Watched(QuantileClip):
        def next(self, clipped: ClippedSum, expected_batch_size: float, randomness: Randomness) -> float:
            clips.append(super().next(clipped, expected_batch_size, randomness))
            return clips[-1]

    DPSGD(
        sampling=PoissonSampling(1.0), noise_multiplier=1.0, max_grad_norm=0.01, expected_batch_size=400.0,
        learning_rate=1e-9, steps=120, noise_draws=1, quantile_clip=Watched(quantile=0.7, count_noise=5.0),
    ).train(layer, lambda i, d: layer(x[i])[:, 0], examples=400, randomness=Randomness.from_seed(1, "x"))  # fmt: skip
    assert sum(clips[-20:]) / 20 == pytest.approx(float(x.norm(dim=1).quantile(0.7)), rel=0.05)


@pytest.mark.parametrize(("noise", "batch"), [(0.7, 20.0), (3.0, 400.0)])
def test_both_sums_together_cost_what_one_of_the_plans_noise_costs(noise: float, batch: float) -> None:
    """Oracle: dp-accounting on the two Gaussians of a step against the one that is charged."""
    rule = QuantileClip.beside(0.5, noise, batch)
    both = PLDAccountant()
    both.compose(dp_event.GaussianDpEvent(rule.sum_noise_multiplier(noise)))
    both.compose(dp_event.GaussianDpEvent(rule.count_noise / 0.5))
    charged = PLDAccountant().compose(dp_event.GaussianDpEvent(noise))
    assert both.get_epsilon(1e-5) == pytest.approx(charged.get_epsilon(1e-5), rel=1e-3)
    assert rule.sum_noise_multiplier(noise) < 1.04 * noise


def test_the_sum_carries_the_noise_that_the_count_leaves_it() -> None:
    layer, rule = nn.Linear(40, 30), QuantileClip(quantile=0.5, count_noise=1.0, learning_rate=0.0)
    update = DPSGD(
        sampling=PoissonSampling(0.3), noise_multiplier=1.5, max_grad_norm=2.0, expected_batch_size=10.0,
        learning_rate=1.0, steps=1, noise_draws=1, quantile_clip=rule,
    ).train(
        layer, lambda i, d: (layer(torch.zeros(len(i), 40)) * 0).sum(1), examples=0,
        randomness=Randomness.from_seed(0, "x"),
    )  # fmt: skip
    expected = (1.5**-2 - 0.25) ** -0.5 * 2.0 / 10
    assert float(update.std()) == pytest.approx(expected, rel=0.08)


def test_the_noisy_count_lies_on_the_grid_of_its_noise() -> None:
    """Would catch a count in plain floats, whose last bits tell whether it was a half more (Mironov 2012)."""
    rule = QuantileClip(quantile=0.5, count_noise=2.0)
    randomness, unit = Randomness.from_seed(4, "q"), grid(2.0)
    counts = [rule._count(of(within, 41), randomness) for within in range(40) for _ in range(20)]
    assert all(count / unit == round(count / unit) for count in counts)
    residuals = [count - (n // 20 - 20.5) for n, count in enumerate(counts)]
    assert float(torch.tensor(residuals).std()) == pytest.approx(2.0, rel=0.1)
    assert QuantileClip(quantile=0.5, count_noise=0.0)._count(of(3, 7), randomness) == -0.5


def test_the_count_is_one_more_value_to_floating_point() -> None:
    common: dict[str, Any] = {
        "sampling": PoissonSampling(0.3), "noise_multiplier": 1.5, "max_grad_norm": 2.0, "expected_batch_size": 10.0,
        "learning_rate": 1.0, "steps": 4, "noise_draws": 1,
    }  # fmt: skip
    rule = QuantileClip.beside(0.5, 1.5, 10.0)
    assert DPSGD(**common).event(100).values == 400
    assert DPSGD(**common, quantile_clip=rule).event(100).values == 404


def test_what_cannot_be_accounted_is_refused() -> None:
    with pytest.raises(PrivacyError, match="count_noise"):
        QuantileClip(quantile=0.5, count_noise=0.5).sum_noise_multiplier(1.0)
    with pytest.raises(PrivacyError, match="quantile"):
        QuantileClip(quantile=1.0, count_noise=0.5)
    with pytest.raises(InputError, match="clip_quantile"):
        load_settings("digits", ["privacy.mode=secure_step", "privacy.clip_quantile=0.5"])
