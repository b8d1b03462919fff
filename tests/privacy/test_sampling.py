"""Batches are drawn as they are accounted: frequencies, independence, sizes, and the event of each scheme."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom, chisquare
from torch import nn

from fedblocks.errors import InputError
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.privacy.events import (
    EpochGaussian,
    GaussianSteps,
    TruncatedGaussianSteps,
)
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import EpochSampling, PoissonSampling, Sampling

SCHEMES = [PoissonSampling(0.3), PoissonSampling(0.3, batch_cap=3), EpochSampling(4)]


def joined(sampling: Sampling, examples: int, steps: int, label: str = "s") -> NDArray[np.bool_]:
    """(steps, examples): who is in which batch."""
    table = np.zeros((steps, examples), dtype=bool)
    randomness = Randomness.from_seed(7, label)
    for step, batch in enumerate(sampling.batches(examples, steps, randomness)):
        assert batch.dtype == torch.int64
        assert (np.diff(batch.numpy()) > 0).all()
        table[step, batch.numpy()] = True
    assert step == steps - 1
    return table


def likely(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> bool:
    return float(chisquare(observed, expected / expected.sum() * observed.sum()).pvalue) > 1e-3


def pairs_together(table: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each two examples share a batch, (n (n-1) / 2,)."""
    together = table.T.astype(np.int64) @ table.astype(np.int64)
    return together[np.triu_indices(len(together), 1)]


def test_poisson_batches_are_independent_coins() -> None:
    n, steps, q = 8, 20_000, 0.3
    table = joined(PoissonSampling(q), n, steps)
    sizes = np.bincount(table.sum(1), minlength=n + 1)
    assert likely(sizes, binom.pmf(np.arange(n + 1), n, q))
    for example in table.T:
        assert likely(np.bincount(example, minlength=2), np.array([1 - q, q]))
    # Two examples, and one example in two steps after another: all four outcomes as independence says.
    product = np.outer([1 - q, q], [1 - q, q]).ravel()
    assert likely(np.bincount(2 * table[:, 0] + table[:, 1], minlength=4), product)
    assert likely(np.bincount(2 * table[::2, 0] + table[1::2, 0], minlength=4), product)


def test_poisson_batches_are_the_ones_before_there_were_schemes() -> None:
    randomness, same = Randomness.from_seed(3, "p"), Randomness.from_seed(3, "p")
    for batch in PoissonSampling(0.2).batches(50, 5, randomness):
        assert np.array_equal(batch.numpy(), np.flatnonzero(same.bernoulli(50, 0.2)))
        # Between two batches a release draws its noise.
        assert np.array_equal(randomness.normal(3), same.normal(3))


def test_empty_batches_stay() -> None:
    sizes = joined(PoissonSampling(0.01), 10, 500).sum(1)
    assert (sizes == 0).mean() == pytest.approx(0.99**10, abs=0.05)
    assert len(list(PoissonSampling(0.5).batches(0, 4, Randomness.from_seed(0)))) == 4


