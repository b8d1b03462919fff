"""What LM-MAP looks for, as one flat vector an example, with the prior of each coordinate.

The real fields of the example come first, then every noise draw's noise and level. Noise that enters the network only
through a fixed linear map (a label's noisy embedding: through its products with the label table) is looked for in
that map's coordinates, which are as many standard normals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.categorical_denoiser import EmbeddedDenoiser
from ..blocks.denoiser import GaussianDenoiser
from ..blocks.examples import Examples
from ..blocks.noise import LogNormalNoise
from .block_problem import BlockProblem
from .prior import GaussianPrior
from .problem import Values

MOST = 512
"""Unknowns of an example that a step of the search and its information matrix are made of at most."""


def unsuited(problem: BlockProblem, draws: int) -> str | None:
    """Why an example with so many noise draws has no such layout, none where it has one."""
    real = [f for f in problem.fields if f.continuous and not f.nuisance]
    if not real:
        return "an example has no real field: tokens are no matter of continuous search"
    model = problem.model
    if not isinstance(model, GaussianDenoiser) or not isinstance(model.partition.law, LogNormalNoise):
        return "the law of noise levels is not log-normal"
    basis = Layout.basis_of(problem)
    noise = torch.Size(problem.by_name["noise"].shape).numel() if basis is None else len(basis)
    size = sum(torch.Size(f.shape).numel() for f in real) + draws * (noise + 1)
    return f"{size:,} unknowns an example; a dense search takes {MOST} at most" if size > MOST else None


@dataclass
class Guess:
    """K examples: continuous unknowns `flat` (K, n) and `discrete` fields (K, *shape)."""

    flat: Tensor
    discrete: Values

    def moved(self, flat: Tensor) -> Guess:
        return Guess(flat, self.discrete)


class Layout:
    """Where everything lies in (K, n); `draws`: noise draws of an example in all, steps times draws a step.

    layout = Layout(problem, public, draws=1)
    values = layout.draws_of(guess)        # of K * draws noise draws
    """

    def __init__(self, problem: BlockProblem, public: Examples, draws: int) -> None:
        self.problem, self.draws = problem, draws
        self.fields = [f for f in problem.fields if f.continuous and not f.nuisance]
        self.discrete = [f for f in problem.fields if not f.continuous]
        known = problem.values_of(public)
        self.priors = {f.name: GaussianPrior.fit(known[f.name], f.bounds) for f in self.fields}
        self.sizes = [self.priors[f.name].mean.numel() for f in self.fields]
        self.example = sum(self.sizes)
        noise = problem.by_name["noise"]
        self.noise_shape = torch.Size(noise.shape)
        self.basis = self.basis_of(problem)
        self.draw = (self.noise_shape.numel() if self.basis is None else len(self.basis)) + 1
        self.size = self.example + draws * self.draw
        law = problem.model.partition.law
        assert isinstance(law, LogNormalNoise)
        self.interval = problem.by_name["level"].bounds or (-torch.inf, torch.inf)
        width = self.interval[1] - self.interval[0]
        uniform = problem.model.partition.within == "log-uniform"
        centre = sum(self.interval) / 2
        self.level = (centre, width) if uniform else (law.P_mean, law.P_std)
        self.mean, self.precision = self._prior()

    @staticmethod
    def basis_of(problem: BlockProblem) -> Tensor | None:
        """Orthonormal rows (m, N) of the space in which noise matters, none where all of it does."""
        model = problem.model
        if not isinstance(model, EmbeddedDenoiser) or len(model.table) >= model.table.shape[1]:
            return None
        gram = model.table @ model.table.T
        same = torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-4)
        return torch.linalg.qr(model.table.T)[0].T.contiguous() if same else None

    def _prior(self) -> tuple[Tensor, Tensor]:
        noise = torch.zeros(self.draw - 1, dtype=torch.float64)
        mean, deviation = self.level
        one = torch.cat([noise, torch.tensor([mean], dtype=torch.float64)])
        precise = torch.cat([noise + 1, torch.tensor([deviation**-2.0], dtype=torch.float64)])
        whole = torch.cat([*(p.mean for p in self.priors.values()), one.repeat(self.draws)])
        return whole, torch.block_diag(
            *(p.precision for p in self.priors.values()), torch.diag(precise.repeat(self.draws))
        )

    def at(self, point: Tensor, discrete: Values) -> Values:
        """One draw's unknowns (example + draw,) as the problem reads them."""
        parts = point.split([*self.sizes, self.draw - 1, 1])
        values = {f.name: part.view(f.shape) for f, part in zip(self.fields, parts, strict=False)}
        noise = parts[-2] if self.basis is None else parts[-2] @ self.basis.to(point.dtype)
        return values | discrete | {"noise": noise.view(self.noise_shape), "level": parts[-1][0]}

    def points(self, flat: Tensor) -> Tensor:
        """(K, n) -> (K, draws, example + draw), what each draw depends on."""
        own = flat[:, self.example :].view(len(flat), self.draws, self.draw)
        shared = flat[:, None, : self.example].expand(-1, self.draws, -1)
        return torch.cat([shared, own], dim=2)

    def draws_of(self, guess: Guess) -> Values:
        """The values of all draws, those of one example side by side: (K * draws, ...)."""
        points = self.points(guess.flat).flatten(0, 1)
        discrete = {n: v.repeat_interleave(self.draws, 0) for n, v in guess.discrete.items()}
        return torch.vmap(self.at)(points, discrete)

    def values(self, guess: Guess) -> Values:
        """The real fields of the examples, (K, *shape)."""
        parts = guess.flat[:, : self.example].split(self.sizes, dim=1)
        return {f.name: p.reshape(-1, *f.shape) for f, p in zip(self.fields, parts, strict=True)}

    def guess(self, values: Values) -> Guess:
        """From the problem's values: fields (K, ...), level (K, draws), noise (K, draws, *shape)."""
        k = len(values["level"])
        noise = values["noise"].flatten(2)
        noise = noise if self.basis is None else noise @ self.basis.T
        own = torch.cat([noise, values["level"][..., None]], dim=2).flatten(1)
        real = [values[f.name].reshape(k, -1) for f in self.fields]
        return Guess(
            torch.cat([*real, own], dim=1).double(), {f.name: values[f.name].long() for f in self.discrete}
        )

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of every coordinate, (n,)."""
        draw = torch.full((self.draw,), torch.inf, dtype=torch.float64)
        low, high = -draw, draw.clone()
        low[-1], high[-1] = self.interval
        limits = [f.bounds or (-torch.inf, torch.inf) for f in self.fields]
        lows = [torch.full((n,), b[0], dtype=torch.float64) for n, b in zip(self.sizes, limits, strict=True)]
        highs = [torch.full((n,), b[1], dtype=torch.float64) for n, b in zip(self.sizes, limits, strict=True)]
        return torch.cat([*lows, low.repeat(self.draws)]), torch.cat([*highs, high.repeat(self.draws)])
