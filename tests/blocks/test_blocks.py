"""Properties of blocks: noise intervals, preconditioning, training and sampling. See also `test_every_family`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fedblocks.blocks import (
    BlockObjective,
    LogNormalNoise,
    Partition,
    Preconditioning,
    Schedule,
    merge,
    sample_chain,
    train,
)
from fedblocks.blocks.families.vit import ViTClassifier, ViTSettings
from fedblocks.blocks.information import LossCurve, posterior_entropy
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.training import BlockTrainer, optimizer_of
from fedblocks.errors import RunError


def model(blocks: int = 3, seed: int = 0, **options: int) -> ViTClassifier:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "layers": 6, "heads": 2, "patch_size": 4} | options
    net = ViTClassifier(partition=Partition.equi_probability(LogNormalNoise(), blocks), **sizes)
    for p in net.parameters():  # a modulation that starts at zero hides the noise level; move off it
        p.data += 0.05 * torch.randn_like(p)
    return net


def batch(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)


@given(
    blocks=st.integers(1, 12),
    mean=st.floats(-2, 2),
    std=st.floats(0.3, 2),
)
def test_partition_has_equal_mass_by_an_independent_law(blocks: int, mean: float, std: float) -> None:
    """Would catch wrong edges: scipy's log-normal must give every block the same probability."""
    noise = LogNormalNoise(P_mean=mean, P_std=std)
    partition = Partition.equi_probability(noise, blocks)
    law = stats.lognorm(s=std, scale=math.exp(mean))
    mass = -np.diff(law.cdf(partition.edges))
    assert len(mass) == blocks
    np.testing.assert_allclose(mass, mass.sum() / blocks, rtol=1e-6)
    assert partition.edges[0] == noise.sigma_max
    assert partition.edges[-1] == noise.sigma_min


def test_first_block_owns_the_highest_noise_and_every_sigma_has_one_owner() -> None:
    """Would catch an inverted order, or a gap between the intervals."""
    partition = Partition.equi_probability(LogNormalNoise(), 4)
    sigma = torch.logspace(-2.6, 1.9, 500).clamp(0.002, 80)
    owners = partition.block_of(sigma)
    assert owners[-1] == 0
    assert owners[0] == 3
    assert (owners.diff() <= 0).all()
    for s, owner in zip(sigma.tolist(), owners.tolist(), strict=True):
        low, high = partition.interval(owner)
        assert low * (1 - 1e-5) <= s <= high * (1 + 1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.05, 0.2])
def test_samples_stay_in_the_training_interval_and_follow_its_law(overlap: float) -> None:
    """Would catch a sampler of the wrong law: KS against the truncated log-normal of scipy."""
    noise = LogNormalNoise()
    partition = Partition.equi_probability(noise, 3, overlap)
    for b in range(3):
        low, high = partition.training_interval(b)
        own_low, own_high = partition.interval(b)
        assert low <= own_low
        assert high >= own_high
        if 0 < b < 2:
            assert math.log(own_low / low) == pytest.approx(overlap * math.log(own_high / own_low))
        sigma = partition.sample(b, 4000, Seeded(torch.Generator().manual_seed(b)))
        assert sigma.min() >= low - 1e-6
        assert sigma.max() <= high + 1e-4
        law = stats.truncnorm(
            (math.log(low) - noise.P_mean) / noise.P_std, (math.log(high) - noise.P_mean) / noise.P_std
        )
        scaled = (np.log(sigma.numpy()) - noise.P_mean) / noise.P_std
        assert stats.kstest(scaled, law.cdf).pvalue > 1e-3


def test_inference_steps_run_inside_their_own_block_and_never_at_the_edge() -> None:
    """Would catch the published grid, whose last step sits at sigma_min where the block is a no-op."""
    partition = Partition.equi_probability(LogNormalNoise(), 3)
    steps = partition.midpoints(2)
    assert [b for b, _ in steps] == [0, 0, 1, 1, 2, 2]
    sigmas = [s for _, s in steps]
    assert sigmas == sorted(sigmas, reverse=True)
    for b, s in steps:
        low, high = partition.interval(b)
        assert low < s < high
    assert float(Preconditioning().c_out(torch.tensor([sigmas[-1]]))) > 0.1


