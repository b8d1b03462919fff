"""Memory of training by part, counted in storages and, independently, by the allocator.

Parameters, gradients and optimiser state are the distinct storages that they occupy; activations are those
that autograd keeps for the backward pass, parameters apart, at the moment when most are alive.
`allocator_peak` asks PyTorch's own profiler instead, which sees every allocation, temporaries included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def training_memory(
    parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, step: Callable[[], object]
) -> dict[str, int]:
    """Bytes of `parameters`, `gradients`, `optimizer`, `activations` and their `total`.

    `step` runs forward, backward and the optimiser, and leaves the gradients in place.
    """
    kept = list(parameters)
    with SavedForBackward(kept) as saved:
        step()
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
    parts = {
        "parameters": storage_bytes(kept),
        "gradients": storage_bytes(p.grad for p in kept if p.grad is not None),
        "optimizer": storage_bytes(state),
        "activations": saved.peak,
    }
    return parts | {"total": sum(parts.values())}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = (t.untyped_storage() for t in tensors)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class SavedForBackward:
    """Counts what autograd keeps for the backward pass, each storage once, while it is kept.

    with SavedForBackward(parameters) as saved:
        loss().backward()
    saved.peak      # bytes
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.peak = 0
        self._now = 0
        self._holders: dict[int, int] = {}
        self._ignored = {p.untyped_storage().data_ptr() for p in parameters}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def count(self, tensor: Tensor, by: int) -> None:
        """A tensor is kept once more (by=1) or once less (by=-1)."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._ignored:
            return
        before = self._holders.get(place, 0)
        self._holders[place] = before + by
        if before + by == 0 or before == 0:
            self._now += by * storage.nbytes()
        self.peak = max(self.peak, self._now)


class _Held:
    """A saved tensor; autograd drops it as the backward pass has used it."""

    def __init__(self, counter: SavedForBackward, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        counter.count(tensor, 1)

    def __del__(self) -> None:
        self.counter.count(self.tensor, -1)


def allocator_peak(step: Callable[[], object]) -> int:
    """Most bytes that `step` has allocated at once on the CPU, beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    results: Any = recorded.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
