"""The number of examples in a private pass, and the test that the machine meets the proof's assumptions.

Nothing here reads the company's data: the size follows from the plan, the policy's memory bound and an example's
shapes, and the machine is tested with random weights and examples.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..blocks import BlockObjective, Denoiser
from ..blocks.examples import Examples
from ..errors import PolicyRefusal
from ..privacy.clipping import PerExampleClipping, examples_within, pass_size
from ..privacy.invariance import check_batch_invariance
from ..privacy.randomness import Randomness
from ..privacy.source import CryptographicSource
from ..settings import DataKind, Plan
from .policy import Policy

_DRAWN_AT_ONCE = 1 << 20
_LINE, _PLACES = 64, 256 * 64  # bytes
_checked: dict[tuple[object, ...], int] = {}
_checking = threading.Lock()


def examples_at_once(model: Denoiser, block: int, plan: Plan, policy: Policy) -> int:
    """The size of every pass that trains this block, found and checked once for each process and kind of pass.

    Raises:
        PolicyRefusal: "memory_mb", a pass of a single example keeps more than the company allows.
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
        # All weights are in memory anyway, also those of later blocks that a loss reads.
        fit = examples_within(policy.memory_mb << 20, model, few)
        if fit < 1:
            what = (
                f"one example with noise_draws={draws} keeps more than memory_mb={policy.memory_mb} in a pass"
            )
            raise PolicyRefusal("memory_mb", what)
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
    """Replaces the weights by random ones meanwhile: the model's own may be chosen to hide how kernels behave.

    A pretrained model's too: the plan's digest pins them, but a company may have the folder from whoever wrote the
    plan. What has no gradient shares its random values, a tensor each at another place of them, so a large model
    takes little memory more; and its own weights are put aside, not copied, so those mapped from files stay so.
    """
    own = {p: p.data for p in model.parameters()}
    shared = _SharedValues([p for p in own if not p.requires_grad], source)
    try:
        for p in own:
            p.data = _drawn(p, p.numel(), source).view(p.shape) if p.requires_grad else shared.of(p)
        yield
    finally:
        for p, values in own.items():
            p.data = values


class _SharedValues:
    """Random values for many parameters: as many as the largest has, of those alike in width, type and device."""

    def __init__(self, parameters: Sequence[Tensor], source: CryptographicSource) -> None:
        largest: dict[object, Tensor] = {}
        for p in parameters:
            largest[self._kind(p)] = max(largest.get(self._kind(p), p), p, key=Tensor.numel)
        self._values = {
            kind: _drawn(p, p.numel() + (_PLACES + _LINE) // p.element_size(), source)
            for kind, p in largest.items()
        }
        self._given = 0

    def of(self, p: Tensor) -> Tensor:
        values, self._given = self._values[self._kind(p)], self._given + 1
        # Begins where `p` does in a cache line: kernels may depend on that.
        first = (p.data_ptr() - values.data_ptr()) % _LINE + self._given * _LINE % _PLACES  # in bytes
        start = first // p.element_size()
        return values[start : start + p.numel()].view(p.shape)

    @staticmethod
    def _kind(p: Tensor) -> object:
        return _inputs(p), p.dtype, p.device


def _drawn(like: Tensor, count: int, source: CryptographicSource) -> Tensor:
    """(count,) random values of the scale of a linear map like this one; a few at a time are in double precision."""
    values = torch.empty(count, dtype=like.dtype, device=like.device)
    for part in values.split(_DRAWN_AT_ONCE):
        part.copy_(source.normal(len(part)))
    return values.div_(_inputs(like) ** 0.5)


def _inputs(p: Tensor) -> int:
    return max(1, p.shape[-1]) if p.dim() > 1 else 1
