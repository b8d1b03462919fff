"""LM-MAP: maximum a posteriori reconstruction by projected Levenberg-Marquardt.

Image, noise level and noise draw of every unknown example are estimated jointly under the exact likelihood of
clipping and Gaussian noise, a Gaussian public prior on images, N(0, I) on eps and the training's own law of
sigma. The noise draw is a nuisance parameter that is estimated too: averaging over it, as in expectation over
transformation, would lose information. Without noise the likelihood is annealed from a coarse artificial noise per
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..blocks import LogNormalNoise
from ..blocks.patches import patches_of
from .attack_budget import AttackBudget
from .gradients import BlockGradient, Unknowns
from .prior import GaussianPrior
from .token_span import PatchSearch
from .views import Observation, scale

NAME = "LM-MAP"
_GOOD_START = 0.06  # relative residual below which the joint phase is run
_EXPLAINED = 1e-2  # relative residual that no wrong reconstruction was seen to reach


@dataclass(frozen=True)
class _Phase:
    """Which unknowns change, how the artificial noise decreases (by half a step), and the residual to stop at."""

    image: bool
    coarse: float
    finest: float
    solved: float  # relative residual


# The noise draws first: wrong ones would change an image that is nearly right.
_DRAWS = _Phase(False, 0.3, 0.003, 0.005)
_ALL = _Phase(True, 0.01, 1e-6, 1e-5)
_LABEL_NOISE = 0.3  # artificial noise at which labels are compared


@dataclass(frozen=True)
class Reconstruction:
    unknowns: Unknowns
    objective: float  # negative log posterior, up to a constant
    residual: float  # root mean square of (observed - modelled) relative to each tensor's own size
    iterations: int


@dataclass
class _Weights:
    """Standard deviation of each used coordinate under real and artificial noise."""

    coordinates: Tensor  # (R,) indices into the P coordinates
    size: Tensor  # (R,) root mean square of the coordinate's tensor, without the real noise
    noise: float

    def at(self, artificial: float) -> Tensor:
        return 1 / (self.noise**2 + (artificial * self.size) ** 2).sqrt()


class LMMAP:
    """The attack, for one model and one public data set.

    attack = LMMAP(gradient, objective, public_images, classes=10, budget=AttackBudget())
    found = attack.run(observation, generator)          # found.unknowns.images (K, C, H, W)
    """

    def __init__(
        self,
        gradient: BlockGradient,
        public: Tensor,
        *,
        classes: int,
        budget: AttackBudget,
    ) -> None:
        self.gradient, self.public, self.classes, self.budget = gradient, public.double(), classes, budget
        self.prior = GaussianPrior.fit(public, (0.0, 1.0))
        partition = gradient.model.partition
        low, high = partition.training_interval(gradient.block)
        self.median = partition.levels(gradient.block, torch.tensor(0.5, dtype=torch.float64)).log()
        self.interval = torch.tensor([low, high], dtype=torch.float64).log()
        law = partition.law
        assert isinstance(law, LogNormalNoise)
        self.level_mean, self.level_std = law.P_mean, law.P_std

    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """Fit the noise draws from several starts, then all unknowns from the starts with a small residual.

        Without noise the search ends at the first reconstruction that explains the observation. With noise that
        cannot be known, so all starts are tried and the most probable one is continued.
        """
        weights = self._weights(observation, generator)
        best: Reconstruction | None = None
        for start in self._starts(observation, weights, generator):
            found = self._descend(observation, weights, start, _DRAWS, self.budget.draw_iterations)
            if best is None or found.objective < best.objective:
                best = found
            if not observation.noise and found.residual < _GOOD_START:
                whole = self._descend(observation, weights, found.unknowns, _ALL, self.budget.iterations)
                if whole.residual < _EXPLAINED:
                    return whole
        if best is None:
            raise ValueError(f"Expected attempts={self.budget.attempts} > 0.")
        return self._descend(observation, weights, best.unknowns, _ALL, self.budget.iterations)

    def _weights(self, observation: Observation, generator: torch.Generator) -> _Weights:
        power = torch.cat(
            [
                (t.square().mean() - observation.noise**2).clamp_min(0.0).expand(t.numel())
                for t in self.gradient.tensors(observation.vector).values()
            ]
        )
        chosen = torch.arange(len(power))
        if not observation.noise and len(power) > self.budget.coordinates:
            chosen = torch.randperm(len(power), generator=generator)[: self.budget.coordinates]
        size = power.sqrt().clamp_min(1e-12 * float(power.max().sqrt()))
        return _Weights(chosen, size[chosen], observation.noise)

    def _starts(
        self, observation: Observation, weights: _Weights, generator: torch.Generator
    ) -> Iterator[Unknowns]:
        """Starts with images and noise levels from the row spaces, the last one from the prior's mode; random eps.

        eps = 0 is a saddle point: there the draws of one example are exchangeable.
        """
        k, d = observation.examples, observation.draws
        library = patches_of(self.public, self.gradient.model.patch_size).flatten(0, 1)  # (M T, C p^2)
        chosen = torch.randperm(len(library), generator=generator)[: self.budget.library]
        log_sigma, images = PatchSearch(
            self.gradient, observation, library[chosen], self.prior.shape
        ).images()
        for attempt in range(self.budget.attempts):
            if attempt and attempt + 1 == self.budget.attempts:
                images = self.prior.mode.expand(k, *self.prior.shape).clone()
                log_sigma = self.median.expand(k, d).clone()
            eps = torch.randn(k, d, self.gradient.width, generator=generator, dtype=torch.float64)
            start = Unknowns(images, log_sigma, eps, torch.zeros(k, dtype=torch.long))
            yield replace(start, labels=self._labels(observation, weights, start, attempt))

    def _labels(self, observation: Observation, weights: _Weights, start: Unknowns, attempt: int) -> Tensor:
        """The most plausible labels at the start, (K,): a gradient depends far more on the label than on eps.

        For one example, some attempts take the second most plausible.
        """
        w = weights.at(_LABEL_NOISE)
        target = observation.vector[weights.coordinates] * w  # (R,)
        candidates = []
        for label in range(self.classes):
            g = self.gradient(replace(start, labels=torch.full_like(start.labels, label)))  # (K, P)
            candidates.append(self._scaled(g, observation)[:, weights.coordinates] * w)
        table = torch.stack(candidates, dim=1)  # (K, classes, R)
        distance = ((table - target) ** 2).sum(2)  # (K, classes)
        if len(distance) == 1:
            rank = int(attempt % 3 == 2)
            return distance[0].topk(2, largest=False).indices[rank : rank + 1]
        labels = distance.argmin(1)  # (K,)
        for _ in range(2):  # coordinate descent over the examples of a sum
            for i in range(len(labels)):
                others = table[torch.arange(len(labels)), labels].sum(0) - table[i, labels[i]]
                labels[i] = ((target - others - table[i]) ** 2).sum(1).argmin()
        return labels

    @staticmethod
    def _scaled(gradients: Tensor, observation: Observation) -> Tensor:
        return scale(gradients, observation.scaling, observation.max_grad_norm)[0]

    def _prior_terms(self, u: Unknowns) -> tuple[Tensor, Tensor]:
        """(mean (n,), precision (n, n)) of the flat unknowns of one example."""
        d, width = u.log_sigma.shape[1], self.gradient.width
        draw_mean = torch.cat([torch.zeros(width), torch.tensor([self.level_mean])]).double()
        draw_precision = torch.cat([torch.ones(width), torch.tensor([self.level_std**-2.0])]).double()
        mean = torch.cat([self.prior.mean, draw_mean.repeat(d)])
        precision = torch.block_diag(self.prior.precision, torch.diag(draw_precision.repeat(d)))
        return mean, precision

    def _descend(
        self, observation: Observation, weights: _Weights, u: Unknowns, phase: _Phase, iterations: int
    ) -> Reconstruction:
        """Levenberg-Marquardt on all unknowns, or on the noise draws alone."""
        mean, precision = self._prior_terms(u)
        k = len(u.labels)
        target = observation.vector[weights.coordinates]
        first = 0 if phase.image else len(self.prior.mean)  # unknowns before it stay
        moving = precision[first:, first:]

        def misfit(g: Tensor) -> Tensor:
            return target - self._scaled(g, observation).sum(0)[weights.coordinates]

        def objective(r: Tensor, flat: Tensor, w: Tensor) -> float:
            centred = flat - mean
            return float(0.5 * (r * w).square().sum() + 0.5 * ((centred @ precision) * centred).sum())

        g = self.gradient(u)
        r, damping, stalled, step = misfit(g), 1e-3, 0, 0
        for step in range(iterations):
            artificial = max(phase.coarse * 0.5**step, phase.finest)
            w, flat = weights.at(artificial), u.flat()
            jacobian = self._jacobian(u, g, observation, weights, w, phase.image)  # (K m, R)
            curvature = (jacobian @ jacobian.T).double() + torch.block_diag(*[moving] * k)
            pull = ((flat - mean) @ precision)[:, first:].flatten()
            slope = (jacobian @ (r * w).to(jacobian.dtype)).double() - pull  # (K m,)
            held = self._held(flat, first, slope.view(k, -1)).flatten()
            before = objective(r, flat, w)
            for _ in range(5):
                matrix = curvature + damping * curvature.diagonal().mean() * torch.eye(len(curvature))
                matrix = matrix.masked_fill(held[:, None] | held, 0) + torch.diag(held.double())
                move = torch.linalg.solve(matrix, slope.masked_fill(held, 0)).view(k, -1)
                candidate = u.moved_to(
                    self._projected(torch.cat([flat[:, :first], flat[:, first:] + move], 1))
                )
                g_new = self.gradient(candidate)
                r_new = misfit(g_new)
                gained = before - objective(r_new, candidate.flat(), w)
                if gained > 0:
                    u, g, r, damping = candidate, g_new, r_new, max(damping / 5, 1e-12)
                    break
                damping = min(damping * 6, 1e6)
            stalled = stalled + 1 if gained < 1e-3 * before else 0
            # Annealing the artificial noise has no effect once the real noise is larger.
            annealed = bool((w > 0.99 * weights.at(phase.finest)).all())
            solved = not observation.noise and self._relative(r, weights) < phase.solved
            if solved or (stalled >= 2 and annealed):
                break
        return Reconstruction(
            u, objective(r, u.flat(), weights.at(phase.finest)), self._relative(r, weights), step + 1
        )

    @staticmethod
    def _relative(r: Tensor, weights: _Weights) -> float:
        return float((r / weights.size).square().mean().sqrt())

    def _jacobian(
        self, u: Unknowns, g: Tensor, observation: Observation, weights: _Weights, w: Tensor, of_image: bool
    ) -> Tensor:
        """Derivative of the weighted sum, (K m, R). Each example changes its own summand only."""
        _, factors, bound = scale(g, observation.scaling, observation.max_grad_norm)
        blocks = []
        for i in range(len(g)):
            one = Unknowns(u.images[i : i + 1], u.log_sigma[i : i + 1], u.eps[i : i + 1], u.labels[i : i + 1])
            j = self.gradient.jacobian(one, of_image=of_image)[0]  # (m, P)
            direction = (g[i] / g[i].norm().clamp_min(1e-30)).float()
            radial = (j @ direction) * bound[i].float()  # (m,)
            chosen = weights.coordinates
            j = j[:, chosen] if len(chosen) < j.shape[1] else j
            j = j - radial[:, None] * direction[chosen]
            blocks.append(j * (factors[i] * w).float())
        stacked = torch.cat(blocks)
        # With few coordinates double precision is cheap; with all of them the noise is far above rounding.
        return stacked if observation.noise else stacked.double()

    def _projected(self, flat: Tensor) -> Tensor:
        """Images clamped to [0, 1], noise levels to the block's interval."""
        pixels, width = len(self.prior.mean), self.gradient.width
        out = flat.clone()
        out[:, :pixels] = out[:, :pixels].clamp(0, 1)
        out[:, pixels + width :: width + 1] = out[:, pixels + width :: width + 1].clamp(*self.interval)
        return out

    def _held(self, flat: Tensor, first: int, slope: Tensor) -> Tensor:
        """Pixels at a bound that the step would push further out; flat (K, n), slope (K, n - first)."""
        held = torch.zeros_like(slope, dtype=torch.bool)
        pixels = len(self.prior.mean) - first
        x, s = flat[:, : len(self.prior.mean)], slope[:, :pixels]
        if pixels:
            held[:, :pixels] = ((x <= 0) & (s < 0)) | ((x >= 1) & (s > 0))
        return held