@given(sigma=st.floats(0.002, 80), sigma_data=st.floats(0.1, 2))
def test_preconditioning_gives_unit_variance(sigma: float, sigma_data: float) -> None:
    """Karras et al. 2022, appendix B.6: input and effective target have unit variance; w c_out^2 = 1."""
    p = Preconditioning(sigma_data=sigma_data)
    s = torch.tensor([sigma], dtype=torch.float64)
    assert float(p.c_in(s) ** 2 * (sigma_data**2 + sigma**2)) == pytest.approx(1)
    target_variance = ((1 - p.c_skip(s)) ** 2 * sigma_data**2 + p.c_skip(s) ** 2 * sigma**2) / p.c_out(s) ** 2
    assert float(target_variance) == pytest.approx(1)
    assert float(p.weight(s) * p.c_out(s) ** 2) == pytest.approx(1)


def test_label_embeddings_have_unit_norm_and_are_never_trained() -> None:
    net = model()
    y = torch.arange(10)
    torch.testing.assert_close(net.clean(y).norm(dim=1), torch.ones(10))
    before = net.table.clone()
    x, labels = batch(40)
    schedule = Schedule(steps=3, batch_size=8, learning_rate=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    train(net, x, labels, objective=BlockObjective(), schedule=schedule, generator=generator)
    assert torch.equal(net.table, before)
    assert not any(p.requires_grad for p in net.parameters())


def test_pretraining_learns_and_the_chain_reads_its_input() -> None:
    """Would catch a chain that ignores images: shuffled images must cost accuracy."""
    torch.manual_seed(0)
    net = ViTClassifier(
        partition=Partition.equi_probability(LogNormalNoise(), 2), hidden_size=32, layers=2, patch_size=4
    )
    g = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(20)
    prototypes = torch.rand(10, 1, 8, 8, generator=g)
    x = (prototypes[y] + 0.1 * torch.randn(200, 1, 8, 8, generator=g)).clamp(0, 1)
    schedule = Schedule(steps=60, batch_size=64, learning_rate=5e-3, weight_decay=0.0)
    train(net, x, y, objective=BlockObjective(), schedule=schedule, generator=g)

    def accuracy(images: torch.Tensor) -> list[float]:
        chain = sample_chain(net, images, y, torch.Generator().manual_seed(3))
        return [float((p.argmax(1) == y).double().mean()) for p in chain]

    assert min(accuracy(x)) > 0.9
    assert max(accuracy(x[torch.randperm(200, generator=g)])) < 0.4


def test_one_euler_step_follows_the_probability_flow() -> None:
    """Would catch the paper's wrong sign: with the true target as estimate the chain ends at the target."""
    net, (x, y) = model(), batch()
    target = net.clean(y)
    net.estimate = lambda prediction: target  # type: ignore[method-assign]
    seen = []
    inner = net.predict
    net.predict = lambda b, z, s, c: (seen.append((z, s)), inner(b, z, s, c))[1]  # type: ignore[method-assign,func-returns-value]
    sample_chain(net, x, y, torch.Generator().manual_seed(0))
    (z0, s0), (z1, s1) = seen[0], seen[1]
    torch.testing.assert_close((z1 - target) / s1[:, None], (z0 - target) / s0[:, None])


def test_merge_refuses_what_the_model_does_not_have() -> None:
    net = model()
    with pytest.raises(RunError, match="no tensor of that name"):
        merge(net, {"blocks.9.x": torch.zeros(1)})
    with pytest.raises(RunError, match="shape"):
        merge(net, {"blocks.0.interface.head.bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("options", "field"),
    [({"patch_size": 3}, "patch_size"), ({"heads": 5}, "heads"), ({"layers": 7}, "layers")],
)
def test_shapes_that_do_not_fit_are_refused_by_name(options: dict[str, int], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ViTSettings.model_validate(options)


def test_logits_are_bayes_rule_for_input_and_noisy_target() -> None:
    """Oracle: the density of z around each embedding. Would catch a wrong scale or a lost norm."""
    net, (_, y) = model(), batch()
    draw = net.draw(1, y, Seeded(torch.Generator().manual_seed(0)))
    z = net.corrupt(net.clean(y), draw)
    density = torch.stack(
        [stats_normal(z, e, draw.level).log_prob(z).sum(1) for e in net.table], dim=1
    )  # (N, classes)
    expected = (density - density[:, :1]).detach()
    found = net.evidence(z, draw.level)
    torch.testing.assert_close(found - found[:, :1], expected, rtol=1e-3, atol=1e-3)


def stats_normal(z: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(mean.expand_as(z), sigma[:, None].expand_as(z))


def test_equi_information_cuts_the_curve_into_equal_shares_within_its_range() -> None:
    """Oracle: a logistic curve of known quantiles. Would catch edges in the wrong order or off the curve."""
    law = LogNormalNoise()
    levels = np.geomspace(law.low, law.high, 400)
    curve = 1 / (1 + np.exp(-4 * np.log(levels)))
    partition = Partition.equi_information(law, 4, levels.tolist(), curve.tolist(), overlap=0.0)
    shares = -np.diff(1 / (1 + np.exp(-4 * np.log(partition.edges))))
    np.testing.assert_allclose(shares, 0.25, atol=0.04)
    flat = Partition.equi_information(law, 3, levels.tolist(), np.ones(400).tolist())
    assert list(flat.edges) == sorted(flat.edges, reverse=True)


def test_posterior_entropy_runs_from_nothing_to_everything() -> None:
    """Limits: at low noise z tells the label, at high noise it tells nothing, ln 10 nats are left."""
    levels, entropy = posterior_entropy(LogNormalNoise(), 10)
    assert entropy[0] == pytest.approx(0, abs=1e-6)
    assert entropy[-1] == pytest.approx(math.log(10), abs=1e-2)
    assert levels == sorted(levels)


def test_the_loss_curve_remembers_what_was_seen_where() -> None:
    """Would catch a bin that mixes levels: the curve of a loss that is a function of the level is it."""
    law = LogNormalNoise()
    curve = LossCurve(law)
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        sigma = law.quantiles(torch.rand(64, generator=g, dtype=torch.float64)).clamp(law.low, law.high)
        curve.add(sigma, sigma.log())
    levels, loss = curve.points()
    assert curve.ready
    np.testing.assert_allclose(loss, np.log(levels), atol=0.1)


@pytest.mark.parametrize("schedule", ["together", "random", "sequential", "stacked"])
def test_a_schedule_gives_every_block_its_steps(schedule: str) -> None:
    """Would catch a block that is trained less than it is said to be."""
    s = Schedule(steps=50, batch_size=1, learning_rate=1.0, schedule=schedule)  # type: ignore[arg-type]
    order = list(s.order(3, torch.Generator().manual_seed(0)))
    assert len(order) == 150
    counts = np.bincount(order, minlength=3)
    assert counts.min() >= (30 if schedule == "random" else 50)


@pytest.mark.parametrize("schedule", ["together", "random", "sequential"])
def test_only_the_chosen_blocks_are_trained(schedule: str) -> None:
    """Would catch a step of another block, or that of a chosen one left out."""
    s = Schedule(steps=50, batch_size=1, learning_rate=1.0, schedule=schedule, blocks=(0, 2))  # type: ignore[arg-type]
    counts = np.bincount(list(s.order(3, torch.Generator().manual_seed(0))), minlength=3)
    assert counts.sum() == 100
    assert counts[1] == 0
    assert counts[[0, 2]].min() >= (30 if schedule == "random" else 50)
    assert [s.steps_of(b) for b in range(3)] == [50, 0, 50]


def test_earlier_blocks_learn_at_lower_rates() -> None:
    """Would catch rates in another order, or the first block at the whole one."""
    net = model(3)
    schedule = Schedule(steps=5, batch_size=8, learning_rate=0.1, rate_decay=0.5)
    rates = [BlockTrainer(net, b, schedule).rate.get_last_lr()[0] for b in range(3)]
    assert rates == pytest.approx([rates[2] / 4, rates[2] / 2, rates[2]])
    assert 0.09 < rates[2] <= 0.1


@pytest.mark.parametrize("steps", range(1, 31))
def test_the_learning_rate_lasts_for_any_number_of_steps(steps: int) -> None:
    """Would catch a warm-up of exactly one step (nine steps), by which torch's schedule divides."""
    schedule = Schedule(steps=steps, batch_size=1, learning_rate=0.1)
    optimizer, rate = optimizer_of([torch.nn.Parameter(torch.zeros(1))], schedule)
    rates = []
    for _ in range(steps):
        rates.append(rate.get_last_lr()[0])
        optimizer.step()
        rate.step()
    warm_up = steps // 10
    assert min(rates) > 0
    assert max(rates) <= 0.1
    assert rates[warm_up:] == sorted(rates[warm_up:], reverse=True)
    assert rates[-1] < rates[warm_up] or steps == 1
