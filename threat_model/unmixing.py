"""Un-mixing: what each of several unknown examples added to one sum, in closed form, where a block is one layer deep.

adaLN gives every noise draw a vector c(sigma) that an attacker can enumerate, and the gradient of the modulation is a
sum of outer products with these. From there everything of a draw's own noisy token follows, draw by draw:

1. each sigma is where the curve c meets the row space of the modulation's gradient (6 D, D); projecting on the c's
   gives each draw's gradient of shift, scale and gate;
2. d scale = d shift * norm(token), so the noisy token itself comes out, and with it its query;
3. the keys' gradient of head h is a sum over draws of (query) x (a mixture of that draw's tokens): known queries give
   the mixtures, a head each. Together with the noisy token they span that draw's tokens, and `linear_span` solves.

The heads must be at least as many as the tokens, and the draws no more than the width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks.categorical_denoiser import EmbeddedDenoiser
from ..blocks.taps import ContinuousTap
from ..blocks.transformer import Block, Layer
from .block_problem import BlockProblem
from .level_curve import LevelCurve, directed
from .linear_span import Solution, rank_of, row_space, solve, solve_in
from .prior import GaussianPrior
from .problem import Values
from .releases import Release

_STEPS = 12
_STILL = 1e-14  # a step of log sigma that moves it by rounding alone
_FITS = 1e-5  # residual of a solution that needs no better one
_CERTAIN = 1e-4  # of the largest singular value: directions that rounding errors leave as they are


@dataclass(frozen=True)
class Unmixed:
    """One draw's part of a sum: `log_sigma`, its solution, and the label, where nothing else is unknown."""

    log_sigma: float
    solution: Solution
    label: int | None


def unsuited(problem: BlockProblem, tap: ContinuousTap, examples: int) -> str | None:
    """Why a sum of so many examples cannot be un-mixed here, none where it can."""
    part, count = problem.model.part(problem.block), examples * problem.draws
    if len(part.layers) != 1:
        return f"the block has {len(part.layers)} layers: clean tokens read each other there"
    if tap.noisy_basis is None:
        return "a draw has several noisy tokens, and their mixture has no known query"
    shape = _layer(part).shape
    if rank_of(tap, 1) > shape.heads + 1:
        return f"{shape.heads} heads show no more mixtures than that, of {rank_of(tap, 1)} tokens"
    if count > shape.hidden_size // shape.heads:
        return f"{count} noise draws, and a head is {shape.hidden_size // shape.heads} wide"
    return None


