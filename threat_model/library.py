"""Public examples as candidates: which of them, with noise draws of their own, would explain a noisy release best.

Under noise closed forms mislead, and the posterior has many modes (the label, the level, the noise draw). A matched
filter over a few hundred draws from the prior finds the mode to start from: with g_i the candidates' clipped
gradients, log p(y | g_i) = (<y, g_i> - |g_i|^2 / 2) / s^2 up to a constant, all taken of factors, so that a release
costs milliseconds once the candidates are made. Several unknown examples are found one after another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks.examples import Examples
from .factors import Gradient
from .release_model import ReleaseModel
from .unknowns import Guess


class Library:
    """`size` public examples, each with one noise draw as training draws it; for problems of one draw an example."""

    def __init__(self, model: ReleaseModel, public: Examples, size: int, generator: torch.Generator) -> None:
        self.model, problem = model, model.problem
        order = torch.randint(len(public), (size,), generator=generator)
        self.guess = model.layout.guess(problem.sample(problem.values_of(public[order]), generator))
        found = model.factored.gradient(model.layout.draws_of(self.guess))
        squared = torch.stack(
            [sum((self._squared(found, n) for n in own), torch.zeros(size)) for own in model.layers.values()],
            dim=1,
        )
        self.factors = model.clip.factors(squared.double())[0]  # (N, L)
        self.norms = (self.factors.square() * squared).sum(1)
        self.found = Gradient(
            {n: type(f)(f.inputs.float(), f.outputs.float()) for n, f in found.linear.items()},
            {n: t.float() for n, t in found.dense.items()},
        )

    def _squared(self, found: Gradient, name: str) -> Tensor:
        """Squared norms of one parameter's gradients, (N,)."""
        module, _, kind = name.rpartition(".")
        if name in found.dense:
            return found.dense[name].flatten(1).square().sum(1)
        if module not in found.linear:
            return torch.zeros(len(self.guess.flat), dtype=torch.float64)
        a, g = found.linear[module]
        if kind == "bias":
            return g.sum(1).square().sum(1)
        return ((a @ a.mT) * (g @ g.mT)).sum((1, 2))

    def _along(self, name: str, tensor: Tensor) -> Tensor:
        """Inner products of the clipped gradients with one tensor, (N,)."""
        module, _, kind = name.rpartition(".")
        t = tensor.float()
        if name in self.found.dense:
            value = self.found.dense[name].flatten(1) @ t.reshape(-1)
        elif module not in self.found.linear:
            return torch.zeros(len(self.norms), dtype=torch.float64)
        else:
            a, g = self.found.linear[module]
            value = g.sum(1) @ t if kind == "bias" else ((g @ t) * a).sum((1, 2))
        return value.double() * self.factors[:, self.model.place[name]]

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

    def _scores(self, vector: Tensor) -> Tensor:
        tensors = self.model.problem.tensors(vector)
        along = sum((self._along(n, t) for n, t in tensors.items()), torch.zeros(len(self.norms)))
        return along - self.norms / 2

    def _at(self, i: int) -> Guess:
        return Guess(self.guess.flat[i : i + 1], {n: v[i : i + 1] for n, v in self.guess.discrete.items()})
