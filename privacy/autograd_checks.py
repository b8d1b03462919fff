"""Questions to a loss's autograd graph: is every use of a parameter recorded, and how much memory does it keep?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..errors import UnsupportedLayer

# Nodes that are only another form of a parameter: a use of theirs is a use of the parameter.
_FORMS = ("TBackward0", "ToCopyBackward0", "TransposeBackward0", "ViewBackward0", "PermuteBackward0")


def check_every_use_is_seen(
    loss: Tensor, names: Mapping[nn.Parameter, str], called: Sequence[nn.Module]
) -> None:
    """Check that the loss uses no parameter outside the calls of its layer (`called` has a layer once a call).

    A weight that a model uses directly, as in `F.linear(x, layer.weight)`, would get no gradient from that use: it
    would train wrongly without an error.

    Raises:
        UnsupportedLayer: names the parameter.
    """
    seen = Counter(p for layer in called for p in layer.parameters(recurse=False))
    for parameter, uses in _uses(loss, names).items():
        if uses > seen[parameter]:
            raise UnsupportedLayer(
                f"{names[parameter]}: is used {uses - seen[parameter]} times past its own layer, where there is no "
                "per-example gradient; call the layer instead"
            )


def _uses(loss: Tensor, names: Mapping[nn.Parameter, str]) -> dict[nn.Parameter, int]:
    """How many operations of the graph read each of the named parameters."""
    readers: defaultdict[Any, list[Any]] = defaultdict(list)
    leaves: dict[Any, nn.Parameter] = {}
    waiting, seen = [loss.grad_fn], {loss.grad_fn}
    while waiting:
        node = waiting.pop()
        for before, _ in getattr(node, "next_functions", ()):
            if before is None:
                continue
            readers[before].append(node)
            variable = getattr(before, "variable", None)
            if isinstance(variable, nn.Parameter) and variable in names:
                leaves[before] = variable
            if before not in seen:
                seen.add(before)
                waiting.append(before)

    def count(node: Any) -> int:
        return sum(count(r) if r.name() in _FORMS else 1 for r in readers[node])

    return {parameter: count(leaf) for leaf, parameter in leaves.items()}


def deepest(loss: Tensor, edges: Sequence[GradientEdge]) -> list[int]:
    """Indices of the edges below which, away from the loss, no other edge lies.

    A backward pass that is asked for their gradients alone passes all the others, and keeps none of those.
    """
    asked = {edge.node for edge in edges}
    holds: dict[Any, bool] = {}  # whether one of the asked lies below the node
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting[-1]
        below = [n for n, _ in getattr(node, "next_functions", ()) if n is not None]
        unknown = [n for n in below if n not in holds]
        if unknown:
            waiting.extend(unknown)
            continue
        holds[waiting.pop()] = any(n in asked or holds[n] for n in below)
    return [i for i, edge in enumerate(edges) if not holds.get(edge.node, False)]


@dataclass
class Saved:
    bytes: int = 0


@contextmanager
def saved_bytes(apart_from: Iterable[Tensor]) -> Iterator[Saved]:
    """Counts the bytes that autograd keeps for the backward pass, shared memory once, without `apart_from`."""
    saved, known = Saved(), set()
    apart = {tensor.untyped_storage().data_ptr() for tensor in apart_from}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place = (storage.data_ptr(), tensor.storage_offset())
        if storage.data_ptr() not in apart and place not in known:
            known.add(place)
            saved.bytes += min(
                tensor.nbytes, storage.nbytes()
            )  # of a batch, its part; of a broadcast, its source
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
