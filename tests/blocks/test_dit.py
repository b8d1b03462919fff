"""Properties of the image generator and of the Frechet distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from fedblocks.blocks import BlockObjective, LogNormalNoise, Partition, Schedule, sample_chain, train
from fedblocks.blocks.denoiser import Draw
from fedblocks.blocks.families.dit import DiT
from fedblocks.blocks.frechet import classifier_on, frechet_distance
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.patches import images_of, patches_of
from fedblocks.errors import InputError


def model(blocks: int = 3, channels: int = 1) -> DiT:
    torch.manual_seed(0)
    net = DiT(
        partition=Partition.equi_probability(LogNormalNoise(P_mean=-1.2), blocks),
        channels=channels, patch_size=4, hidden_size=16, layers=6, heads=2,
    )  # fmt: skip
    for p in net.parameters():  # the zero-initialised parts hide what lies behind them; move off zero
        p.data += 0.05 * torch.randn_like(p)
    return net


def batch(n: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(10, (n,), generator=g), torch.rand(n, channels, 8, 8, generator=g)


def fixed_draw(net: DiT, block: int, targets: Tensor) -> Draw:
    return net.draw(block, targets, Seeded(torch.Generator().manual_seed(1)))


def test_predictions_are_images_and_the_edm_weight_is_of_each_example() -> None:
    """Would catch a prediction left in the denoising scale, and a weight averaged over the batch."""
    net, (y, x) = model(), batch()
    draw = fixed_draw(net, 2, x)
    context = net.context(2, y)
    z = net.corrupt(net.clean(x), draw)
    almost_clean = net.predict(2, net.clean(x), torch.full((len(x),), 1e-4), context)
    torch.testing.assert_close(almost_clean, x, atol=1e-3, rtol=0)
    error = net.estimate(net.predict(2, z, draw.level, context)) - net.clean(x)
    expected = error.square().mean(dim=(1, 2, 3)) * net.preconditioning.weight(draw.level)
    torch.testing.assert_close(BlockObjective(weight="edm").at(net, 2, context, x, draw), expected)


def test_prefix_features_are_refused() -> None:
    partition = Partition.equi_probability(LogNormalNoise(), 3)
    with pytest.raises(InputError, match="features"):
        DiT(partition=partition, features="prefix")


def test_patches_go_back_to_the_same_colour_images() -> None:
    _, x = batch(channels=3)
    assert torch.equal(images_of(patches_of(x, 4), x.shape[1:], 4), x)


def test_each_class_is_generated_as_its_own() -> None:
    """Would catch a label that is not read: each class is one flat grey, and must come out as that."""
    torch.manual_seed(0)
    partition = Partition.equi_probability(LogNormalNoise(P_mean=-1.2), 2)
    net = DiT(partition=partition, patch_size=4, hidden_size=16, layers=2, heads=2, classes=3)
    y = torch.arange(3).repeat(40)
    x = torch.tensor([0.1, 0.5, 0.9])[y].view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    train(
        net, y, x, objective=BlockObjective(weight="edm"),
        schedule=Schedule(steps=100, batch_size=32, learning_rate=5e-3),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    images = sample_chain(net, y[:30], x, torch.Generator().manual_seed(1), steps_per_block=5)[-1]
    grey = images.mean(dim=(1, 2, 3)).view(10, 3).mean(dim=0)
    torch.testing.assert_close(grey, torch.tensor([0.1, 0.5, 0.9]), atol=0.1, rtol=0)


def test_frechet_distance_is_the_closed_form_for_gaussians() -> None:
    """Would catch a wrong square root: scipy's sqrtm on the same moments, and the known value."""
    g = torch.Generator().manual_seed(0)
    mix_a, mix_b = torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
    a = torch.randn(20_000, 4, generator=g, dtype=torch.float64) @ mix_a
    b = torch.randn(20_000, 4, generator=g, dtype=torch.float64) @ mix_b + 1.0
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    moments = np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    by_scipy = float((a.mean(0) - b.mean(0)).square().sum()) + moments
    assert frechet_distance(a, b) == pytest.approx(by_scipy, rel=1e-8)
    true_a, true_b = (mix_a.T @ mix_a).numpy(), (mix_b.T @ mix_b).numpy()
    known = 4.0 + np.trace(true_a + true_b - 2 * sqrtm(true_a @ true_b).real)
    assert frechet_distance(a, b) == pytest.approx(known, rel=0.05)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_noise_is_far() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (200,), generator=g)
    x = (y.view(-1, 1, 1, 1) * 0.5 + 0.2 * torch.rand(200, 1, 8, 8, generator=g)).clamp(0, 1)
    distance, again = classifier_on(x, y), classifier_on(x.clone(), y)
    assert distance(x, x) == pytest.approx(0, abs=1e-6)
    noise = torch.rand(200, 1, 8, 8, generator=g)
    assert distance(noise, x) > 10 * distance(x[:100], x[100:]) > 0
    assert distance(noise, x) == again(noise, x)  # the same classifier in every run


def test_chain_quality_is_the_distance_after_each_block() -> None:
    """Would catch samples of other labels, or a value that is not a function of model, examples and seed."""
    net = model().requires_grad_(False)
    y, x = batch(60)
    found = net.chain_quality(y, x, torch.Generator().manual_seed(3))
    images = sample_chain(net, y, x, torch.Generator().manual_seed(3))
    assert found == pytest.approx([classifier_on(x, y)(after, x) for after in images])
