"""Whether this machine computes an example's gradient to the same bits in every batch and at every place in it.

The clip bounds what one example adds. If adding it also changed a last bit of another example's activations, weights
made for this could reverse that example's gradient, a change of up to two clips (see `grouping`, measure 1). How
kernels behave depends on shapes, threads and the device, not on values: so the machine is tested once, with random
weights and examples.

What a random test may miss is excluded by shapes. Elementwise kernels take vectors of values, and the remainder at
the end of a tensor one by one, in code that rounds some values differently: one argument of SiLU in thirty. So no
tensor of a pass may leave a remainder; with a multiple of 32 examples none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import PrivacyError
from .clipping import PerExampleClipping


def check_batch_invariance(
    clipping: PerExampleClipping, losses: Callable[[Tensor], Tensor], *, draws: int = 1, records: int = 1
) -> None:
    """Refuse a machine on which an example's gradient depends on its place, the rest of its batch, or the time.

    `losses` as in `PerExampleClipping.sum`, of 2 `clipping.examples_at_once` examples, each with noise of its own
    that stays the same from call to call.

    Raises:
        PrivacyError: says what the gradient depends on.
    """
    n = clipping.examples_at_once
    first = torch.arange(n)
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        raise PrivacyError(
            f"torch.get_float32_matmul_precision()={precision!r}: expected 'highest', else sums of clipped "
            "gradients are rounded by more than the clip allows for"
        )
    with _NoRemainders(n):
        clipping.gradients(losses, first, draws=draws, records=records)
    expected = clipping.gradients(losses, first, draws=draws, records=records)
    for what, order in _orders(n):
        found = clipping.gradients(losses, order, draws=draws, records=records)
        known = (order < n).nonzero()[:, 0]  # places of the examples that `expected` has
        for name, values in found.items():
            if not torch.equal(values[known], expected[name][order[known]]):
                device, threads = values.device.type, torch.get_num_threads()
                raise PrivacyError(
                    f"{name}: an example's gradient depends on {what} on this machine (device={device}, "
                    f"threads={threads}), so clipping cannot bound what one example changes and private training is "
                    "refused; widths (hidden_size, values of a patch) that are multiples of 16, or the CPU, may help"
                )


def _orders(n: int) -> Iterator[tuple[str, Tensor]]:
    """What each pass tests, and the examples at its places; those from n on are not in the reference pass."""
    first = torch.arange(n)
    yield "when it is computed", first
    yield "its place in a batch", torch.zeros_like(first)  # one example in all places
    yield "its place in a batch", first.roll(1)
    yield "its place in a batch", first.flip(0)
    yield "who shares its batch", torch.where(first % 2 == 0, first, first + n)
    # As a batch is filled up: one example repeated.
    yield "how full its batch is", torch.where(first <= n // 3, first, torch.zeros_like(first))


# Values that kernels take at a time: two vectors of 16 (AVX-512), or of 8 (AVX2).
_AT_A_TIME, _FEW = 32, 16


class _NoRemainders(TorchDispatchMode):
    """Refuses an elementwise operation, forward or backward, on the values of n examples that leaves a remainder."""

    def __init__(self, examples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._examples = examples

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and isinstance(out, Tensor) and out.is_floating_point():
            count = out.numel()
            of_all = count % self._examples == 0  # else a table that all examples share
            if out.device.type == "cpu" and of_all and count % _AT_A_TIME and count > _FEW:
                raise PrivacyError(
                    f"{func}: {count} values are not a multiple of {_AT_A_TIME}, so the last ones may be rounded "
                    "differently and an example's gradient depend on its place; private training needs passes of 32 "
                    "examples, for which the policy's memory_mb is too small, or widths that are multiples of 32"
                )
        return out
