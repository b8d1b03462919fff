"""LM-MAP: maximum a posteriori reconstruction by projected Levenberg-Marquardt, on any block problem.

Real fields, noise levels and noise draws of every unknown example are estimated jointly, under the exact likelihood
of clipping and Gaussian noise, a public Gaussian prior on fields and the training's own laws of the noise draws. The
draw is a nuisance parameter that is estimated too: averaging over it would lose information. Without noise the
likelihood is annealed from a coarse artificial noise per tensor.

Few unknowns are solved for by a dense Jacobian, many by conjugate gradients, which need products with it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..blocks.taps import Field
from .clock import Clock
from .likelihood import Clip, modelled
from .prior import GaussianPrior
from .problem import Problem, Values
from .releases import Release

NAME = "LM-MAP"
_DENSE = 400  # unknowns up to which the Jacobian is made
_AT_ONCE = 64  # directions of it


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`attempts` starts of the noise draws with `draw_steps` each, then `steps` on everything from the best one."""

    attempts: int = 3
    draw_steps: int = 12
    steps: int = 25
    conjugate: int = 60  # products a step, where the Jacobian is not made
    solved: float = 1e-6  # relative residual at which the search ends

    def words(self) -> str:
        return f"{self.attempts} starts of {self.draw_steps} steps on the noise draws, {self.steps} on everything"


@dataclass(frozen=True)
class Reconstruction:
    """`residual`: root mean square of observed less modelled, relative to each tensor's own size."""

    values: Values
    objective: float
    residual: float
    steps: int
    cut_short: bool = False


@dataclass(frozen=True)
class Law:
    """N(mean, precision^-1) of one unknown, flat (n,), within bounds; `precision` (n,) or (n, n)."""

    mean: Tensor
    precision: Tensor
    bounds: tuple[float, float] | None

    def times(self, v: Tensor) -> Tensor:
        """precision @ v, for (..., n)."""
        return v * self.precision if self.precision.dim() == 1 else v @ self.precision


