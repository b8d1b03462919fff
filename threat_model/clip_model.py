"""Clipping as its attacker models it: how much of a gradient is left, and how that changes with the gradient's norm.

The factors are the mechanism's own function (`privacy.clipping.clip_factors`), and their derivative is taken of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..privacy.clipping import Clipping, clip_factors
from ..privacy.dp_sgd import DPSGD
from ..privacy.secure_step import SecureStep


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """`kind` "unit": every gradient over its own norm, for one that is seen without clipping; its scale tells nothing
    that its direction does not. `layers`: modules with trained parameters, among which per-layer clipping divides."""

    kind: Clipping | Literal["unit"]
    bound: float = 1.0

    @classmethod
    def of(cls, mechanism: DPSGD | SecureStep) -> ClipModel:
        if isinstance(mechanism, DPSGD):
            return cls(kind=mechanism.clipping, bound=mechanism.max_grad_norm)
        return cls(kind=mechanism.clipping, bound=mechanism.noise.clip)

    def factors(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms by layer (n, L) -> each layer's factor f (n, L) and df / d its norm's square.

        The norm is that of the layer under per-layer clipping, and of the whole gradient else.
        """
        layers = squared.shape[1]
        by_layer = self.kind == "per-layer"
        norms = squared if by_layer else squared.sum(1, keepdim=True)
        with torch.enable_grad():
            norms = norms.detach().requires_grad_()
            if self.kind == "unit":
                found = norms.clamp_min(1e-60).rsqrt()
            else:
                bound = self.bound / layers**0.5 if by_layer else self.bound
                found = clip_factors(norms.flatten(), bound, automatic=self.kind == "automatic").view_as(
                    norms
                )
            (slope,) = torch.autograd.grad(found.sum(), norms)
        found, slope = found.detach(), slope.nan_to_num(0.0, 0.0, 0.0)
        return found.expand(-1, layers), slope.expand(-1, layers)


def unmodelled(mechanism: DPSGD | SecureStep) -> str | None:
    """Why the mechanism cannot be modelled, none where it can."""
    if isinstance(mechanism, SecureStep) or mechanism.steps == 1:
        return None
    if mechanism.quantile_clip is not None:
        return f"over {mechanism.steps} local steps the clip moves, by counts that nobody outside sees"
    if mechanism.noise_bands > 1:
        return f"over {mechanism.steps} local steps the noise is correlated (noise_bands={mechanism.noise_bands})"
    return None
