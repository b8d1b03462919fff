"""The exact likelihood of a release: what it would be, were the unknown examples these.

release = sum over unknown examples of clip(gradient) + N(0, noise^2 I), with the clipping of the run's own mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..privacy.clipping import Clipping, lowered
from ..privacy.dp_sgd import DPSGD
from ..privacy.secure_step import SecureStep
from .problem import Problem, Values

_STABILITY = 0.01  # of automatic clipping: see `privacy.clipping`


@dataclass(frozen=True)
class Clip:
    """How a mechanism scales an example's gradient; `norm` none: not at all."""

    norm: float | None
    kind: Clipping = "flat"

    @classmethod
    def of(cls, mechanism: DPSGD | SecureStep) -> Clip:
        norm = mechanism.max_grad_norm if isinstance(mechanism, DPSGD) else mechanism.noise.clip
        return cls(norm, mechanism.clipping)

    def __call__(self, problem: Problem, gradients: Tensor) -> Tensor:
        """(K, P) -> (K, P), differentiable."""
        if self.norm is None:
            return gradients
        if self.kind != "per-layer":
            return gradients * self._factor(gradients.square().sum(1), lowered(self.norm))[:, None]
        parts = gradients.split(problem.sizes, dim=1)
        layers = [name.rpartition(".")[0] for name in problem.names]
        bound = lowered(self.norm / len(set(layers)) ** 0.5)
        squared = {
            layer: torch.stack(
                [p.square().sum(1) for p, own in zip(parts, layers, strict=True) if own == layer]
            ).sum(0)
            for layer in set(layers)
        }
        scaled = [
            p * self._factor(squared[layer], bound)[:, None] for p, layer in zip(parts, layers, strict=True)
        ]
        return torch.cat(scaled, dim=1)

    def _factor(self, squared: Tensor, bound: float) -> Tensor:
        norms = squared.clamp_min(1e-60).sqrt()
        if self.kind == "automatic":
            return bound / (norms + _STABILITY)
        return torch.where(norms > bound, bound / norms, torch.ones_like(norms))


def unmodelled(mechanism: DPSGD | SecureStep) -> str | None:
    """Why the likelihood of a release of this mechanism is not the one above, none where it is."""
    if isinstance(mechanism, SecureStep):
        return None
    if mechanism.steps > 1:
        return (
            f"{mechanism.steps} local steps: the later ones start from a state that the attacker does not see"
        )
    if mechanism.noise_bands > 1:
        return f"noise in {mechanism.noise_bands} bands is not white"
    return None


def modelled(problem: Problem, clip: Clip, values: Values) -> Tensor:
    """What the release would be without noise, (P,)."""
    return clip(problem, problem.gradient(values)).sum(0)
