"""LM-MAP: maximum a posteriori reconstruction by projected Levenberg-Marquardt.

The real fields, noise level and noise draw of every unknown example are estimated jointly under the exact likelihood
of clipping and Gaussian noise, a Gaussian public prior on the fields, N(0, I) on the noise draw and the training's
own law of levels. The noise draw is a nuisance that is estimated too: averaging over it, as in expectation over
transformation, would lose information.

Where there is no noise, what is not explained yet stands in for it: each tensor's artificial noise is the relative
residual, so that steps are short at first and Newton's in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .release_model import Modelled, Moves, ReleaseModel
from .releases import Release
from .unknowns import Guess

_SOLVED = 1e-6  # relative residual at which a descent ends; below are rounding errors of float32 gradients
_ROUNDED = 1e-4  # below this, a step without gain is the last: that is what float32 gradients leave
EXPLAINED = 1e-3
"""Relative residual that no wrong reconstruction was seen to reach, of one local step."""
EXPLAINED_BUT_FOR_ORDER = 2e-2
"""The same of several: which noise draw came first shows only in what one step does to the next one's gradient."""
_NOTHING = 1e-60  # mean square of a tensor, which is not divided by less
_SEARCHES = 3  # for discrete values, from one start
_TRIES = 6  # of a step's damping
_PATIENCE = 3  # steps without gain


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`attempts`: starts; `iterations`: steps of each phase; under noise only for the best `finalists`, after `short`
    ones for all. `library`: public examples tried as starts under noise. `stop`: true once the clock is over."""

    attempts: int = 12
    iterations: int = 40
    short: int = 12
    finalists: int = 2
    library: int = 1000
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Start:
    """Where a descent begins, which unknowns move in its phases, and a search for discrete values afterwards."""

    guess: Guess
    phases: tuple[Moves, ...] = ("all",)
    search: Callable[[Guess], Guess] | None = None


@dataclass(frozen=True)
class Reconstruction:
    """`objective`: negative log posterior up to a constant; `residual`: root mean square of (observed - modelled)
    relative to each tensor's own size."""

    guess: Guess
    objective: float
    residual: float
    attempts: int
    iterations: int


