"""The number of examples in a private pass, and the test that the machine meets the proof's assumptions.

Nothing here reads the company's data: the size follows from the plan, the policy's memory bound and an example's
shapes, and the machine is tested with random weights and examples.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..blocks import BlockObjective, Denoiser
from ..blocks.examples import Examples
from ..privacy.clipping import PerExampleClipping, examples_within, pass_size
from ..privacy.invariance import check_batch_invariance
from ..privacy.randomness import Randomness
from ..privacy.source import CryptographicSource
from ..settings import DataKind, Plan
from .policy import Policy

_checked: dict[tuple[object, ...], int] = {}
_checking = threading.Lock()


def examples_at_once(model: Denoiser, block: int, plan: Plan, policy: Policy) -> int:
    """The size of every pass that trains this block, found and checked once for each process and kind of pass.

    Raises:
        PrivacyError: an example's gradient depends on the rest of its batch (see `privacy.invariance`).
    """
    t = plan.training
    # All blocks have equal shapes; with prefix features a block also runs those before it.
    reads = block if plan.model.features == "prefix" else 0
    key = (
        plan.model, plan.noise.weight, t.interface, t.noise_draws, t.records_per_group, t.expected_batch_size,
        plan.clipping,
        reads, policy.data, policy.memory_mb, str(model.device), torch.get_num_threads(),
    )  # fmt: skip
    with _checking:
        if key not in _checked:
            _checked[key] = _found(model, block, plan, policy)
        return _checked[key]


def _found(model: Denoiser, block: int, plan: Plan, policy: Policy) -> int:
    active, draws = model.freeze_all_but(block, plan.training.interface), plan.training.noise_draws
    source = CryptographicSource(Randomness.from_entropy())
    with random_weights(model, source):
        few = fixed_losses(model, block, plan, policy.data, 2, source)
        fit = examples_within(policy.memory_mb << 20, active, few)
        size = pass_size(plan.training.expected_batch_size, fit)
        losses = fixed_losses(model, block, plan, policy.data, 2 * size, source)
        with PerExampleClipping(
            active, max_grad_norm=plan.max_grad_norm, clipping=plan.clipping, examples_at_once=size
        ) as clipping:
            records = plan.training.records_per_group
            check_batch_invariance(clipping, losses, draws=draws, records=records)
    return size


def fixed_losses(
    model: Denoiser, block: int, plan: Plan, kind: DataKind, count: int, source: CryptographicSource
) -> Callable[[Tensor], Tensor]:
    """The losses of `count` random examples, or groups of as many records as a release shows, by their places, with
    noise that stays the same from call to call."""
    draws, records = plan.training.noise_draws, plan.training.records_per_group
    examples = random_examples(kind, count * records, source)
    if (pad := getattr(plan.model, "pad", None)) is not None:
        examples = _filled_up(examples, pad, source)
    examples = examples.to(model.device)
    repeated = examples.targets.repeat_interleave(draws, dim=0)
    draw = model.draw(block, repeated, source).to(model.device)
    objective = BlockObjective(weight=plan.noise.weight)

    def losses(places: Tensor) -> Tensor:
        of = (places[:, None] * records + torch.arange(records)).flatten()
        rows = (of[:, None] * draws + torch.arange(draws)).flatten().to(model.device)
        context = model.context(block, examples.inputs[of.to(model.device)])
        return objective.at(model, block, context, repeated[rows], draw[rows])

    return losses


def random_examples(kind: DataKind, count: int, source: CryptographicSource) -> Examples:
    """Random examples of this kind."""

    def values(shape: tuple[int, ...], classes: int | None) -> Tensor:
        return source.normal(count, *shape) if classes is None else source.integers(classes, count, *shape)

    inputs = values(kind.inputs, kind.input_classes)
    for column, codes in enumerate(kind.categories, start=-len(kind.categories)):
        inputs[:, column] = source.integers(codes, count)
    return Examples(inputs, values(kind.targets, kind.target_classes))


def _filled_up(texts: Examples, pad: int, source: CryptographicSource) -> Examples:
    """As texts of random lengths, the shortest without any token: each has a mask of its own."""
    n, longest = texts.inputs.shape
    lengths = source.integers(longest + 1, n, 1)
    short = torch.arange(longest)[None] >= lengths
    return Examples(texts.inputs.masked_fill(short, pad), texts.targets)


@contextmanager
def random_weights(model: Denoiser, source: CryptographicSource) -> Iterator[None]:
    """Replaces the weights by random ones meanwhile: the model's own may be chosen to hide how kernels behave."""
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        with torch.no_grad():
            for p in model.parameters():
                drawn = source.normal(*p.shape).to(p)
                p.copy_(drawn / max(1, p.shape[-1]) ** 0.5 if p.dim() > 1 else drawn)
        yield
    finally:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
