"""The target that a block denoises (an image, a series' future), in closed form, from one example's gradient.

Its noise hides nothing of it. The steps, for draws j with z_j = y + sigma_j eps_j and tokens t:

1. the modulation's gradient is a sum of outer products with c(sigma_j) + l(label): levels are where that curve
   meets its row space, and the label is the one whose curve does;
2. a noised token enters the first layer as (1 + scale_j) norm(E u + o_t) + shift_j, u its part of c_in z_j. With s
   the deviation that the norm divides by, (I - P) [(1 + scale_j) C (E u + o_t) + s shift_j] = 0 is linear in u and s;
3. for known z_j the loss is quadratic in y, so that its gradient is affine in it, A - B y. Clipping multiplies it by
   a number a, of one weight the same whatever the kind: v = a (A - B y) is linear in 1/a and y.

With one draw step 3 leaves a line, as then a residual's length and a cannot be told apart: the most plausible of its
points is taken, given z and the public prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..blocks.taps import ContinuousTap, NoisedTap
from . import linear_span
from .block_problem import BlockProblem
from .level_curve import LevelCurve
from .prior import GaussianPrior
from .problem import Values
from .releases import Release
from .unmixing import levels_on

_MOST = 256  # values of a target: what step 3 solves for together
_TRUST = 1e6  # of a gradient of length 1 against what is plausible: the deviations of float32
_COARSE = 1024  # noise levels tried for each label
_NEAR = 0.01  # share of them that counts
_DEGENERATE = 1e-6  # smallest singular value, relative, below which a token has several solutions


@dataclass(frozen=True)
class NoisedSolution:
    """`values` of the target; `log_sigma` (J,), z (J, *shape of the clean target); `label`, where it modulates.

    `residual`: the largest relative one of the steps, infinite where a step had no solution: then `values` is the
    prior's mode.
    """

    values: Tensor
    residual: float
    log_sigma: Tensor
    z: Tensor | None = None
    label: int | None = None


def unsuited(problem: BlockProblem, tap: NoisedTap) -> str | None:
    """Why a target cannot be solved for, none where it can."""
    width, part = tap.embedding.shape
    tokens, draws = len(tap.offset), problem.draws
    rank, room = tap.others + draws * tokens, width - 1
    if rank + part + 1 > room:
        return (
            f"rank {rank}: {tap.others} clean tokens + {draws} x {tokens} noisy ones leave {max(room - rank, 0)} of "
            f"{room} directions, a part of {part} values and its deviation need {part + 1}"
        )
    values = torch.Size(problem.by_name[tap.field].shape).numel()
    if values > _MOST:
        return f"a target has {values} values, and at most {_MOST} are solved for together"
    for field in problem.of_example:
        if field == tap.field or (field == "label" and tap.labels is not None):
            continue
        own = _tap_of(problem, field)
        if own is None:
            return f"its {field} is not known, and the gradient depends on it"
        why = linear_span.unsuited(own, 1, draws)
        if why is not None:
            return f"its {field} does not come out: {why}"
    return None


def solve(
    problem: BlockProblem, tap: NoisedTap, release: Release, priors: dict[str, GaussianPrior], *, whole: bool
) -> NoisedSolution:
    """The target of one unknown example, from a release of one step; `priors` by field. `whole`: the gradient
    is shorter than it would have been clipped to."""
    prior = priors[tap.field]
    tensors = problem.tensors(release.vector)
    log_sigma, c, label, outside = _levels(problem, tap, tensors)
    nothing = NoisedSolution(prior.mode, float("inf"), log_sigma, label=label)
    if len(log_sigma) < problem.draws:
        return nothing  # two levels too close to tell apart, or noise
    tokens = _noised(tap, tensors[tap.weight][tap.rows], log_sigma, c)
    if tokens is None:
        return nothing
    parts, off = tokens
    z = tap.join(parts)  # (J, *shape)
    known: Values = {} if label is None else {"label": torch.tensor([label])}
    for field in problem.of_example:
        own = _tap_of(problem, field)
        if own is not None:
            known[field] = linear_span.solve(problem, own, release, priors[field], problem.draws).values[None]
    values, left = _target(problem, tap, tensors, known, z, log_sigma, prior, whole)
    return NoisedSolution(values, max(outside, off, left), log_sigma, z, label)


def _tap_of(problem: BlockProblem, field: str) -> ContinuousTap | None:
    return next((t for t in problem.taps if isinstance(t, ContinuousTap) and t.field == field), None)


def _levels(
    problem: BlockProblem, tap: NoisedTap, tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor, int | None, float]:
    """Levels (J,), what modulates each draw (J, D), the label, and the largest distance from the row space."""
    rows = torch.cat([tensors[name] for name in tap.modulation.weights])
    interval = problem.by_name["level"].bounds or (0.0, 0.0)
    curve = tap.modulation.curve
    if tap.labels is None:
        found, c, outside = levels_on(LevelCurve(curve, interval), rows, problem.draws)
        return found, c, None, float(outside.max())
    basis = torch.linalg.svd(rows, full_matrices=False)[2][: problem.draws]
    on_grid = curve(torch.linspace(*interval, _COARSE, dtype=torch.float64))  # (G, D)
    distances = []
    for shift in tap.labels.double():
        c = on_grid + shift
        c = c / c.norm(dim=1, keepdim=True)
        distances.append((c - (c @ basis.T) @ basis).norm(dim=1).quantile(_NEAR))
    label = int(torch.stack(distances).argmin())
    shift = tap.labels[label].double()
    shifted = LevelCurve(lambda level: curve(level) + shift, interval)
    found, c, outside = levels_on(shifted, rows, problem.draws)
    return found, c, label, float(outside.max())


def _noised(tap: NoisedTap, gradient: Tensor, log_sigma: Tensor, c: Tensor) -> tuple[Tensor, float] | None:
    """Parts (J, T, p) of z, and the largest relative residual of a token; none where they are not unique."""
    draws, tokens = len(log_sigma), len(tap.offset)
    width, part = tap.embedding.shape
    kinds = [rows / rows.norm().clamp_min(1e-300) for rows in gradient.double().split(width)]
    basis = torch.linalg.svd(torch.cat(kinds), full_matrices=False)[2][: tap.others + draws * tokens]
    embedding, offset = tap.embedding.double(), tap.offset.double()
    embedding, offset = embedding - embedding.mean(0), offset - offset.mean(1, keepdim=True)
    shift = tap.modulation.apply(torch.zeros(width, dtype=torch.float64), c)  # (J, D)
    scale = tap.modulation.apply(torch.ones(width, dtype=torch.float64), c) - shift
    columns = torch.cat(
        [scale[:, :, None] * embedding, shift[:, :, None]], dim=2
    )  # (J, D, p + 1): of u and of the deviation
    right = -scale[:, None] * offset  # (J, T, D)
    a = columns - basis.T @ (basis @ columns)
    b = right - (right @ basis.T) @ basis
    sizes = torch.linalg.svdvals(a)
    if not bool((sizes[:, -1] > _DEGENERATE * sizes[:, 0]).all()):
        return None
    found = torch.linalg.lstsq(a, b.mT).solution.mT  # (J, T, p + 1)
    left = (torch.einsum("jdp,jtp->jtd", a, found) - b).norm(dim=2)
    whole = (torch.einsum("jdp,jtp->jtd", columns, found) - right).norm(dim=2)
    parts = found[..., :part] / tap.factor(log_sigma)[:, None, None]
    return parts, float((left / whole.clamp_min(1e-300)).max())


def _target(
    problem: BlockProblem,
    tap: NoisedTap,
    tensors: dict[str, Tensor],
    known: Values,
    z: Tensor,
    log_sigma: Tensor,
    prior: GaussianPrior,
    whole: bool,
) -> tuple[Tensor, float]:
    """The target from the gradient of `tap.readout`, which all of its residual reaches; the relative residual."""
    n, draws, model = prior.mean.numel(), len(z), problem.model
    points = torch.cat([torch.zeros(1, n), torch.eye(n)]).double().view(n + 1, *prior.shape)
    at_zero, slope = _affine(problem, tap, known, z, log_sigma, points)
    size = float(at_zero.norm().clamp_min(1e-300))
    seen = tensors[tap.readout].flatten()
    # v / a + B y = A, in rows that are weighed against those of what is plausible: y of the prior, and z given y.
    left_side, right_side = -slope, at_zero
    if whole:
        right_side = at_zero - seen
    else:
        left_side = torch.cat(
            [left_side, seen[:, None] / seen.norm().clamp_min(1e-300)], dim=1
        )  # (P', N + 1)
    zero = model.clean(points[:1])[0]
    stretch = (model.clean(points[1:]) - zero).reshape(n, -1).T  # of the clean target by the target
    certainty = (-log_sigma).exp()
    upper = torch.linalg.cholesky(prior.precision).mT
    likely = torch.cat([upper, (certainty[:, None, None] * stretch).flatten(0, 1)])  # (N + J N', N)
    aimed = torch.cat([upper @ prior.mean, (certainty[:, None] * (z - zero).reshape(draws, -1)).flatten()])
    likely = torch.cat([likely, likely.new_zeros(len(likely), left_side.shape[1] - n)], dim=1)
    system = torch.cat([_TRUST / size * left_side, likely])
    right = torch.cat([_TRUST / size * right_side, aimed])[:, None]
    solution = torch.linalg.lstsq(system, right).solution[:, 0]
    off = float((left_side @ solution - right_side).norm()) / size
    return prior.within(solution[:n]).view(prior.shape), off


def _affine(
    problem: BlockProblem, tap: NoisedTap, known: Values, z: Tensor, log_sigma: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of `tap.readout` at target 0, (P',), and its change with each of the target's values, (P', N)."""
    model, sigma = problem.model, log_sigma.exp()
    inputs, _ = problem.sides(known | {tap.field: points[:1], "level": log_sigma})
    weight = model.part(problem.block).get_parameter(tap.readout)
    weight.requires_grad_(True)
    try:
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # fused attention takes no batch of cotangents
            prediction = model.predict(
                problem.block, z, sigma, model.context(problem.block, inputs)
            )  # (J, ...)
            weights = model.weight(sigma, problem.objective.weight) / len(z)
            cotangents = []
            for point in points:
                free = prediction.detach().requires_grad_()
                loss = (weights * model.loss(free, point.expand(len(z), *point.shape))).sum()
                cotangents.append(torch.autograd.grad(loss, free)[0])
            (found,) = torch.autograd.grad(
                prediction, weight, grad_outputs=torch.stack(cotangents), is_grads_batched=True
            )
    finally:
        weight.requires_grad_(False)
    flat = found.flatten(1)  # (N + 1, P')
    return flat[0], (flat[1:] - flat[0]).T
