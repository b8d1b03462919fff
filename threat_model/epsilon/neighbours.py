"""A step's clipped sum on neighbouring batches: with its last example, without it, and with that one alone.

Examples come in random order, so the last is any one. Its loss is also scaled, up to where its gradient overflows
and to where it is no number: a bound on what one example changes must hold for every example. All others keep their
places and their diffusion noise, which is played again from tape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...privacy.clipping import ClippedSum, PerExampleClipping
from .tape import Tape

Losses = Callable[[Tensor], Tensor]
_LARGE = 1e6  # times a loss, whose gradient is then above every clip
_OUT_OF_RANGE = (1e30, float("nan"))  # where squares of float32 overflow, and no number


@dataclass(frozen=True)
class Neighbours:
    """In units of the clip. `moved`: how far the example moves the sum, by its kind. `disturbed`: how far that is
    from what it contributes when nobody else's gradient counts, so how far it changes the contributions of others.
    `repeated`: how far the same step is from itself. `random_operations`: of torch's own generators.
    """

    moved: dict[str, float]
    disturbed: dict[str, float]
    repeated: float
    random_operations: tuple[str, ...]


def compare(
    sum_of: Callable[..., ClippedSum],
    clipping: PerExampleClipping,
    losses: Losses,
    found: ClippedSum,
    examples: int,
    draws: int,
    records: int,
    tape: Tape,
) -> Neighbours:
    """The step of `found` and its neighbours, by the function `sum_of` that made it; where the unit of privacy is a
    group of records, each example here is one.

    The example as it is: in the whole batch. In all other cases the batch is as much of its end as fits in a pass.
    """
    clip = found.sensitivity

    def total(
        count: int, missing: int = 0, *, scale: float = 1.0, others: float = 1.0, duplicate: bool = False
    ) -> Tensor:
        """Of the last `count` examples but for the last `missing`."""
        first, last = examples - count, examples - 1

        def changed(places: Tensor) -> Tensor:
            places = places + first
            values = losses(places.masked_fill(places == last, first) if duplicate else places)
            # The loss of an example that is left out must not count even where it is not finite.
            weights = torch.where(places == last, scale, others).repeat_interleave(records * draws)
            return values * weights.to(values)

        tape.rewind()
        summed = sum_of(clipping, changed, examples=count - missing, draws=draws, records=records)
        return summed.vector.clone()

    def apart(a: Tensor, b: Tensor | float) -> float:
        norm = float((a - b).norm()) / clip
        return norm if norm == norm else float("inf")

    few = min(examples, clipping.examples_at_once)
    without = total(examples, 1)
    own, kind = found.vector - without, f"loss times {_LARGE:g}"
    moved = {"as it is": apart(own, 0.0)}
    disturbed = {"as it is": apart(own, total(examples, others=0.0))}
    if few < examples:
        without = total(few, 1)
    own = total(few, scale=_LARGE) - without
    moved[kind], disturbed[kind] = apart(own, 0.0), apart(own, total(few, scale=_LARGE, others=0.0))
    for scale in _OUT_OF_RANGE:
        moved[f"loss times {scale:g}"] = apart(total(few, scale=scale), without)
    moved["alone in its batch"] = apart(total(1, scale=_LARGE), 0.0)  # it is also the first then
    if few > 1:
        moved["a duplicate"] = apart(total(few, duplicate=True) - without, 0.0)
    with _RandomOperations() as asked:
        again = total(examples)
    return Neighbours(moved, disturbed, apart(again, found.vector), tuple(sorted(asked.names)))


class _RandomOperations(TorchDispatchMode):
    """Names of operations in this thread that drew from a generator of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        # Attention has the tag too, for its dropout: it counts only if it draws.
        own = any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values()))
        before = _states()
        result = func(*args, **kwargs)
        if own or not all(map(torch.equal, before, _states())):
            self.names.add(str(func))
        return result


def _states() -> list[Tensor]:
    """Of torch's default generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
