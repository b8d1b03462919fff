"""The attack: its model is the trainer's, its Jacobian is right, noise takes away what it recovers."""

from __future__ import annotations

import pytest
import torch
from support.places import draws_of

from fedblocks.blocks import BlockObjective, Draw, LogNormalNoise, Partition
from fedblocks.blocks.families.vit import ViTClassifier
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.threat_model.attack_budget import AttackBudget
from fedblocks.threat_model.gradients import BlockGradient, Unknowns
from fedblocks.threat_model.lm_map import LMMAP
from fedblocks.threat_model.views import draw_truth, raw_gradient, released, with_noise


@pytest.fixture(scope="module")
def victim() -> ViTClassifier:
    torch.manual_seed(0)
    net = ViTClassifier(
        partition=Partition.equi_probability(LogNormalNoise(P_mean=2.0), 2),
        hidden_size=32, layers=2, heads=4, patch_size=4,
    )  # fmt: skip
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def truth_of(gradient: BlockGradient, k: int, draws: int = 1, seed: int = 0) -> Unknowns:
    g = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(k, 1, 8, 8, generator=g), torch.randint(10, (k,), generator=g)
    return draw_truth(gradient, images, labels, draws, g)


@pytest.mark.parametrize("draws", [1, 3])
def test_the_attackers_model_is_what_the_trainer_releases(victim: ViTClassifier, draws: int) -> None:
    """Would catch an attack on another function than the one that ran, which would flatter the defence."""
    gradient = BlockGradient(victim, 1, BlockObjective())
    truth = truth_of(gradient, 4, draws)
    ours = released(gradient(truth), draws, 0.7).vector
    active = victim.freeze_all_but(1, interface=False)
    labels = truth.labels.repeat_interleave(draws)
    sigma, eps = truth.log_sigma.exp().flatten().float(), truth.eps.flatten(0, 1).float()

    def losses(part: torch.Tensor) -> torch.Tensor:
        rows = draws_of(part, draws)
        context = victim.context(1, truth.images[part].float())
        return BlockObjective().at(victim, 1, context, labels[rows], Draw(sigma[rows], eps[rows]))

    with PerExampleClipping(active, max_grad_norm=0.7) as clipping:
        theirs = clipping.sum(losses, examples=4, draws=draws).vector
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)


def test_the_jacobian_equals_finite_differences(victim: ViTClassifier) -> None:
    gradient = BlockGradient(victim, 0, BlockObjective())
    truth = truth_of(gradient, 1)
    flat, jacobian = truth.flat(), gradient.jacobian(truth)[0].double()
    for i in range(0, flat.shape[1], 13):
        step = torch.zeros_like(flat)
        step[0, i] = 1e-5
        ahead, behind = gradient(truth.moved_to(flat + step)), gradient(truth.moved_to(flat - step))
        expected = ((ahead - behind) / 2e-5)[0]
        torch.testing.assert_close(jacobian[i], expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def psnr(found: torch.Tensor, original: torch.Tensor) -> float:
    return float(-10 * (found - original).square().mean().clamp_min(1e-20).log10())


def test_a_gradient_without_noise_gives_its_image_and_the_dp_noise_takes_it_back(
    victim: ViTClassifier,
) -> None:
    """The control must succeed where the prior alone does not; at z = 1 nothing may be left to recover."""
    gradient = BlockGradient(victim, 1, BlockObjective())
    truth = truth_of(gradient, 1, seed=3)
    public = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    attack = LMMAP(gradient, public, classes=10, budget=AttackBudget(attempts=4))
    g = gradient(truth)
    prior = psnr(attack.prior.mode.expand_as(truth.images), truth.images)
    clean = attack.run(raw_gradient(g, 1), torch.Generator().manual_seed(0)).unknowns
    assert psnr(clean.images, truth.images) > 40 > prior
    noisy = with_noise(released(g, 1, 1.0), 1.0, 1, torch.Generator().manual_seed(1))
    found = attack.run(noisy, torch.Generator().manual_seed(0)).unknowns
    assert psnr(found.images, truth.images) < prior + 2


def test_a_sum_carries_the_noise_of_every_company(victim: ViTClassifier) -> None:
    gradient = BlockGradient(victim, 1, BlockObjective())
    clean = released(gradient(truth_of(gradient, 2)), 1, 0.5)
    noisy = with_noise(clean, 2.0, 5, torch.Generator().manual_seed(0))
    assert noisy.noise == pytest.approx(2.0 * 0.5 * 5**0.5)
    assert float((noisy.vector - clean.vector).std()) == pytest.approx(noisy.noise, rel=0.05)
