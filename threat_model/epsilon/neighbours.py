"""A step's clipped sum on neighbouring batches: with its last example, and without it.

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
# As it is, above every clip, where squares of float32 overflow, where the gradient itself does, and no number.
SCALES = (1.0, 1e6, 1e30, float("inf"), float("nan"))


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
    tape: Tape,
) -> Neighbours:
    """The step of `found` and its neighbours, by the function `sum_of` that made it."""
    last, clip = examples - 1, found.sensitivity

    def total(
        count: int = examples, *, scale: float = 1.0, others: float = 1.0, duplicate: bool = False
    ) -> Tensor:
        def changed(places: Tensor) -> Tensor:
            values = losses(places.masked_fill(places == last, 0) if duplicate else places)
            weights = torch.where(places == last, scale, others).repeat_interleave(draws)
            # The loss of an example that is left out must not count even where it is not finite.
            return values * weights.to(values)

        tape.rewind()
        return sum_of(clipping, changed, examples=count, draws=draws).vector.clone()

    def apart(a: Tensor, b: Tensor) -> float:
        norm = float((a - b).norm()) / clip
        return norm if norm == norm else float("inf")

    without = total(last)
    moved, disturbed = {}, {}
    for scale in SCALES:
        kind = {1.0: "as it is"}.get(scale, f"loss times {scale:g}")
        own = total(scale=scale) - without
        moved[kind] = apart(own, torch.zeros_like(own))
        disturbed[kind] = apart(own, total(scale=scale, others=0.0))
    if examples > 1:
        own = total(duplicate=True) - without
        moved["a duplicate"] = apart(own, torch.zeros_like(own))
    with _RandomOperations() as asked:
        again = total()
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
