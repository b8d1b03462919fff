"""Diagnosis of each block: does it improve the chain, does it use its input, or does it only copy z?

A chain's quality does not show blocks that have learnt to copy their noisy target (see `categorical_denoiser`). So
each block is measured, in the family's metric, in the chain, without z, and with the inputs of other examples; and
how often its prediction follows a z that was made from a wrong target. Its loss and gradient norm are measured over
its noise interval (arXiv 2506.14202, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .denoiser import Denoiser, Draw
from .noise import Seeded

BINS = 6
_BATCHES, _BATCH_SIZE = 4, 32


@dataclass(frozen=True)
class NoiseBin:
    """Levels in [low, high]: mean unweighted loss, and mean gradient norm over small batches."""

    low: float
    high: float
    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class BlockDiagnosis:
    """One block. `in_chain` is in the family's metric; the others are measured on single examples at `level`.

    by_example        whether these are in the metric too; else in the family's score
    in_chain          quality after this block in the sampling chain
    with_z            with z made from the example's own target
    without_z         with z of no information: what the block infers from its input only
    inputs_shuffled   with z from the own target and another example's input; none where the block has no input
    follows_wrong_z   with z from another example's target: share of predictions that are this wrong target, or,
                      for real-valued targets, are nearer to it than to the right one
    by_noise          bins of equal mass over the block's interval, from the highest noise down
    """

    block: int
    level: float
    by_example: bool
    in_chain: float
    with_z: float
    without_z: float
    inputs_shuffled: float | None
    follows_wrong_z: float
    by_noise: tuple[NoiseBin, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(
    model: Denoiser, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> list[BlockDiagnosis]:
    """One diagnosis a block; inputs (N, ...), targets (N, ...), N >= 2, on the model's device.

    The chain's qualities are those of `Denoiser.chain_quality` at the generator's seed.

    Raises:
        InputError: there are fewer than 2 examples.
    """
    if len(targets) < 2:
        raise InputError(
            "targets", len(targets), "expected at least 2 examples, to exchange inputs and targets"
        )
    seeded = torch.Generator().manual_seed(generator.initial_seed())
    chain = model.chain_quality(inputs, targets, seeded)
    other = _exchange(len(targets), generator).to(targets.device)
    return [
        _diagnosis(model, block, level, chain[block], inputs, targets, other, generator)
        for block, level in model.partition.midpoints()
    ]


@torch.no_grad()
def _diagnosis(
    model: Denoiser,
    block: int,
    level: float,
    in_chain: float,
    inputs: Tensor,
    targets: Tensor,
    other: Tensor,
    generator: torch.Generator,
) -> BlockDiagnosis:
    context = model.context(block, inputs)
    levels = torch.full((len(targets),), level, device=targets.device)
    draw = replace(model.draw(block, targets, Seeded(generator)).to(targets.device), level=levels)
    clean = model.clean(targets)
    z = model.corrupt(clean, draw)
    nothing = model.prior(clean.shape, level, generator).to(z.device)
    wrong = model.predict(block, model.corrupt(clean[other], draw), levels, context)

    def quality(prediction: Tensor) -> float:
        return float(model.score(prediction, targets).double().mean())

    reads = context.shape[1] > 0
    return BlockDiagnosis(
        block=block,
        level=level,
        by_example=model.metric_by_example,
        in_chain=in_chain,
        with_z=quality(model.predict(block, z, levels, context)),
        without_z=quality(model.predict(block, nothing, levels, context)),
        inputs_shuffled=quality(model.predict(block, z, levels, context[other])) if reads else None,
        follows_wrong_z=_followed(model, wrong, targets, targets[other]),
        by_noise=tuple(_by_noise(model, block, inputs, targets, generator)),
    )


def _exchange(n: int, generator: torch.Generator) -> Tensor:
    """Another example for each, (N,): a random cycle, since neighbours in a data set may be similar."""
    order = torch.randperm(n, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def _followed(model: Denoiser, prediction: Tensor, right: Tensor, wrong: Tensor) -> float:
    """Share of the predictions that follow z, among those for which z was wrong."""
    if right.is_floating_point():
        found = model.estimate(prediction)
        to_right, to_wrong = (
            (found - model.clean(targets)).flatten(1).norm(dim=1) for targets in (right, wrong)
        )
        return float((to_wrong < to_right).double().mean())
    differs = right != wrong
    if not differs.any():
        return 0.0
    return float((prediction.argmax(dim=-1) == wrong)[differs].double().mean())


def _by_noise(
    model: Denoiser, block: int, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> Iterator[NoiseBin]:
    edges = model.partition.levels(block, torch.linspace(1, 0, BINS + 1, dtype=torch.float64)).tolist()
    with _training(model, block) as parameters:
        for i in range(BINS):
            found = []
            for _ in range(_BATCHES):
                index = torch.randint(len(targets), (_BATCH_SIZE,), generator=generator).to(targets.device)
                u = 1 - (i + torch.rand(_BATCH_SIZE, generator=generator, dtype=torch.float64)) / BINS
                level = model.partition.levels(block, u).float()
                draw = replace(model.draw(block, targets[index], Seeded(generator)), level=level).to(
                    targets.device
                )
                found.append(
                    _loss_and_gradient(model, block, inputs[index], targets[index], draw, parameters)
                )
            loss, norm = (sum(values) / _BATCHES for values in zip(*found, strict=True))
            yield NoiseBin(edges[i + 1], edges[i], loss, norm)


def _loss_and_gradient(
    model: Denoiser, block: int, inputs: Tensor, targets: Tensor, draw: Draw, parameters: list[Tensor]
) -> tuple[float, float]:
    with torch.enable_grad():
        context = model.context(block, inputs)
        z = model.corrupt(model.clean(targets), draw)
        loss = model.block_loss(block, z, draw.level, context, targets).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = sum(float(g.double().square().sum()) for g in gradients if g is not None)
    return float(loss), squares**0.5


@contextmanager
def _training(model: Denoiser, block: int) -> Iterator[list[Tensor]]:
    """What trains of the block, which require gradients meanwhile; all others do not."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield [p for p in model.freeze_all_but(block).parameters() if p.requires_grad]
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)
