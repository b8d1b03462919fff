"""Starting points of the search, computed from the row spaces of a block gradient.

Two linear layers of a block have inputs that the attacker can enumerate.

1. The input of the modulation layers is the embedding of the noise level only, so their gradient is a sum of K d
outer
   products with c(sigma_j) on the right: each sigma_j is where the known curve c meets the row space.
2. The input of the first layer's attention is the image's tokens, each a function of one patch only. A token that
took
   part in the sum lies in directions in which the gradient is large; its leverage a^T (dW^T dW)^-1 a is small.
   Where there are fewer tokens than dimensions this is the span attack (DAGER, arXiv 2405.15586, on
   continuous tokens). With more tokens it still works in practice, since token gradients are so unequal that the
   row space is nearly rank-deficient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacfwd, vmap

from ..blocks.patches import images_of
from .gradients import BlockGradient
from .views import Observation

_GRID = 2048  # noise levels tried along the curve
_STARTS = 48  # patch candidates refined per position
_NORM_EPSILON = 1e-5  # of the layer norm without affine part
_FLOOR = 1e-10  # singular values below this share of the first are rounding errors


def noise_levels(gradient: BlockGradient, observation: Observation) -> Tensor:
    """The K d estimates of log sigma, (K d,), increasing; their order says nothing about examples."""
    tensors = gradient.tensors(observation.vector)
    stacked = torch.cat([t for n, t in tensors.items() if n.endswith("modulation.weight")])  # (6 D layers, D)
    count = observation.examples * observation.draws
    basis = torch.linalg.svd(stacked, full_matrices=False)[2][: min(count, stacked.shape[1] - 1)]  # (r, D)
    low, high = (
        torch.tensor(s, dtype=torch.float64).log()
        for s in gradient.model.partition.training_interval(gradient.block)
    )

    def outside(log_sigma: Tensor) -> Tensor:
        """The component of the unit vector along c(sigma) orthogonal to the row space, (D,)."""
        c: Tensor = gradient.model.condition(gradient.block, log_sigma.exp()[None])[0]
        c = c / c.norm()
        rest: Tensor = c - (c @ basis.T) @ basis
        return rest

    grid = torch.linspace(float(low), float(high), _GRID, dtype=torch.float64)
    distance = vmap(outside)(grid).norm(dim=1)  # (G,)
    padded = torch.cat([distance[:1] + 1, distance, distance[-1:] + 1])
    minima = ((distance <= padded[:-2]) & (distance < padded[2:])).nonzero()[:, 0]
    found = grid[minima[distance[minima].argsort()[:count]]]
    slope = vmap(jacfwd(outside))
    for _ in range(6):  # Gauss-Newton in one dimension; a step stays near its grid cell
        r, j = vmap(outside)(found), slope(found)
        step = (r * j).sum(1) / (j * j).sum(1).clamp_min(1e-30)
        found = (found - step.clamp(-2e-3, 2e-3)).clamp(low, high)
    if len(found) < count:  # two levels too close to tell apart, or noise: fill up evenly
        fill = torch.linspace(float(low), float(high), count - len(found) + 2, dtype=torch.float64)[1:-1]
        found = torch.cat([found, fill])
    return found.sort().values


class PatchSearch:
    """Patches whose tokens have small leverage in the gradient of the first attention layer.

    search = PatchSearch(gradient, observation, library, shape)   # library (M, C p^2), public patches
    log_sigma, images = search.images()                      # (K, d), (K, C, H, W)

    The patches' tokens have no noise, so only the leverage can tell to which example a patch belongs: of several
    examples, the first gets the patch of least leverage at every position, the second the next.
    """

    def __init__(
        self, gradient: BlockGradient, observation: Observation, library: Tensor, shape: torch.Size
    ) -> None:
        self.observation, self.library, self.shape = observation, library, shape
        self.patch_size = gradient.model.patch_size
        own = gradient.layers.interface
        assert isinstance(own, nn.ModuleDict)
        patch, position = own["patch"], own["position"]
        assert isinstance(patch, nn.Linear)
        assert isinstance(position, nn.Embedding)
        self.embedding = patch.weight.detach()  # (D, C p^2)
        self.offsets = (patch.bias + position.weight).detach()  # (T, D)
        weight = gradient.tensors(observation.vector)["layers.0.qkv.weight"]  # (3 D, D)
        # Query, key and value gradients differ in size by orders of magnitude.
        parts = [w / w.norm().clamp_min(1e-30) for w in weight.chunk(3)]
        noise = [observation.noise / float(w.norm().clamp_min(1e-30)) for w in weight.chunk(3)]
        _, s, v = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        # Size of the singular values of a (3 D, D) matrix of noise only.
        level = max(noise) * (weight.shape[0] ** 0.5 + weight.shape[1] ** 0.5)
        self.whiten = v / (s.square() + level**2).sqrt().clamp_min(float(s[0]) * _FLOOR)[:, None]  # (D, D)
        self.levels = noise_levels(gradient, observation)  # (K d,)

    def images(self) -> tuple[Tensor, Tensor]:
        """(log_sigma (K, d), images (K, C, H, W))."""
        k, d = self.observation.examples, self.observation.draws
        found, cost = self._refine(self._table(), max(_STARTS, k), 25)  # (T, S, C p^2), (T, S)
        order = cost.argsort(dim=1)
        chosen = [self._distinct(patches[rank], k) for patches, rank in zip(found, order, strict=True)]
        patches = torch.stack(chosen, dim=1)  # (K, T, C p^2)
        return self.levels.view(k, d), images_of(patches, self.shape, self.patch_size)

    @staticmethod
    def _distinct(patches: Tensor, count: int) -> Tensor:
        """The first `count` distinct patches (S, C p^2); many starts converge to few patches."""
        kept = [patches[0]]
        for patch in patches[1:]:
            if len(kept) < count and min(float((patch - other).abs().max()) for other in kept) > 0.05:
                kept.append(patch)
        return torch.stack([kept[i % len(kept)] for i in range(count)])

    def _leverage(self, patch: Tensor, offset: Tensor) -> Tensor:
        """Whitened first-layer input of one patch at one position, (D,)."""
        token: Tensor = self.embedding @ patch + offset
        token = token - token.mean()
        token = token / (token.square().mean() + _NORM_EPSILON).sqrt()
        whitened: Tensor = token @ self.whiten.T
        return whitened

    def _table(self) -> Tensor:
        """Log leverage of every library patch, (T, M)."""
        at = vmap(vmap(self._leverage, (0, None)), (None, 0))
        leverage: Tensor = at(self.library, self.offsets).square().sum(-1).log()
        return leverage

    def _refine(self, cost: Tensor, starts: int, steps: int) -> tuple[Tensor, Tensor]:
        """Levenberg-Marquardt on the log leverage from the best library patches, position by position.

        cost (T, M) of the library -> patches (T, starts, C p^2) and their log leverage (T, starts).
        """
        starts = min(starts, cost.shape[1])
        patch = self.library[cost.topk(starts, largest=False).indices].flatten(0, 1)  # (T S, C p^2)
        offset = self.offsets.repeat_interleave(starts, 0)
        residual, jacobian = vmap(self._leverage), vmap(jacfwd(self._leverage))
        r = residual(patch, offset)  # (n, D)
        best = r.square().sum(-1).log()  # (n,)
        damping = torch.full_like(best, 1e-2)
        for _ in range(steps):
            j = jacobian(patch, offset)  # (n, D, C p^2)
            # The logarithm turns least squares into reweighted least squares.
            weighted = j / r.square().sum(-1)[:, None, None]
            h = weighted.mT @ j
            g = (weighted.mT @ r[:, :, None])[:, :, 0]
            held = ((patch <= 0) & (g > 0)) | ((patch >= 1) & (g < 0))
            diagonal = damping[:, None] * h.diagonal(dim1=1, dim2=2) + 1e-12
            h = (h + torch.diag_embed(diagonal)).masked_fill(held[:, :, None] | held[:, None, :], 0)
            step = torch.linalg.solve(h + torch.diag_embed(held.double()), g.masked_fill(held, 0))
            moved = (patch - step).clamp(0, 1)
            r_new = residual(moved, offset)
            now = r_new.square().sum(-1).log()
            better = now < best
            patch, best = torch.where(better[:, None], moved, patch), torch.where(better, now, best)
            r = torch.where(better[:, None], r_new, r)
            damping = torch.where(better, damping / 3, damping * 4).clamp(1e-10, 1e8)
        return patch.view(-1, starts, patch.shape[1]), best.view(-1, starts)
