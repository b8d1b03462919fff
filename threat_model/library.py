"""Public examples as candidates: which of them, with noise draws of their own, would explain a noisy release best.

Under noise closed forms mislead, and the posterior has many modes (the label, the level, the noise draw). A matched
filter over a few hundred draws from the prior finds the mode to start from: with g_i the candidates' clipped
gradients, log p(y | g_i) = (<y, g_i> - |g_i|^2 / 2) / s^2 up to a constant, all taken of factors, so that a release
costs milliseconds once the candidates are made. Several unknown examples are found one after another.

Where many candidates remain plausible, no mode stands out, and the best guess is the posterior's mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..blocks.examples import Examples
from .factors import Factors, Gradient
from .release_model import ReleaseModel
from .unknowns import Guess


class Library:
    """`size` public examples, each with noise draws as training draws them; local steps are taken at one state."""

    def __init__(self, model: ReleaseModel, public: Examples, size: int, generator: torch.Generator) -> None:
        self.model, problem, layout = model, model.problem, model.layout
        known = problem.values_of(public[torch.randint(len(public), (size,), generator=generator)])
        drawn = [problem.sample(known, generator) for _ in range(model.steps)]
        nuisance = {n: torch.cat([each[n] for each in drawn], dim=1) for n in ("level", "noise")}
        self.guess = layout.guess(known | nuisance)
        # Their number is told: where nothing is noised, noise has no values to tell it by.
        values = {
            n: v.view(size, model.steps, len(v) // (size * model.steps), *v.shape[1:])
            for n, v in layout.draws_of(self.guess).items()
        }
        steps = [
            self._clipped(
                model.factored.gradient({n: v[:, s].flatten(0, 1) for n, v in values.items()}), size
            )
            for s in range(model.steps)
        ]
        # Of clipped gradients: factors and numbers of draws are part of them.
        linear = {
            name: Factors(
                torch.cat([step.linear[name].inputs for step in steps], dim=1),
                torch.cat([step.linear[name].outputs for step in steps], dim=1),
            )
            for name in steps[0].linear
        }
        dense = {n: torch.stack([step.dense[n] for step in steps]).sum(0) for n in steps[0].dense}
        self.found = Gradient(linear, dense)
        self.norms = _squared(self.found, problem.names, size).double()

    def _clipped(self, found: Gradient, size: int) -> Gradient:
        """One step's clipped gradients of N examples, from those of their draws: float32."""
        linear = {
            name: Factors(
                a.reshape(size, -1, a.shape[-1]).float(),
                (g * size / len(g)).reshape(size, -1, g.shape[-1]).float(),
            )
            for name, (a, g) in found.linear.items()
        }
        dense = {n: t.view(size, -1, *t.shape[1:]).mean(1).float() for n, t in found.dense.items()}
        mean = Gradient(linear, dense)
        squared = torch.stack([_squared(mean, own, size) for own in self.model.layers.values()], dim=1)
        factors = self.model.clip.factors(squared.double())[0].float()  # (N, L)
        of = dict(zip(self.model.layers, factors.T, strict=True))
        return Gradient(
            {n: Factors(f.inputs, f.outputs * of[n][:, None, None]) for n, f in linear.items()},
            {n: t * of[n.rpartition(".")[0]].view(-1, *[1] * (t.dim() - 1)) for n, t in dense.items()},
        )

    def _along(self, name: str, tensor: Tensor) -> Tensor:
        """Inner products of the clipped gradients with one tensor, (N,)."""
        module, _, kind = name.rpartition(".")
        t = tensor.float()
        if name in self.found.dense:
            return self.found.dense[name].flatten(1) @ t.reshape(-1)
        if module not in self.found.linear:
            return torch.zeros(len(self.norms))
        a, g = self.found.linear[module]
        return g.sum(1) @ t if kind == "bias" else ((g @ t) * a).sum((1, 2))

    def best(self, vector: Tensor, count: int) -> list[Guess]:
        """The `count` most plausible candidates of one unknown example, best first, (1, n) each."""
        order = self._scores(vector).topk(min(count, len(self.norms))).indices
        return [self._at(int(i)) for i in order]

    def sums(self, vector: Tensor, examples: int, count: int) -> list[Guess]:
        """`count` combinations of as many candidates as there are unknown examples: each begins with another
        candidate, and the next is the most plausible one of what is left."""
        found = []
        for first in self._scores(vector).topk(min(count, len(self.norms))).indices:
            chosen = [int(first)]
            rest = vector
            for _ in range(examples - 1):
                rest = rest - self.model.at(self._at(chosen[-1])).vector
                chosen.append(int(self._scores(rest).argmax()))
            parts = [self._at(i) for i in chosen]
            found.append(
                Guess(
                    torch.cat([p.flat for p in parts]),
                    {n: torch.cat([p.discrete[n] for p in parts]) for n in parts[0].discrete},
                )
            )
        return found

    def average(self, vector: Tensor, noise: float, examples: int) -> tuple[Guess, float]:
        """The posterior's mean over the candidates, (K, n), and the effective number of those that it is a mean of.

        The candidates are draws from the prior, so that this is importance sampling; discrete fields get their most
        plausible value. Of several unknown examples all have the same mean, as a sum has no order; what they add
        together is left out, as it is small beside noise under which many candidates remain.
        """
        weights = (self._scores(vector) / noise**2).softmax(0)
        flat = (weights @ self.guess.flat)[None].expand(examples, -1).clone()
        discrete = {}
        for name, values in self.guess.discrete.items():
            columns = values.reshape(len(values), -1).T
            votes = torch.stack([torch.bincount(c, weights=weights).argmax() for c in columns])
            discrete[name] = votes.view(1, *values.shape[1:]).expand(examples, *values.shape[1:]).clone()
        return Guess(flat, discrete), float(1 / weights.square().sum())

    def _scores(self, vector: Tensor) -> Tensor:
        tensors = self.model.problem.tensors(vector)
        along = sum((self._along(n, t) for n, t in tensors.items()), torch.zeros(len(self.norms)))
        return along.double() - self.norms / 2

    def _at(self, i: int) -> Guess:
        return Guess(self.guess.flat[i : i + 1], {n: v[i : i + 1] for n, v in self.guess.discrete.items()})


def _squared(found: Gradient, names: Sequence[str], size: int) -> Tensor:
    """Squared norms of some parameters' gradients, (N,)."""
    total = torch.zeros(size)
    for name in names:
        module, _, kind = name.rpartition(".")
        if name in found.dense:
            total = total + found.dense[name].flatten(1).square().sum(1)
        elif module in found.linear:
            a, g = found.linear[module]
            total = total + (
                g.sum(1).square().sum(1) if kind == "bias" else ((a @ a.mT) * (g @ g.mT)).sum((1, 2))
            )
    return total
