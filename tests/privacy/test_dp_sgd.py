"""Per-example clipping and DP-SGD: bounds, an oracle loop, Poisson sampling, noise as accounted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from support.clipping_loop import clipped_sum, flat, gradients_one_by_one
from torch import nn

from fedblocks.errors import InputError, PrivacyError, UnsupportedLayer
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.privacy.dp_sgd import DPSGD, clip_to_norm
from fedblocks.privacy.mechanisms import add_gaussian_noise
from fedblocks.privacy.mechanisms.banded import BandedNoise
from fedblocks.privacy.quantile_clip import QuantileClip
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import EpochSampling, PoissonSampling


@settings(deadline=None, max_examples=40)
@given(bound=st.floats(1e-30, 1e2), scale=st.floats(1e-35, 1e30), n=st.integers(1, 6))
def test_each_contribution_is_within_the_bound(bound: float, scale: float, n: int) -> None:
    """Would catch a clip that rounding can pass: adding one example moves the sum by at most the bound."""
    layer = nn.Linear(50, 1, bias=False)
    x = torch.randn(n, 50, generator=torch.Generator().manual_seed(n)) * scale
    with PerExampleClipping(layer, max_grad_norm=bound) as clipping:
        sums = [
            clipping.sum(lambda part, k=k: layer(x[:k][part])[:, 0], examples=k).vector.double()
            for k in range(n + 1)
        ]
    for without, with_one in itertools.pairwise(sums):
        assert float((with_one - without).norm()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])  # the square of the last overflows
def test_a_gradient_that_is_not_finite_counts_as_zero(bad: float) -> None:
    """Would catch a refusal, or a poisoned sum, by which one example would betray that it is there."""
    layer = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[0.3, 0.4], [bad, bad]])
    with PerExampleClipping(layer, max_grad_norm=10.0) as clipping:
        total = clipping.sum(lambda part: layer(x[part])[:, 0], examples=2)
    torch.testing.assert_close(total.vector, x[0].double())


def test_a_layer_without_per_example_gradients_is_refused_by_name() -> None:
    """Would catch a bare parameter that silently gets no per-example gradient."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.inner = nn.Linear(3, 3)

    with pytest.raises(UnsupportedLayer, match="scale"):
        PerExampleClipping(Bare(), max_grad_norm=1.0)


def dp(**changes: object) -> DPSGD:
    values: dict[str, object] = {
        "sampling": PoissonSampling(0.3), "noise_multiplier": 1.5, "max_grad_norm": 2.0, "expected_batch_size": 10.0,
        "learning_rate": 1.0, "steps": 1, "noise_draws": 1,
    }  # fmt: skip
    return DPSGD(**(values | changes))  # type: ignore[arg-type]


def zero_losses(layer: nn.Linear):  # type: ignore[no-untyped-def]
    return lambda indices, draws: (layer(torch.zeros(len(indices) * draws, 40)) * 0).sum(1)


def test_an_empty_batch_still_takes_its_noise_step() -> None:
    """Would catch a skipped step, which the account does not allow for."""
    layer = nn.Linear(40, 30)
    update = dp().train(layer, zero_losses(layer), examples=0, randomness=Randomness.from_seed(0, "x"))
    assert float(update.std()) == pytest.approx(1.5 * 2.0 / 10, rel=0.1)


def test_noise_has_the_accounted_deviation_and_differs_from_step_to_step() -> None:
    """Without signal the update is noise alone: sd = lr z C sqrt(steps) / expected batch."""
    layer = nn.Linear(40, 30)
    update = dp(steps=9, learning_rate=0.5).train(
        layer, zero_losses(layer), examples=50, randomness=Randomness.from_seed(0, "y")
    )
    assert float(update.std()) == pytest.approx(0.5 * 1.5 * 2.0 * 3 / 10, rel=0.1)


def test_every_example_joins_with_probability_q_on_its_own() -> None:
    """Would catch fixed-size or shuffled batches: batch sizes must vary as a binomial law says."""
    layer, sizes, hits = nn.Linear(40, 30), [], torch.zeros(50)

    def losses(indices: torch.Tensor, draws: int) -> torch.Tensor:
        drawn = indices.unique()  # some fill the pass up
        sizes.append(len(drawn))
        hits[drawn] += 1
        return zero_losses(layer)(indices, draws)

    dp(steps=400).train(layer, losses, examples=50, randomness=Randomness.from_seed(1, "z"))
    counts = torch.tensor(sizes, dtype=torch.float64)
    assert float(counts.mean()) == pytest.approx(15, abs=0.6)
    assert float(counts.var()) == pytest.approx(50 * 0.3 * 0.7, rel=0.25)
    assert hits.min() > 80
    assert hits.max() < 165


def test_same_randomness_same_update_and_other_randomness_another() -> None:
    def run(label: str) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(40, 30)
        return dp(steps=2).train(
            layer,
            lambda i, d: layer(torch.ones(len(i) * d, 40)).sum(1),
            examples=20,
            randomness=Randomness.from_seed(5, label),
        )

    assert torch.equal(run("a"), run("a"))
    assert not torch.equal(run("a"), run("b"))


def test_the_event_is_what_was_run() -> None:
    event = dp(steps=7).event()
    assert (event.sampling_rate, event.noise_multiplier, event.steps) == (0.3, 1.5, 7)


@pytest.mark.parametrize("changes", [{"expected_batch_size": 0.0}, {"noise_multiplier": -1}])
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        dp(**changes)


