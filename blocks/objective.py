"""The loss of a single block (arXiv 2506.14202, equation 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .denoiser import Denoiser, Draw
from .noise import Source


@dataclass(frozen=True, kw_only=True)
class BlockObjective:
    """E_level,noise  w(level) * loss(predict(corrupt(y), level, x), y), level in the block's interval.

    `weight`: "unit" (default: for cross-entropy it measured best) or "edm" (1/c_out^2, the paper's).
    The weight multiplies each example's own loss.

        objective = BlockObjective()
        losses = objective(model, block=0, inputs=x, targets=y, source=source)     # (N,)
    """

    weight: Literal["unit", "edm"] = "unit"

    def at(self, model: Denoiser, block: int, context: Tensor, targets: Tensor, draw: Draw) -> Tensor:
        """Loss of each target (n m,) at a given draw; `context` (n, Tc, D) of n examples with m each."""
        z = model.corrupt(model.clean(targets), draw)
        loss = model.block_loss(block, z, draw.level, context, targets)
        return model.weight(draw.level, self.weight) * loss

    def __call__(
        self,
        model: Denoiser,
        *,
        block: int,
        inputs: Tensor,
        targets: Tensor,
        source: Source,
        draws: int = 1,
        before: Tensor | None = None,
    ) -> Tensor:
        """Loss of each example and draw, draws of one example side by side: (N draws,).

        `before` as in `Denoiser.context`.
        """
        context = model.context(block, inputs, before)
        repeated = targets.repeat_interleave(draws, dim=0)
        draw = model.draw(block, repeated, source).to(context.device)
        return self.at(model, block, context, repeated, draw)
