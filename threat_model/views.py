"""What a coordinator sees of a block update, from no protection to the securely opened sum.

Every view is a sum over K examples that the attacker does not know, since it can subtract those it knows:
differential privacy assumes that it knows all others. `scaling` is how one gradient enters the sum, `noise` the
standard deviation of the Gaussian noise per coordinate of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..blocks.noise import Seeded
from ..privacy.clipping import clip_factors
from .gradients import BlockGradient, Unknowns

Scaling = Literal["unit", "clip"]


@dataclass(frozen=True)
class Observation:
    """vector = sum_k scale(g_k) + N(0, noise^2 I), (P,) float64."""

    vector: Tensor
    examples: int
    draws: int
    scaling: Scaling
    max_grad_norm: float
    noise: float


def scale(gradients: Tensor, scaling: Scaling, max_grad_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """(scaled, factors, bound) of gradients (K, P): scaled = factors * gradients.

    `bound` (K,) is 1 where the factor depends on the gradient's norm, so that the derivative of the scaled
    gradient has no radial part, and 0 where the gradient is unchanged.
    """
    squared = (gradients * gradients).sum(1)
    if scaling == "unit":
        factors, bound = 1 / squared.sqrt().clamp_min(1e-30), torch.ones_like(squared)
    else:
        factors = clip_factors(squared, max_grad_norm)
        bound = (factors < 1).to(squared.dtype)
    return factors[:, None] * gradients, factors, bound


def draw_truth(
    gradient: BlockGradient,
    images: Tensor,
    labels: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Unknowns:
    """The examples with the noise that their companies drew in training."""
    k = len(labels)
    draw = gradient.model.draw(gradient.block, labels.repeat_interleave(draws), Seeded(generator))
    return Unknowns(
        images.double(),
        draw.level.double().log().view(k, draws),
        draw.noise.double().view(k, draws, -1),
        labels.clone(),
    )


def raw_gradient(gradients: Tensor, draws: int) -> Observation:
    """View (a): one example's gradient (1, P) without clipping or noise, over its norm, which is known."""
    unit, _, _ = scale(gradients, "unit", 1.0)
    return Observation(unit.sum(0), 1, draws, "unit", 1.0, 0.0)


def released(gradients: Tensor, draws: int, max_grad_norm: float) -> Observation:
    """Views (b) and (c) without noise: the sum of K clipped gradients (K, P)."""
    clipped, _, _ = scale(gradients, "clip", max_grad_norm)
    return Observation(clipped.sum(0), len(gradients), draws, "clip", max_grad_norm, 0.0)


def with_noise(
    observation: Observation, noise_multiplier: float, companies: int, generator: torch.Generator
) -> Observation:
    """Add the full noise z C of each of `companies` independent companies."""
    std = noise_multiplier * observation.max_grad_norm * companies**0.5
    draw = torch.randn(observation.vector.shape, generator=generator, dtype=torch.float64)
    return replace(observation, vector=observation.vector + std * draw, noise=std)
