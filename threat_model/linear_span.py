"""Linear span: real parts of an example from the row space of one weight's gradient, in closed form.

The gradient of a linear layer is a sum of outer products of what comes back to it with what went in, so its rows lie
in the span of its inputs (R-GAP, Zhu & Blaschko 2021; for tokens DAGER, Petrov et al. 2024, arXiv 2405.15586). Token
t goes in as norm(E x_t + o_t) with E and o_t known; with P the projector on the row space and C the norm's centring

    (I - P) C (E x_t + o_t) = 0,

a linear system in the part x_t alone. Neither clipping nor a positive factor changes a row space. One example's T
tokens and the noisy ones of its draws span at most K (T + draws) directions; a part of p values needs p of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.taps import ContinuousTap
from .prior import GaussianPrior
from .problem import Problem
from .releases import Release

_FLOOR = 1e-6  # of the largest singular value: below are rounding errors of float32 gradients


@dataclass(frozen=True)
class Solution:
    """`values` of the field (*shape); `residual`: the part of each token outside the span, relative, (T,)."""

    values: Tensor
    residual: Tensor


def rank_of(tap: ContinuousTap, draws: int) -> int:
    """How many directions one example's tokens span, with those of so many noise draws."""
    return len(tap.embedding) + tap.others + draws * tap.noisy


def unsuited(tap: ContinuousTap, examples: int, draws: int) -> str | None:
    """Why the span cannot tell parts apart, none where it can; `draws`: noise draws of an example, over all steps."""
    _, width, part = tap.embedding.shape
    rank, room = examples * rank_of(tap, draws), width - (tap.norm == "layer")
    if rank + part > room:
        tokens = f"{rank_of(tap, 0)} tokens + {draws * tap.noisy} noisy ones"
        rule = f"{examples} x ({tokens}) leave {max(room - rank, 0)} of {room} directions"
        return f"rank {rank}: {rule}, a part of {part} values needs {part}"
    if tap.shown is not None and draws * tap.shown < rank_of(tap, draws):
        return f"the noisy tokens' heads show {draws * tap.shown} mixtures of {rank_of(tap, draws)} tokens"
    return None


def row_space(gradient: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` strongest directions of the rows of gradient (R, D): basis (r, D) and singular values (r,).

    Key and value rows differ in size by orders of magnitude, so both halves are normalised first.
    """
    halves = [part / part.norm().clamp_min(1e-300) for part in gradient.double().chunk(2)]
    _, s, v = torch.linalg.svd(torch.cat(halves), full_matrices=False)
    kept = min(count, int((s > float(s[0]) * _FLOOR).sum()))
    return v[:kept], s[:kept]


def centred(vectors: Tensor, tap: ContinuousTap) -> Tensor:
    """(..., D) less their mean where the norm subtracts it."""
    return vectors - vectors.mean(-1, keepdim=True) if tap.norm == "layer" else vectors


def solve(
    problem: Problem, tap: ContinuousTap, release: Release, prior: GaussianPrior, draws: int
) -> Solution:
    """The field of one unknown example, by least squares; under noise, weighed against the public prior.

    `draws`: noise draws that the release is made of, over all steps.
    """
    gradient = problem.tensors(release.vector)[tap.weight][tap.rows]
    basis, singular = row_space(gradient, rank_of(tap, draws))
    a, b = _outside(tap, basis)
    if release.noise == 0.0:
        return solve_in(tap, basis, prior)
    parts = _weighed(tap, a, b, prior, gradient, release.noise, singular)
    return _solution(tap, basis, prior, parts)


def solve_in(tap: ContinuousTap, basis: Tensor, prior: GaussianPrior) -> Solution:
    """The field whose tokens lie in the space of `basis` (r, D), orthonormal rows, by least squares."""
    a, b = _outside(tap, basis)
    return _solution(tap, basis, prior, torch.linalg.lstsq(a, -b[..., None]).solution[..., 0])


def _outside(tap: ContinuousTap, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding (T, D, p) and offset (T, D) less what lies in the space."""
    embedding = centred(tap.embedding.double().transpose(1, 2), tap)  # (T, p, D)
    offset = centred(tap.offset.double(), tap)
    return (embedding - (embedding @ basis.T) @ basis).transpose(1, 2), offset - (offset @ basis.T) @ basis


def _solution(tap: ContinuousTap, basis: Tensor, prior: GaussianPrior, parts: Tensor) -> Solution:
    tokens = torch.einsum("tdp,tp->td", tap.embedding.double(), parts) + tap.offset.double()
    tokens = centred(tokens, tap)
    outside = (tokens - (tokens @ basis.T) @ basis).norm(dim=1)
    values = prior.within(tap.join(parts[None])[0].reshape(-1)).view(prior.shape)
    return Solution(values, outside / tokens.norm(dim=1).clamp_min(1e-300))


def _weighed(
    tap: ContinuousTap, a: Tensor, b: Tensor, prior: GaussianPrior, gradient: Tensor, noise: float, s: Tensor
) -> Tensor:
    """MAP of all parts together, (T, p): the noise turns the span, towards each direction outside by noise / signal.

    A singular value that is no larger than noise alone would give has no signal: then nothing but the prior is left.
    """
    n, (rows, width) = prior.mean.numel(), gradient.shape
    relative = max(noise / float(half.norm()) for half in gradient.chunk(2))
    alone = relative * (math.sqrt(rows) + math.sqrt(width))  # the largest singular value of noise
    signal = max(float(s[-1]) ** 2 - alone**2, 0.0) ** 0.5
    # Columns of the identity show where each of the field's values lies among the parts.
    place = tap.cut(torch.eye(n, dtype=torch.float64).view(n, *prior.shape))  # (N, T, p)
    expected = torch.einsum("tdp,tp->td", a, tap.cut(prior.mean.view(1, *prior.shape))[0]) + b
    deviation = max(relative / max(signal, 1e-9), 1e-9) * float(expected.norm(dim=1).mean())
    seen = torch.einsum("tdp,ntp->tdn", a, place).reshape(-1, n)
    precision = seen.T @ seen / deviation**2 + prior.precision
    right = -seen.T @ b.reshape(-1) / deviation**2 + prior.precision @ prior.mean
    return tap.cut(torch.linalg.solve(precision, right).view(1, *prior.shape))[0]
