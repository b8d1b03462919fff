"""Where the search starts: what the row spaces of a block gradient tell without any search.

Two linear layers of a block read inputs that the attacker can enumerate.

1. The modulation layers read the embedding of the noise level alone, so their gradient is a sum of K d outer
   products with c(sigma_j) on the right: each sigma_j is where the known curve c meets the row space.
2. The first layer's attention reads the image's tokens, each a function of one patch and of sigma_j. A token
   that took part in the sum lies where the gradient has energy; its leverage a^T (dW^T dW)^-1 a is small.
   Where there are fewer tokens than dimensions this is the span attack (DAGER, arXiv 2405.15586, on
   continuous tokens). With more it still holds in practice, since token gradients are so unequal that the
   row space is nearly deficient.
"""

from __future__ import annotations

from itertools import combinations, product

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from .gradients import BlockGradient
from .views import Observation

_GRID = 2048  # noise levels tried along the curve
_STARTS = 48  # patch candidates refined per position
_TELLING = 4  # positions by which noise levels are paired
_NORM_EPSILON = 1e-5  # of the layer norm without affine part
_FLOOR = 1e-10  # singular values below this share of the first are rounding


def noise_levels(gradient: BlockGradient, observation: Observation) -> Tensor:
    """The K d estimates of log sigma, (K d,), rising; unordered with respect to examples."""
    tensors = gradient.tensors(observation.vector)
    stacked = torch.cat([t for n, t in tensors.items() if n.endswith("modulation.weight")])  # (6 D layers, D)
    count = observation.examples * observation.draws
    basis = torch.linalg.svd(stacked, full_matrices=False)[2][: min(count, stacked.shape[1] - 1)]  # (r, D)
    low, high = (
        torch.tensor(s, dtype=torch.float64).log()
        for s in gradient.model.partition.training_interval(gradient.block)
    )

    def outside(log_sigma: Tensor) -> Tensor:
        """The part of the unit vector along c(sigma) that the row space does not hold, (D,)."""
        c: Tensor = gradient.model.condition(log_sigma.exp()[None])[0]
        c = c / c.norm()
        rest: Tensor = c - (c @ basis.T) @ basis
        return rest

    grid = torch.linspace(float(low), float(high), _GRID, dtype=torch.float64)
    distance = vmap(outside)(grid).norm(dim=1)  # (G,)
    padded = torch.cat([distance[:1] + 1, distance, distance[-1:] + 1])
    minima = ((distance <= padded[:-2]) & (distance < padded[2:])).nonzero()[:, 0]
    found = grid[minima[distance[minima].argsort()[:count]]]
    slope = vmap(jacfwd(outside))
    for _ in range(6):  # Gauss-Newton on a line; a step never leaves its grid cell's neighbourhood
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
    """

    def __init__(
        self, gradient: BlockGradient, observation: Observation, library: Tensor, shape: torch.Size
    ) -> None:
        self.model, self.observation, self.library, self.shape = gradient.model, observation, library, shape
        self.offsets = (self.model.patch_embedding.bias + self.model.position[0, 1:]).detach()  # (T, D)
        weight = gradient.tensors(observation.vector)["layers.0.attention.qkv.weight"]  # (3 D, D)
        # Query, key and value gradients differ in size by orders of magnitude.
        parts = [w / w.norm().clamp_min(1e-30) for w in weight.chunk(3)]
        noise = [observation.noise / float(w.norm().clamp_min(1e-30)) for w in weight.chunk(3)]
        _, s, v = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        # What noise alone adds to a singular value of a (3 D, D) matrix.
        level = max(noise) * (weight.shape[0] ** 0.5 + weight.shape[1] ** 0.5)
        self.whiten = v / (s.square() + level**2).sqrt().clamp_min(float(s[0]) * _FLOOR)[:, None]  # (D, D)
        self.levels = noise_levels(gradient, observation)  # (L,), L = K d
        modulation = gradient.layers.get_submodule("layers.0.modulation")
        self.shift, self.scale = modulation(self.model.condition(self.levels.exp())).chunk(6, dim=1)[
            :2
        ]  # (L, D)

    def images(self) -> tuple[Tensor, Tensor]:
        """(log_sigma (K, d), images (K, C, H, W))."""
        table = self._table()
        groups = self._groups(table)
        patches = []
        for group in groups:
            found, cost = self._refine(table[group].sum(0), torch.tensor(group), _STARTS, 25)
            patches.append(found[torch.arange(len(cost)), cost.argmin(1)])  # (T, C p^2)
        return self.levels[torch.tensor(groups)], images_of(
            torch.stack(patches), self.shape, self.model.patch_size
        )

    def _leverage(self, patch: Tensor, offset: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Whitened first-layer inputs of one patch at one position, (d, D), under d modulations (d, D)."""
        token: Tensor = self.model.patch_embedding.weight @ patch + offset
        token = token - token.mean()
        token = token / (token.square().mean() + _NORM_EPSILON).sqrt()
        whitened: Tensor = (token * (1 + scale) + shift) @ self.whiten.T
        return whitened

    def _table(self) -> Tensor:
        """Log leverage of every library patch, (L, T, M)."""
        at = vmap(vmap(self._leverage, (0, None, None, None)), (None, 0, None, None))
        return torch.stack(
            [
                at(self.library, self.offsets, shift[None], scale[None]).square().sum((-1, -2)).log()
                for shift, scale in zip(self.shift, self.scale, strict=True)
            ]
        )

    def _groups(self, table: Tensor) -> list[list[int]]:
        """Which noise levels belong to one example: those that agree on patches. K lists of d indices."""
        count, d = len(table), self.observation.draws
        groups = [list(range(i, i + d)) for i in range(0, count, d)]
        if d == 1 or len(groups) == 1:
            return groups
        # The positions that tell most: where some patch explains the gradient best.
        telling = table.amin(2).sum(0).topk(min(_TELLING, table.shape[1]), largest=False).indices
        cost = torch.zeros(count, count, dtype=torch.float64)
        for i in range(count):
            for j in range(i):
                _, best = self._refine(
                    (table[i] + table[j])[telling], torch.tensor([i, j]), 12, 10, self.offsets[telling]
                )
                cost[i, j] = cost[j, i] = best.amin(1).sum()

        def total(of: list[list[int]]) -> float:
            return sum(float(cost[g][:, g].sum()) for g in of)

        improved = True
        while improved:  # exchange two levels between examples as long as that helps
            improved = False
            for a, b in combinations(range(len(groups)), 2):
                for i, j in product(range(d), range(d)):
                    tried = [list(g) for g in groups]
                    tried[a][i], tried[b][j] = tried[b][j], tried[a][i]
                    if total(tried) < total(groups) - 1e-9:
                        groups, improved = tried, True
        return groups

    def _refine(
        self, cost: Tensor, group: Tensor, starts: int, steps: int, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Levenberg-Marquardt on the summed log leverage from the best library patches, position by position.

        cost (T, M) of the library -> patches (T, starts, C p^2) and their log leverage (T, starts).
        """
        starts = min(starts, cost.shape[1])
        shift, scale = self.shift[group], self.scale[group]  # (d, D)
        patch = self.library[cost.topk(starts, largest=False).indices].flatten(0, 1)  # (T S, C p^2)
        offset = (self.offsets if offsets is None else offsets).repeat_interleave(starts, 0)

        def whitened(x: Tensor, o: Tensor) -> Tensor:
            return self._leverage(x, o, shift, scale)

        residual, jacobian = vmap(whitened), vmap(jacfwd(whitened))
        r = residual(patch, offset)  # (n, d, D)
        best = r.square().sum(-1).log().sum(-1)  # (n,)
        damping = torch.full_like(best, 1e-2)
        for _ in range(steps):
            j = jacobian(patch, offset)  # (n, d, D, C p^2)
            w = 1 / r.square().sum(-1)  # the logarithm turns least squares into reweighted least squares
            weighted = j * w[:, :, None, None]
            h = torch.einsum("ndka,ndkb->nab", j, weighted)
            g = torch.einsum("ndka,ndk->na", weighted, r)
            held = ((patch <= 0) & (g > 0)) | ((patch >= 1) & (g < 0))
            diagonal = damping[:, None] * h.diagonal(dim1=1, dim2=2) + 1e-12
            h = (h + torch.diag_embed(diagonal)).masked_fill(held[:, :, None] | held[:, None, :], 0)
            step = torch.linalg.solve(h + torch.diag_embed(held.double()), g.masked_fill(held, 0))
            moved = (patch - step).clamp(0, 1)
            r_new = residual(moved, offset)
            now = r_new.square().sum(-1).log().sum(-1)
            better = now < best
            patch, best = torch.where(better[:, None], moved, patch), torch.where(better, now, best)
            r = torch.where(better[:, None, None], r_new, r)
            damping = torch.where(better, damping / 3, damping * 4).clamp(1e-10, 1e8)
        return patch.view(-1, starts, patch.shape[1]), best.view(-1, starts)


def patches_of(images: Tensor, patch_size: int) -> Tensor:
    """(M, C, H, W) -> (M, T, C p^2), pixels ordered as the model's patch embedding reads them."""
    n, c, h, w = images.shape
    p = patch_size
    cut = images.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # (M, H/p, W/p, C, p, p)
    return cut.reshape(n, (h // p) * (w // p), c * p * p)


def images_of(patches: Tensor, shape: torch.Size, patch_size: int) -> Tensor:
    """The inverse of `patches_of`: (M, T, C p^2) -> (M, C, H, W)."""
    c, h, w = shape
    p = patch_size
    cut = patches.reshape(len(patches), h // p, w // p, c, p, p).permute(
        0, 3, 1, 4, 2, 5
    )  # (M, C, H/p, p, W/p, p)
    return cut.reshape(len(patches), c, h, w)