def test_the_cap_is_never_passed_and_drops_uniformly() -> None:
    n, steps, q, cap = 8, 20_000, 0.5, 3
    table = joined(PoissonSampling(q, batch_cap=cap), n, steps)
    sizes = np.bincount(table.sum(1), minlength=n + 1)
    law = binom.pmf(np.arange(n + 1), n, q)
    law[cap], law[cap + 1 :] = law[cap:].sum(), 0
    assert sizes[cap + 1 :].sum() == 0
    assert likely(sizes[: cap + 1], law[: cap + 1])
    # Of the full batches every example has its share, and so has every pair.
    full = table[table.sum(1) == cap]
    assert likely(full.sum(0), np.full(n, 1.0))
    assert likely(pairs_together(full), np.full(n * (n - 1) // 2, 1.0))


@pytest.mark.parametrize(("batch_count", "steps"), [(5, 500), (5, 502), (1, 3), (7, 6)])
def test_every_example_is_in_exactly_one_batch_of_an_epoch(batch_count: int, steps: int) -> None:
    table = joined(EpochSampling(batch_count), 40, steps)
    for start in range(0, steps, batch_count):
        epoch = table[start : start + batch_count]
        times = epoch.sum(0)
        assert (times == 1).all() if len(epoch) == batch_count else (times <= 1).all()


def test_balls_fall_into_bins_on_their_own() -> None:
    n, bins, epochs = 6, 4, 6000
    table = joined(EpochSampling(bins), n, bins * epochs)
    where = table.reshape(epochs, bins, n).argmax(1)  # (epochs, n) each example's batch
    sizes = np.bincount(table.sum(1), minlength=n + 1)
    assert likely(sizes[:5], binom.pmf(np.arange(n + 1), n, 1 / bins)[:5])
    assert likely(np.bincount(bins * where[:, 0] + where[:, 1], minlength=bins**2), np.full(bins**2, 1.0))
    assert likely(np.bincount(bins * where[:-1:2, 0] + where[1::2, 0], minlength=16), np.full(16, 1.0))


def test_a_release_begins_a_new_epoch() -> None:
    whole = joined(EpochSampling(3), 30, 3)
    again = joined(EpochSampling(3), 30, 3, label="other")
    assert whole.sum() == again.sum() == 30
    assert not np.array_equal(whole, again)


def test_each_scheme_says_which_account_is_its_own() -> None:
    assert PoissonSampling(0.1).event(1.5, 20) == GaussianSteps(
        sampling_rate=0.1, noise_multiplier=1.5, steps=20
    )
    assert PoissonSampling(0.1, batch_cap=30).event(1.5, 20, 100) == TruncatedGaussianSteps(
        sampling_rate=0.1, noise_multiplier=1.5, steps=20, examples=100, batch_cap=30
    )
    # An epoch that is begun counts as a whole.
    for steps, epochs in ((1, 1), (5, 1), (6, 2), (10, 2)):
        assert EpochSampling(5).event(1.5, steps) == EpochGaussian(noise_multiplier=1.5, epochs=epochs)
    with pytest.raises(InputError, match=r"^examples=None"):
        PoissonSampling(0.1, batch_cap=30).event(1.5, 20)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, math.nan])
def test_settings_are_checked(value: object) -> None:
    for make in (EpochSampling, lambda v: PoissonSampling(0.1, batch_cap=v or 0)):
        with pytest.raises(InputError):
            make(value)  # type: ignore[operator]
    with pytest.raises(InputError):
        PoissonSampling(1.5 if value == 1.5 else value)  # type: ignore[arg-type]


def dp(**changes: object) -> DPSGD:
    settings: dict[str, object] = {
        "noise_multiplier": 1.5, "max_grad_norm": 1.0, "expected_batch_size": 3.0, "learning_rate": 1.0,
        "steps": 6, "noise_draws": 1,
    }  # fmt: skip
    return DPSGD(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", SCHEMES)
def test_training_draws_the_batches_of_its_scheme_and_charges_its_event(sampling: Sampling) -> None:
    layer, seen = nn.Linear(2, 1), []

    def losses(indices: torch.Tensor, draws: int) -> torch.Tensor:
        seen.append(indices.tolist())
        return layer(torch.ones(len(indices) * draws, 2)).sum(1)

    dp(sampling=sampling).train(layer, losses, examples=10, randomness=Randomness.from_seed(1, "t"))
    first = next(sampling.batches(10, 6, Randomness.from_seed(1, "t"))).tolist()
    # In random order, and filled up to the size of a pass; an empty batch trains nothing.
    assert set(first) in (set(seen[0]), set())
    assert dp(sampling=sampling).event(examples=10) == sampling.event(1.5, 6, 10)


def test_training_s_event_is_its_scheme_s() -> None:
    capped = PoissonSampling(0.3, batch_cap=5)
    assert dp(sampling=capped).event(7, 10) == capped.event(1.5, 6, 10, dimension=7)
    with pytest.raises(InputError, match="examples"):
        dp(sampling=capped).event()


def test_batches_that_do_not_regroup_keep_an_examples_steps_an_epoch_apart() -> None:
    """Would catch correlated noise whose sensitivity rests on a separation that does not hold."""
    table = joined(EpochSampling(5, regroup=False), 200, 15)
    assert (table[:5].sum(axis=0) == 1).all()
    assert (table[:5] == table[5:10]).all()
    assert (table[:5] == table[10:]).all()
    assert not (joined(EpochSampling(5), 200, 10)[:5] == joined(EpochSampling(5), 200, 10)[5:]).all()