def test_company_clip_bounds_an_update_and_sends_zero_for_what_is_not_finite() -> None:
    assert float(clip_to_norm(torch.full((9,), 100.0).double(), 2.0).norm()) == pytest.approx(2.0)
    small = torch.ones(4).double() / 10
    assert torch.equal(clip_to_norm(small, 2.0), small)
    assert torch.equal(clip_to_norm(torch.tensor([1.0, float("inf")]), 2.0), torch.zeros(2))


def test_noise_follows_the_sums_own_sensitivity() -> None:
    from fedblocks.privacy.clipping import ClippedSum

    noisy = add_gaussian_noise(ClippedSum(torch.zeros(20000), 3.0, 0), 2.0, Randomness.from_seed(0, "n"))
    assert float(noisy.std()) == pytest.approx(6.0, rel=0.03)


class EveryKind(nn.Module):
    """Every supported layer, one of them used twice, one frozen in part."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.reused = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6, eps=1e-6)
        self.wide = nn.Linear(6, 40, bias=False)
        self.narrow = nn.Linear(40, 1)
        self.narrow.weight.requires_grad_(False)
        self.tokens = tokens

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.reused(self.table(ids)))  # (N, T, 6)
        x = self.rms(x + self.reused(x).tanh())
        return self.narrow(self.wide(x).sin()).sum(dim=(1, 2))


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_every_layer_kind_equals_a_loop_over_single_examples(tokens: int) -> None:
    """Oracle in float64, to 1e-9. 30 tokens take the other of the two ways to a Linear's norm.

    Would catch a Gram matrix over the wrong axis, or a second use or repeated token counted on its own.
    """
    torch.manual_seed(0)
    net = EveryKind(tokens).double()
    ids = torch.randint(5, (4, tokens))
    weights = torch.arange(1, 5)

    def losses(part: torch.Tensor) -> torch.Tensor:
        return net(ids[part]) * weights[part]

    expected = clipped_sum(gradients_one_by_one(net, losses, examples=4), flat(0.7, torch.float64))
    with PerExampleClipping(net, max_grad_norm=0.7, examples_at_once=3) as clipping:
        total = clipping.sum(losses, examples=4)
    torch.testing.assert_close(total.vector, expected, rtol=2e-6, atol=1e-9)


def test_a_tied_parameter_and_rows_that_are_no_examples_are_refused() -> None:
    """Would catch a weight counted in two layers apart, and a table read once for the whole batch."""
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(UnsupportedLayer, match="same parameter"):
        PerExampleClipping(tied, max_grad_norm=1.0)
    position = nn.Embedding(4, 2)
    with (
        PerExampleClipping(position, max_grad_norm=1.0) as clipping,
        pytest.raises(UnsupportedLayer, match="rows"),
    ):
        clipping.sum(lambda part: position(torch.arange(4)).sum() * torch.ones(2), examples=2)


def test_correlated_noise_is_that_of_the_stream_and_costs_what_it_says() -> None:
    """Would catch noise of independent steps charged as correlated, and an update that carries more of it."""
    noise = BandedNoise(steps=40, bands=8, separation=10, noise_multiplier=3.0)
    common = {
        "noise_multiplier": 3.0, "max_grad_norm": 1.0, "expected_batch_size": 1.0, "learning_rate": 1.0,
        "steps": 40, "noise_draws": 1,
    }  # fmt: skip
    banded = DPSGD(sampling=EpochSampling(10, regroup=False), noise_bands=8, **common)  # type: ignore[arg-type]
    plain = DPSGD(sampling=EpochSampling(10), **common)  # type: ignore[arg-type]
    assert banded.event(9) == noise.event(9)
    assert banded.event() == plain.event()

    def spread(dp: DPSGD) -> float:
        update = dp.train(
            nn.Linear(200, 100),
            lambda indices, draws: torch.zeros(0),
            examples=0,
            randomness=Randomness.from_seed(1, "bands"),
        )
        return float(update.std())

    # Of no examples the update is noise alone: the last row of A C^-1 Z, with A the running sums and C the bands.
    bands = np.zeros(40)
    bands[:8] = noise.coefficients
    assert np.linalg.norm(bands) == pytest.approx(1)  # the sensitivity that is charged counts on it
    response = np.tril(np.ones((40, 40))) @ np.linalg.inv(toeplitz(bands, np.zeros(40)))
    assert spread(banded) == pytest.approx(3.0 * float(np.linalg.norm(response[-1])), rel=0.02)
    assert spread(plain) == pytest.approx(3.0 * 40**0.5, rel=0.02)
    assert spread(banded) < 0.75 * spread(plain)


def test_correlated_noise_is_refused_where_its_account_does_not_hold() -> None:
    """Would catch bands over Poisson batches, over batches that regroup, or under a clip that moves."""
    common = {
        "noise_multiplier": 3.0, "max_grad_norm": 1.0, "expected_batch_size": 1.0, "learning_rate": 1.0,
        "steps": 40, "noise_draws": 1, "noise_bands": 4,
    }  # fmt: skip
    fixed = EpochSampling(10, regroup=False)
    quantile = QuantileClip.beside(0.5, 3.0, 10)
    for wrong in (
        {"sampling": PoissonSampling(0.1)}, {"sampling": EpochSampling(10)},
        {"sampling": fixed, "quantile_clip": quantile},
    ):  # fmt: skip
        with pytest.raises(PrivacyError, match="correlated"):
            DPSGD(**common, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bands"):
        DPSGD(**{**common, "noise_bands": 11}, sampling=fixed).event()  # type: ignore[arg-type]
