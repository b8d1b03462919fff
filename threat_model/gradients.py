"""The attacker's forward model: one example's block gradient as a function of all unknowns.

For one example (image, label) a company computes the gradient of the block's loss, averaged over `draws` noise draws
(log sigma_j, eps_j). The attacker knows the model and the objective, so it can compute this map and its derivative.
Values are float64; derivatives are float32, because an inexact Jacobian makes the iteration slower but does not
change its fixed point.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..blocks import BlockObjective, Draw, block_parameters
from ..blocks.families.vit import ViTClassifier
from ..errors import InputError

# Forward mode takes this many (draw, direction) pairs through the network at once; bounds the memory.
_PAIRS_AT_ONCE = 1024


@dataclass
class Unknowns:
    """The unknowns of one observation: K examples of d draws each."""

    images: Tensor  # (K, C, H, W) in [0, 1]
    log_sigma: Tensor  # (K, d)
    eps: Tensor  # (K, d, D)
    labels: Tensor  # (K,)

    def flat(self) -> Tensor:
        """The continuous unknowns, (K, N + d (D + 1)): the image, then (eps_j, log sigma_j) of each draw."""
        draws = torch.cat([self.eps, self.log_sigma[..., None]], dim=2)  # (K, d, D + 1)
        return torch.cat([self.images.flatten(1), draws.flatten(1)], dim=1)

    def moved_to(self, flat: Tensor) -> Unknowns:
        """These labels with other continuous values."""
        pixels, (k, d, width) = self.images[0].numel(), self.eps.shape
        draws = flat[:, pixels:].view(k, d, width + 1)
        images = flat[:, :pixels].view_as(self.images)
        return Unknowns(images, draws[..., -1], draws[..., :-1], self.labels)


class _LossOfOneDraw(nn.Module):
    """The loss as a module, so that `functional_call` can swap the block's parameters."""

    def __init__(self, model: ViTClassifier, block: int, objective: BlockObjective) -> None:
        super().__init__()
        self.model, self.block, self.objective = model, block, objective

    def forward(self, image: Tensor, log_sigma: Tensor, eps: Tensor, label: Tensor) -> Tensor:
        context = self.model.context(self.block, image[None])
        draw = Draw(log_sigma.exp()[None], eps[None])
        # Fused attention has no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return self.objective.at(self.model, self.block, context, label[None], draw)[0]


class BlockGradient:
    """Gradients of block b and their Jacobian.

    gradient = BlockGradient(model, block=2, objective=BlockObjective())
    g = gradient(unknowns)                   # (K, P), in the order in which updates are flattened

    Raises:
        InputError: with prefix features, for any block but 0.
    """

    def __init__(self, model: ViTClassifier, block: int, objective: BlockObjective) -> None:
        if block and model.features == "prefix":
            rule = "with prefix features only block 0 reads the patches that this attack searches for"
            raise InputError("audit.block", block, rule)
        self.block = block
        # A copy: the caller's model keeps its mode, dtype and flags.
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.layers = self.model.freeze_all_but(block, interface=False)
        named = block_parameters(self.layers)
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.sizes = [p.numel() for _, p in named]
        self.width = self.model.table.shape[1]
        self.model.requires_grad_(False)
        self._exact = self._of_one_draw(self.model, objective)
        self._fast = self._of_one_draw(copy.deepcopy(self.model).float(), objective)

    def _of_one_draw(self, model: ViTClassifier, objective: BlockObjective) -> Callable[..., Tensor]:
        loss = _LossOfOneDraw(model, self.block, objective)
        prefix = f"model.blocks.{self.block}."
        parameters: dict[str, Tensor] = {
            prefix + n: p.detach() for n, p in model.blocks[self.block].named_parameters() if n in self.names
        }
        ordered = [prefix + n for n in self.names]

        def gradient(image: Tensor, log_sigma: Tensor, eps: Tensor, label: Tensor) -> Tensor:
            def of(p: dict[str, Tensor]) -> Tensor:
                value: Tensor = functional_call(loss, p, (image, log_sigma, eps, label))
                return value

            g = grad(of)(parameters)
            return torch.cat([g[n].reshape(-1) for n in ordered])  # (P,)

        return gradient

    @property
    def size(self) -> int:
        """P, the number of parameters of the block."""
        return sum(self.sizes)

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector (P,) into the block's named tensors."""
        parts = zip(self.names, vector.split(self.sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def __call__(self, u: Unknowns) -> Tensor:
        """Gradient of each example, averaged over its draws: (K, P) float64."""
        d = u.log_sigma.shape[1]
        images, labels = u.images.repeat_interleave(d, 0), u.labels.repeat_interleave(d)
        g = vmap(self._exact)(images, u.log_sigma.flatten(), u.eps.flatten(0, 1), labels)  # (K d, P)
        return g.view(-1, d, g.shape[1]).mean(1)

    def jacobian(self, u: Unknowns, *, of_image: bool = True) -> Tensor:
        """d gradient / d flat unknowns: (K, N + d (D + 1), P) float32; without the image, (K, d (D + 1), P).

        A draw's gradient depends on the image and on its own noise only, so the derivative is taken draw by
        draw, in N + D + 1 directions instead of N + d (D + 1).
        """
        k, d = u.log_sigma.shape
        pixels, shape = u.images[0].numel(), u.images.shape[1:]
        draws = torch.cat([u.eps, u.log_sigma[..., None]], dim=2).flatten(0, 1)  # (K d, D + 1)
        points = torch.cat([u.images.flatten(1).repeat_interleave(d, 0), draws], dim=1).float()
        labels = u.labels.repeat_interleave(d)

        def along(point: Tensor, label: Tensor, direction: Tensor) -> Tensor:
            def f(v: Tensor) -> Tensor:
                return self._fast(v[:pixels].view(shape), v[-1], v[pixels:-1], label)

            tangent: Tensor = jvp(f, (point,), (direction,))[1]
            return tangent

        of_draws = vmap(vmap(along, (None, None, 0)), (0, 0, None))
        directions = torch.eye(points.shape[1])[0 if of_image else pixels :].split(_PAIRS_AT_ONCE)
        step = max(1, _PAIRS_AT_ONCE // points.shape[1])
        per_draw: Tensor = torch.cat(
            [
                torch.cat([of_draws(p, y, v) for v in directions], dim=1)
                for p, y in zip(points.split(step), labels.split(step), strict=True)
            ]
        ).view(k, d, -1, self.size)  # (K, d, N + D + 1, P)
        per_draw = per_draw / d
        if not of_image:
            return per_draw.flatten(1, 2)
        own = per_draw[:, :, pixels:].flatten(1, 2)  # (K, d (D + 1), P)
        return torch.cat([per_draw[:, :, :pixels].sum(1), own], dim=1)