def noise_levels(problem: BlockProblem, gradient: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` log sigmas, rising, and their vectors c (count, D), from the modulation's gradient (6 D, D)."""
    found, c, _ = levels_on(problem.level_curve, gradient, count)
    return found, c


def levels_on(curve: LevelCurve, gradient: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the curve meets the row space of a gradient (R, D) of rank `count`: at most so many levels, rising, their
    vectors (count, D), and the part of each outside of the space, relative."""
    basis = torch.linalg.svd(gradient, full_matrices=False)[2][:count]
    low, high = curve.interval

    def outside(vectors: Tensor) -> Tensor:
        rest: Tensor = vectors - (vectors @ basis.T) @ basis
        return rest

    distance = outside(curve.directions).norm(dim=1)
    padded = torch.cat([distance[:1] + 1, distance, distance[-1:] + 1])
    minima = ((distance <= padded[:-2]) & (distance < padded[2:])).nonzero()[:, 0]
    found = curve.grid[minima[distance[minima].argsort()[:count]]]
    for _ in range(_STEPS):  # Gauss-Newton in one dimension; a step stays near its grid cell
        c, slope = curve.with_slope(found)
        length = c.norm(dim=1, keepdim=True)
        c = c / length
        r, j = outside(c), outside((slope - c * (c * slope).sum(1, keepdim=True)) / length)
        step = (r * j).sum(1) / (j * j).sum(1).clamp_min(1e-30)
        found = (found - step.clamp(-curve.cell, curve.cell)).clamp(low, high)
        if float(step.abs().max()) < _STILL:
            break
    found = found.sort().values
    c = curve.at(found)
    return found, c, outside(directed(c)).norm(dim=1)


class NoisyDraws(NamedTuple):
    """J noise draws of a sum: levels (J,), their vectors c (J, D), the gradients of shift, scale and gate in the
    first layer (J, 6, D), weights of the noisy token in its basis (J, m), and how it enters that layer (J, D)."""

    log_sigma: Tensor
    condition: Tensor
    modulation: Tensor
    weights: Tensor
    entered: Tensor


def noisy_draws(problem: BlockProblem, tap: ContinuousTap, vector: Tensor, count: int) -> NoisyDraws:
    """What steps 1 and 2 find of at most `count` draws, in blocks of any depth with one noisy token a draw."""
    modulation = problem.tensors(vector)["layers.0.modulation.weight"]
    layer = _layer(problem.model.part(problem.block))
    width = layer.shape.hidden_size
    levels, c = noise_levels(problem, modulation, count)
    by_draw = torch.linalg.lstsq(c.T, modulation.T).solution.view(-1, 6, width)  # (J, 6, D)
    shift, scale = layer.modulation(c).chunk(6, dim=1)[:2]
    assert tap.noisy_basis is not None
    basis = tap.noisy_basis.double()
    centre = basis - basis.mean(0)  # as the layer norm does
    weights = torch.stack(
        [torch.linalg.lstsq(g[0][:, None] * centre, g[1][:, None]).solution[:, 0] for g in by_draw]
    )  # (J, m): d scale = d shift * norm(token)
    entered = (weights @ centre.T) * (1 + scale) + shift  # (J, D)
    return NoisyDraws(levels, c, by_draw, weights, entered)


def solve_one(
    problem: BlockProblem, tap: ContinuousTap, release: Release, prior: GaussianPrior, draws: int
) -> Solution:
    """As `linear_span.solve`; where two draws see almost the same mixtures, the noisy tokens complete the span.

    Of the two solutions, the one that fits better.
    """
    plain = solve(problem, tap, release, prior, draws)
    known = release.noise == 0.0 and tap.noisy_basis is not None and draws == problem.draws
    if not known or float(plain.residual.max()) < _FITS:
        return plain
    directions, sizes = row_space(problem.tensors(release.vector)[tap.weight][tap.rows], rank_of(tap, draws))
    if not len(sizes):  # nothing but zeros
        return plain
    certain = directions[sizes > _CERTAIN * sizes[0]]
    entered = noisy_draws(problem, tap, release.vector, draws).entered
    entered = entered / entered.norm(dim=1, keepdim=True).clamp_min(1e-300)
    if len(certain) + len(entered) < rank_of(tap, draws):
        return plain
    basis = torch.linalg.svd(torch.cat([certain, entered]), full_matrices=False)[2][: rank_of(tap, draws)]
    completed = solve_in(tap, basis, prior)
    return min(plain, completed, key=lambda found: float(found.residual.max()))


def noise_of(problem: BlockProblem, weights: Tensor, log_sigma: Tensor, labels: Tensor) -> Tensor:
    """The noise draws (J, D) behind noisy tokens of these weights (J, m), if the labels are (J,).

    The noisy token is the posterior mean of the label's embedding, so its weights are the posterior: the noisy
    embedding z follows, up to what no gradient depends on.
    """
    model = problem.model
    assert isinstance(model, EmbeddedDenoiser)
    posterior = (weights / weights.sum(1, keepdim=True)).clamp_min(1e-12)
    sigma = log_sigma.exp()[:, None]
    z = (sigma**2 * posterior.log()) @ model.table
    return (z - model.table[labels]) / sigma


def unmix(
    problem: BlockProblem, tap: ContinuousTap, release: Release, prior: GaussianPrior, *, labels: bool
) -> list[Unmixed]:
    """Every draw of every unknown example of the sum; fewer where two noise levels are too close to tell apart.

    `labels`: whether they are looked for too, which takes most of the time.
    """
    layer = _layer(problem.model.part(problem.block))
    width, heads = layer.shape.hidden_size, layer.shape.heads
    draws = noisy_draws(problem, tap, release.vector, release.examples * problem.draws)
    levels, c, by_draw, weights, entered = draws
    tensors = problem.tensors(release.vector)
    queries = layer.qkv(entered)[:, :width].view(-1, heads, width // heads)  # (J, H, d)
    keys = tensors[tap.weight][width : 2 * width].view(heads, width // heads, width)
    mixtures = torch.stack(
        [torch.linalg.lstsq(queries[:, h].T, keys[h]).solution for h in range(heads)], dim=1
    )  # (J, H, D)
    found = []
    for j, level in enumerate(levels):
        span = torch.cat([mixtures[j], entered[j][None]])
        span = span / span.norm(dim=1, keepdim=True).clamp_min(1e-300)
        solution = solve_in(tap, torch.linalg.svd(span, full_matrices=False)[2], prior)
        label = None
        if labels:
            label = _label(problem, tap, solution.values, level, weights[j], c[j], by_draw[j])
        found.append(Unmixed(float(level), solution, label))
    return found


def _label(
    problem: BlockProblem,
    tap: ContinuousTap,
    value: Tensor,
    log_sigma: Tensor,
    weights: Tensor,
    c: Tensor,
    seen: Tensor,
) -> int | None:
    """The label whose gradient of the modulation points as the one that was seen, (6, D)."""
    model = problem.model
    if set(problem.of_example) != {tap.field, "label"} or not isinstance(model, EmbeddedDenoiser):
        return None
    classes = len(model.table)
    labels = torch.arange(classes)
    each = weights.expand(classes, -1), log_sigma.expand(classes)
    values: Values = {
        tap.field: value.expand(classes, *value.shape),
        "label": labels,
        "level": log_sigma.expand(classes, 1),
        "noise": noise_of(problem, *each, labels)[:, None],
    }
    gradients = problem.gradient(values, of="layers.0.modulation.weight")
    pointing = gradients.view(classes, -1, len(c)) @ c  # (classes, 6 D)
    return int(torch.cosine_similarity(pointing, seen.reshape(1, -1)).argmax())


def _layer(part: Block) -> Layer:
    layer = part.layers[0]
    assert isinstance(layer, Layer)
    return layer