class LMMAP:
    """The attack on one release.

    attack = LMMAP(model, release, Budget())
    found = attack.run(starts)                 # model.layout.values(found.guess): the fields (K, *shape)
    """

    def __init__(self, model: ReleaseModel, release: Release, budget: Budget) -> None:
        self.model, self.layout, self.budget = model, model.layout, budget
        self.noise = release.noise
        # Noise is far above rounding; without it directions differ by orders of magnitude.
        self.dtype = torch.float32 if release.noise else torch.float64
        vector = release.vector
        if model.clip.kind == "unit":
            vector = vector / vector.norm().clamp_min(1e-300)
        self.observed = model.problem.tensors(vector)
        powers = {n: max(float(t.square().mean()) - self.noise**2, 0.0) for n, t in self.observed.items()}
        # A release of zeros alone, of an example without a loss, leaves every tensor of one size.
        least = max(1e-24 * max(powers.values()), _NOTHING)
        self.sizes = {
            n: max(power, least) ** 0.5 for n, power in powers.items()
        }  # of each tensor without noise
        self.low, self.high = self.layout.bounds()
        self.coordinates = len(vector)
        self.spent = 0

    def run(self, starts: Iterable[Start]) -> Reconstruction:
        """From every start; without noise the first reconstruction that explains the release is the last.

        Under noise that cannot be known: every start has a short descent, and the most plausible few a long one.

        Raises:
            ValueError: there is no start.
        """
        found: list[Reconstruction] = []
        for attempt, start in enumerate(starts, start=1):
            found.append(self._from(start, attempt))
            if not self.noise and found[-1].residual < self.explained:
                return found[-1]
            if attempt >= self.budget.attempts or self.budget.stop():
                break
        if not found:
            raise ValueError("Expected at least one start.")
        found.sort(key=lambda each: each.objective)
        if self.noise:
            for i, each in enumerate(found[: self.budget.finalists]):
                guess, residual, objective = self._descend(each.guess, "all", self.budget.iterations, first=6)
                found[i] = Reconstruction(guess, objective, residual, len(found), self.spent)
        return min(found, key=lambda each: each.objective)

    def _from(self, start: Start, attempt: int) -> Reconstruction:
        """From one start. Discrete values that were wrong at the start may be told apart once the rest is near."""
        iterations = self.budget.short if self.noise else self.budget.iterations
        guess, residual, objective = start.guess, math.inf, math.inf
        for moves in start.phases:
            guess, residual, objective = self._descend(guess, moves, iterations)
        best = Reconstruction(guess, objective, residual, attempt, self.spent)
        for _ in range(_SEARCHES if start.search else 0):
            if (not self.noise and best.residual < self.explained) or self.budget.stop():
                break
            assert start.search is not None
            other = start.search(best.guess)
            if all(torch.equal(v, best.guess.discrete[n]) for n, v in other.discrete.items()):
                break
            guess, residual, objective = self._descend(other, "all", iterations)
            if objective >= best.objective:
                break
            best = Reconstruction(guess, objective, residual, attempt, self.spent)
        return best

    @property
    def explained(self) -> float:
        """The relative residual below which nothing is left to explain."""
        return EXPLAINED if self.model.steps == 1 else EXPLAINED_BUT_FOR_ORDER

    def misfit(self, found: Modelled) -> dict[str, Tensor]:
        """Observed less modelled, by tensor."""
        tensors = self.model.problem.tensors(found.vector)
        return {name: seen - tensors[name] for name, seen in self.observed.items()}

    def relative(self, misfit: dict[str, Tensor]) -> float:
        """Root mean square of the misfit over each tensor's size."""
        total = sum(float(m.square().sum()) / self.sizes[n] ** 2 for n, m in misfit.items())
        return float((total / self.coordinates) ** 0.5)

    def _weights(self, artificial: float) -> dict[str, float]:
        return {n: (self.noise**2 + (artificial * size) ** 2) ** -0.5 for n, size in self.sizes.items()}

    def objective(self, misfit: dict[str, Tensor], guess: Guess, artificial: float) -> float:
        """Negative log posterior up to a constant, under the real and an artificial noise."""
        w = self._weights(artificial)
        likelihood = sum(float((m * w[n]).square().sum()) for n, m in misfit.items())
        centred = guess.flat - self.layout.mean
        return 0.5 * likelihood + 0.5 * float(((centred @ self.layout.precision) * centred).sum())

    def _descend(
        self, guess: Guess, moves: Moves, iterations: int, first: int = 0
    ) -> tuple[Guess, float, float]:
        """Levenberg-Marquardt on all unknowns, on those of the examples or on those of the draws: guess, residual,
        objective. `first`: where on the schedule of artificial noise it begins."""
        layout, k = self.layout, len(guess.flat)
        part = {
            "all": slice(None), "example": slice(None, layout.example), "draws": slice(layout.example, None)
        }[moves]  # fmt: skip
        moving = layout.precision[part, part]
        found = self.model.at(guess)
        misfit = self.misfit(found)
        relative = self.relative(misfit)
        damping, stalled, artificial = 1e-3, 0, 0.0
        for step in range(first, first + iterations):
            if not self.noise:
                if relative < _SOLVED:
                    break
                artificial = min(0.3 * 0.7**step, relative) if moves != "all" else min(relative, 0.1)
            elif step < 6:  # coarse at first here too, so that a step does not leave the model's linear range
                artificial = min(relative, 0.3 * 0.5**step)
            else:
                artificial = 0.0
            self.spent += 1
            w = self._weights(artificial)
            curvature, slope = self.model.normal(guess, found, misfit, w, moves=moves, dtype=self.dtype)
            pull = ((guess.flat - layout.mean) @ layout.precision)[:, part]
            slope = slope.view(k, -1) - pull
            curvature = curvature + torch.block_diag(*[moving] * k)
            held = self._held(guess.flat[:, part], slope, part).flatten()
            slope = slope.flatten().masked_fill(held, 0)
            before, gained = self.objective(misfit, guess, artificial), 0.0
            diagonal = curvature.diagonal().clone()
            for _ in range(_TRIES):
                matrix = curvature + torch.diag(damping * diagonal)
                matrix = matrix.masked_fill(held[:, None] | held, 0) + torch.diag(held.double())
                factor, failed = torch.linalg.cholesky_ex(matrix)
                if not int(failed):
                    move = torch.cholesky_solve(slope[:, None], factor)[:, 0].view(k, -1)
                    flat = guess.flat.clone()
                    flat[:, part] += move
                    candidate = guess.moved(flat.clamp(self.low, self.high))
                    ahead = self.model.at(candidate)
                    misfit_ahead = self.misfit(ahead)
                    gained = before - self.objective(misfit_ahead, candidate, artificial)
                    if gained > 0:
                        guess, found, misfit = candidate, ahead, misfit_ahead
                        relative, damping = self.relative(misfit), max(damping / 5, 1e-12)
                        break
                damping = min(damping * 6, 1e6)
            # Half of the coordinates is what noise alone costs.
            excess = before - (0.5 * self.coordinates if self.noise and not artificial else 0.0)
            stalled = stalled + 1 if gained < max(1e-2 * excess, 0.01) else 0
            patience = 1 if not self.noise and relative < _ROUNDED else _PATIENCE
            if (stalled >= patience and (not self.noise or artificial == 0.0)) or self.budget.stop():
                break
        return guess, relative, self.objective(misfit, guess, 0.0 if self.noise else 1e-6)

    def _held(self, flat: Tensor, slope: Tensor, part: slice) -> Tensor:
        """Unknowns at a bound that the step would push further out, (K, m)."""
        return ((flat <= self.low[part]) & (slope < 0)) | ((flat >= self.high[part]) & (slope > 0))
