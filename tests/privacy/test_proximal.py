"""FedProx's pull to the start: what it computes, and that no example contributes more because of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.dp_sgd import DPSGD, Losses
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import EpochSampling, PoissonSampling
from fedblocks.protocol.release import default_company_clip, release_event
from fedblocks.settings import Plan, SimulationSettings, TrainingSettings, validated

CLIP, BATCH, RATE = 2.0, 10.0, 0.7
_SIZE = 6


def dp(steps: int, proximal: float, noise: float = 0.0, q: float = 1.0) -> DPSGD:
    return DPSGD(
        sampling=PoissonSampling(q), noise_multiplier=noise, max_grad_norm=CLIP, expected_batch_size=BATCH,
        learning_rate=RATE, steps=steps, noise_draws=1, proximal=proximal,
    )  # fmt: skip


def linear(layer: nn.Linear, x: Tensor) -> Losses:
    """Losses whose gradients are the rows of x wherever the block stands, so that an update can be written down."""
    return lambda indices, draws: layer(x[indices].repeat_interleave(draws, 0))[:, 0]


def update(x: Tensor, steps: int, proximal: float, noise: float = 0.0, q: float = 1.0) -> Tensor:
    layer = nn.Linear(_SIZE, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.25)
    randomness = Randomness.from_seed(3, "proximal")
    found = dp(steps, proximal, noise, q)
    return found.train(layer, linear(layer, x), examples=len(x), randomness=randomness)


def examples(n: int, scale: float = 3.0) -> Tensor:
    return torch.randn(n, _SIZE, generator=torch.Generator().manual_seed(n)) * scale


@pytest.mark.parametrize("proximal", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_example_moves_the_sum_by_at_most_the_clip_at_every_step(steps: int, proximal: float) -> None:
    """Would catch a pull that enters an example's gradient, which would move the update by more than its own clipped
    gradient in each step, weighted as all that was released in that step."""
    x = examples(8)
    with_one, without = update(x, steps, proximal), update(x[:-1], steps, proximal)
    moved = (with_one - without).norm() * BATCH / RATE
    weights = dp(steps, proximal).weights()
    alone = (update(x, 1, 0.0) - update(x[:-1], 1, 0.0)).norm() * BATCH / RATE
    assert 0.9 * CLIP <= float(alone) <= CLIP
    assert float(moved) == pytest.approx(float(alone) * weights.sum(), rel=1e-3)
    assert weights.max() <= 1
    assert float(moved) <= steps * CLIP * (1 + 1e-6)


@pytest.mark.parametrize("proximal", [0.05, 2.0])
def test_the_pull_is_a_function_of_what_was_clipped_and_noised(proximal: float) -> None:
    """Would catch a pull before the clip or the noise: from the noisy sums alone, which a training without a pull
    shows one after the other, the pulled update must follow."""
    steps, x = 4, examples(9)
    prefixes = [torch.zeros(_SIZE, dtype=torch.float64)]
    prefixes += [update(x, k, 0.0, noise=1.3, q=0.5) for k in range(1, steps + 1)]
    noisy = [after - before for before, after in itertools.pairwise(prefixes)]
    expected = torch.zeros(_SIZE, dtype=torch.float64)
    for each in noisy:
        expected = (expected + each) / (1 + RATE * proximal)
    torch.testing.assert_close(update(x, steps, proximal, noise=1.3, q=0.5), expected, rtol=1e-6, atol=1e-9)


def test_without_a_pull_the_bits_are_those_of_dp_sgd() -> None:
    """Would catch arithmetic with mu = 0 that rounds where there was none."""
    layer = nn.Linear(_SIZE, 1, bias=False)
    common = {**vars(dp(3, 0.0, 1.1, 0.5))}
    common.pop("proximal")
    torch.nn.init.constant_(layer.weight, 0.25)
    x = examples(9)
    plain = DPSGD(**common).train(
        layer, linear(layer, x), examples=len(x), randomness=Randomness.from_seed(3, "proximal")
    )
    assert torch.equal(plain, update(x, 3, 0.0, 1.1, 0.5))
    assert np.array_equal(dp(3, 0.0).weights(), np.ones(3))


def test_a_strong_pull_keeps_the_block_where_it_began() -> None:
    """Would catch a pull that overshoots: an explicit step of mu (w - start) diverges at this rate from mu = 3 on."""
    x = examples(9)
    norms = [float(update(x, 20, mu, noise=1.0).norm()) for mu in (0.0, 1.0, 10.0, 1e6)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-5 * norms[0]


def test_the_fixed_point_is_that_of_fedprox() -> None:
    """Would catch a pull of another strength: many steps on a quadratic loss end at the minimum of
    F(w) + mu/2 |w - start|^2, here (sum of targets + B mu start) / (n + B mu) with unclipped gradients."""
    layer, mu, targets = nn.Linear(1, 1, bias=False), 0.3, torch.tensor([0.9, 1.3, 0.2, 0.4])
    torch.nn.init.constant_(layer.weight, -0.5)

    def losses(indices: Tensor, draws: int) -> Tensor:
        return 0.5 * (layer(torch.ones(len(indices) * draws, 1))[:, 0] - targets[indices]) ** 2

    found = dp(300, mu).train(layer, losses, examples=4, randomness=Randomness.from_seed(0, "fixed"))
    expected = (float(targets.sum()) / BATCH + mu * -0.5) / (4 / BATCH + mu)
    assert -0.5 + float(found) == pytest.approx(expected, rel=1e-5)


def test_the_account_is_that_of_the_plan_without_a_pull(small: SimulationSettings) -> None:
    """Would catch a charge that follows mu, or a company clip that a pulled update would not pass."""
    raw = small.model_dump() | {"training": small.training.model_dump() | {"local_steps": 3}}
    pulled = raw | {"training": raw["training"] | {"proximal": 0.5}}
    plain, prox = (
        Plan.of(
            validated(SimulationSettings, each), "run", edges=(0.0, 0.5, 1.0), noise_multiplier=1.0,
            company_clip=5.0, bits=22,
        )
        for each in (raw, pulled)
    )  # fmt: skip
    assert release_event(plain, 100) == release_event(prox, 100)
    assert plain.digest() != prox.digest(), "a company must see what it signs"
    for each in (plain, prox):
        assert default_company_clip(each.training, each, 1.0, 100) == default_company_clip(
            plain.training, plain, 1.0, 100
        )
    assert "proximal" not in plain.model_dump()["training"], "plans without a pull keep their digest"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"local_steps": 1}, "local_steps"),
        ({"local_steps": 4, "batches": "epochs", "sampling_rate": 0.25, "noise_bands": 2}, "noise_bands"),
    ],
)
def test_a_pull_without_a_meaning_is_refused(changes: dict[str, object], field: str) -> None:
    """Would catch FedProx of one step, which is FedAvg at a lower rate, or a pull within correlated noise."""
    with pytest.raises(InputError, match=field):
        validated(TrainingSettings, changes | {"proximal": 0.1})
    with pytest.raises(PrivacyError, match="proximal"):
        DPSGD(
            sampling=EpochSampling(4, regroup=False), noise_multiplier=1.0, max_grad_norm=1.0,
            expected_batch_size=1.0, learning_rate=1.0, steps=4, noise_draws=1, noise_bands=2, proximal=0.1,
        )  # fmt: skip