class LMMAP:
    """The attack on one release.

    attack = LMMAP(problem, release, clip, priors, nuisance)
    found = attack.run(starts, Budget(), clock)

    `priors`: of the real fields that are looked for; `nuisance`: the law of each nuisance, of one draw.
    """

    def __init__(
        self,
        problem: Problem,
        release: Release,
        clip: Clip,
        priors: dict[str, GaussianPrior],
        nuisance: dict[str, Law],
    ) -> None:
        self.problem, self.release, self.clip = problem, release, clip
        self.laws: dict[str, Law] = dict(nuisance)
        for name, prior in priors.items():
            self.laws[name] = Law(prior.mean, prior.precision, prior.bounds)
        power = torch.cat(
            [
                (t.square().mean() - release.noise**2).clamp_min(0.0).expand(t.numel())
                for t in problem.tensors(release.vector).values()
            ]
        )
        self.size = power.sqrt().clamp_min(1e-12 * float(power.max().sqrt()) + 1e-300)  # (P,)

    def run(self, starts: list[Values], budget: Budget, clock: Clock) -> Reconstruction:
        """The noise draws from every start, then everything from the best; without noise the first that fits."""
        draws = tuple(name for name in self.laws if self._field(name).nuisance)
        fields = tuple(self.laws)
        best: Reconstruction | None = None
        for start in starts[: budget.attempts]:
            found = self.descend(start, draws, 0.3, 0.003, budget.draw_steps, budget, clock)
            if not self.release.noise and found.residual < 0.1:
                whole = self.descend(found.values, fields, 0.03, 1e-7, budget.steps, budget, clock)
                if whole.residual < 1e-2:
                    return whole
            if best is None or found.objective < best.objective:
                best = found
            if clock.over:
                break
        assert best is not None
        return self.descend(best.values, fields, 0.03, 1e-7, budget.steps, budget, clock)

    def descend(
        self,
        values: Values,
        names: tuple[str, ...],
        coarse: float,
        finest: float,
        steps: int,
        budget: Budget,
        clock: Clock,
    ) -> Reconstruction:
        """Levenberg-Marquardt on the named unknowns; the artificial noise falls by half a step."""
        flat = torch.cat([values[name].flatten(1) for name in names], dim=1)  # (K, n)
        summed = self._summed(values, names)
        target, damping, stalled, step = self.release.vector, 1e-3, 0, 0
        modelled_now = summed(flat)
        for step in range(1, steps + 1):
            artificial = max(coarse * 0.5 ** (step - 1), finest)
            w = 1 / (self.release.noise**2 + (artificial * self.size) ** 2).sqrt()
            r = target - modelled_now
            before = self._objective(r * w, flat, names)
            move_of = self._system(summed, flat, r, w, names, budget)
            gained = 0.0
            for _ in range(5):
                candidate = self._projected(flat + move_of(damping), names)
                there = summed(candidate)
                gained = before - self._objective((target - there) * w, candidate, names)
                if gained > 0:
                    flat, modelled_now, damping = candidate, there, max(damping / 5, 1e-12)
                    break
                damping = min(damping * 6, 1e6)
            stalled = stalled + 1 if gained < 1e-3 * abs(before) else 0
            relative = self._relative(target - modelled_now)
            annealed = bool((self.release.noise >= 100 * finest * self.size).all()) or artificial <= finest
            if (not self.release.noise and relative < budget.solved) or (stalled >= 3 and annealed):
                break
            if stalled >= 6 or clock.over:
                break
        w = 1 / (self.release.noise**2 + (finest * self.size) ** 2).sqrt()
        r = target - modelled_now
        objective = self._objective(r * w, flat, names)
        return Reconstruction(
            self._values(values, flat, names), objective, self._relative(r), step, clock.over
        )

    def _field(self, name: str) -> Field:
        return next(f for f in self.problem.fields if f.name == name)

    def _values(self, values: Values, flat: Tensor, names: tuple[str, ...]) -> Values:
        sizes = [values[name][0].numel() for name in names]
        cut = zip(names, flat.split(sizes, dim=1), strict=True)
        return values | {name: part.reshape(values[name].shape) for name, part in cut}

    def _summed(self, values: Values, names: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        def summed(flat: Tensor) -> Tensor:
            return modelled(self.problem, self.clip, self._values(values, flat, names))

        return summed

    def _laws(self, names: tuple[str, ...]) -> list[tuple[Law, int]]:
        """Each name's law, and how often it stands side by side: once, or once a draw."""
        return [(self.laws[name], self.problem.draws if self._field(name).nuisance else 1) for name in names]

    def _cut(self, flat: Tensor, names: tuple[str, ...]) -> list[tuple[Law, Tensor]]:
        """(law, part (K, repeats, n)) of every name."""
        laws = self._laws(names)
        sizes = [len(law.mean) * repeats for law, repeats in laws]
        parts = flat.split(sizes, dim=1)
        return [
            (law, part.reshape(len(flat), repeats, -1))
            for (law, repeats), part in zip(laws, parts, strict=True)
        ]

    def _prior_times(self, v: Tensor, names: tuple[str, ...]) -> Tensor:
        return torch.cat([law.times(part).flatten(1) for law, part in self._cut(v, names)], dim=1)

    def _off_mean(self, flat: Tensor, names: tuple[str, ...]) -> Tensor:
        return torch.cat([(part - law.mean).flatten(1) for law, part in self._cut(flat, names)], dim=1)

    def _objective(self, weighted: Tensor, flat: Tensor, names: tuple[str, ...]) -> float:
        off = self._off_mean(flat, names)
        return float(0.5 * weighted.square().sum() + 0.5 * (off * self._prior_times(off, names)).sum())

    def _projected(self, flat: Tensor, names: tuple[str, ...]) -> Tensor:
        return torch.cat(
            [
                (part if law.bounds is None else part.clamp(*law.bounds)).flatten(1)
                for law, part in self._cut(flat, names)
            ],
            dim=1,
        )

    def _held(self, flat: Tensor, slope: Tensor, names: tuple[str, ...]) -> Tensor:
        """Unknowns at a bound that the step would push further out."""
        held = []
        for (law, part), (_, s) in zip(self._cut(flat, names), self._cut(slope, names), strict=True):
            if law.bounds is None:
                held.append(torch.zeros_like(part, dtype=torch.bool).flatten(1))
            else:
                low, high = law.bounds
                held.append((((part <= low) & (s < 0)) | ((part >= high) & (s > 0))).flatten(1))
        return torch.cat(held, dim=1)

    def _relative(self, r: Tensor) -> float:
        return float((r / self.size).square().mean().sqrt())

    def _system(
        self,
        summed: Callable[[Tensor], Tensor],
        flat: Tensor,
        r: Tensor,
        w: Tensor,
        names: tuple[str, ...],
        budget: Budget,
    ) -> Callable[[float], Tensor]:
        """The step (K, n) as a function of the damping."""
        pull: Callable[[Tensor], tuple[Tensor]] = vjp(summed, flat)[1]
        slope = pull(r * w * w)[0] - self._prior_times(self._off_mean(flat, names), names)
        held = self._held(flat, slope, names)
        free = (~held).double()
        if flat.numel() <= _DENSE:
            return self._dense(summed, flat, w, names, slope, held)

        def curvature(v: Tensor) -> Tensor:
            v = v * free
            ahead: Tensor = jvp(summed, (flat,), (v,))[1]
            return (pull(ahead * w * w)[0] + self._prior_times(v, names)) * free

        probe = torch.randn(
            flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).sign()
        scale = float(
            (probe * curvature(probe)).sum() / probe.numel()
        )  # mean of the diagonal (Hutchinson 1990)

        def conjugate(damping: float) -> Tensor:
            x, rest = torch.zeros_like(flat), slope * free
            p, norm = rest.clone(), float((rest * rest).sum())
            first = norm
            for _ in range(budget.conjugate):
                if norm <= 1e-8 * first or norm == 0:
                    break
                hp = curvature(p) + damping * scale * p
                alpha = norm / float((p * hp).sum())
                x, rest = x + alpha * p, rest - alpha * hp
                new = float((rest * rest).sum())
                p, norm = rest + (new / norm) * p, new
            return x

        return conjugate

    def _dense(
        self,
        summed: Callable[[Tensor], Tensor],
        flat: Tensor,
        w: Tensor,
        names: tuple[str, ...],
        slope: Tensor,
        held: Tensor,
    ) -> Callable[[float], Tensor]:
        eye = torch.eye(flat.numel(), dtype=torch.float64).view(-1, *flat.shape)

        def along(direction: Tensor) -> Tensor:
            found: Tensor = jvp(summed, (flat,), (direction,))[1]
            return found

        jacobian = torch.cat([vmap(along)(part) for part in eye.split(_AT_ONCE)]) * w  # (K n, P)
        prior = torch.stack([self._prior_times(e, names).flatten() for e in eye])
        h = jacobian @ jacobian.T + prior
        mask = held.flatten()

        def solved(damping: float) -> Tensor:
            matrix = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
            matrix = matrix.masked_fill(mask[:, None] | mask, 0) + torch.diag(mask.double())
            step: Tensor = torch.linalg.solve(matrix, slope.flatten().masked_fill(mask, 0))
            return step.view_as(flat)

        return solved
