"""Per-example clipping: the sum of clipped gradients, with its sensitivity as part of the type.

DP-SGD (Abadi et al. 2016, algorithm 1). Averaging an example's gradient over several noise draws before
clipping (augmentation multiplicity, De et al. 2022, section 3.2) costs no privacy: one example still moves
the sum by at most `max_grad_norm`.

Norms and sums come from book-keeping: see `book_keeping`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ..errors import PrivacyError, UnsupportedLayer
from .book_keeping import LAYERS, Use, check_supported, gram_ahead
from .graph import check_every_use_is_seen, deepest, saved_bytes

Clipping = Literal["flat", "per-layer", "automatic"]

# Automatic clipping divides by the norm and this much more (Bu et al. 2023, section 4.2: 0.01 in all of theirs).
_STABILITY = 0.01
# Rounding of a sum over all examples that go at once must not lift a clipped gradient past the bound.
_ROUNDINGS = 512


@dataclass(frozen=True)
class ClippedSum:
    """A sum over examples, each clipped in L2 norm to `sensitivity`, under add/remove adjacency.

    `examples` and `within`, the number of those whose gradient the clip left as it was, are private.
    """

    vector: Tensor  # (P,) float32 or float64, the parameters' gradients flattened in name order
    sensitivity: float
    examples: int = field(repr=False)
    within: int = field(repr=False, default=0)


class Part(Protocol):
    """The gradients of some parameters of one layer; see `book_keeping`."""

    def squared_norms(self) -> Tensor: ...
    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]: ...
    def without(self, dropped: Tensor) -> Part: ...


@dataclass
class _Pass:
    """One pass forward and back of n examples, from the first layer's call to the last gradient."""

    examples: int
    edges: list[GradientEdge] = field(default_factory=list)  # of the outputs, which themselves are not kept
    called: list[nn.Module] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    # By the number of the call, until its gradient comes: what the layer read, and its Gram matrices.
    inputs: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    waiting: Counter[nn.Module] = field(default_factory=Counter)  # calls whose gradient has not come yet
    uses: dict[nn.Module, list[Use]] = field(default_factory=dict)
    layers: list[_Layer] = field(default_factory=list)
    hooks: list[RemovableHandle] = field(default_factory=list)

    def call(self, layer: nn.Module, a: Tensor, output: Tensor) -> None:
        number = len(self.called)
        self.edges.append(get_gradient_edge(output))
        self.inputs[number] = a, gram_ahead(layer, a, self.examples)
        self.called.append(layer)
        self.rows.append(len(output))
        self.waiting[layer] += 1
        self.hooks.append(output.register_hook(lambda g: self.arrived(number, g)))

    def arrived(self, number: int, g: Tensor) -> None:
        """Norms are taken as soon as a layer's last gradient is there, while it still lies in cache."""
        layer = self.called[number]
        a, gram = self.inputs.pop(number)
        self.uses.setdefault(layer, []).append(Use(a, g, gram))
        self.waiting[layer] -= 1
        if self.waiting[layer] == 0:
            self.close(layer)

    def end(self) -> None:
        """Graph and hooks hold each other: without this their memory would wait for the garbage collector."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.edges.clear()

    def close(self, layer: nn.Module) -> None:
        parts: list[Part] = list(LAYERS[type(layer)](layer, self.uses.pop(layer), self.examples))
        squared = [part.squared_norms().double() for part in parts]
        self.layers.append(_Layer(layer, parts, torch.stack(squared).sum(dim=0)))


@dataclass
class _Layer:
    module: nn.Module
    parts: list[Part]
    squared_norms: Tensor  # (n,) float64


def clip_factors(
    squared_norms: Tensor,
    max_grad_norm: float,
    *,
    automatic: bool = False,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """min(1, C/||g||), or C/(||g|| + 0.01), for each example: (n,) -> (n,); zero where it is not finite.

    The bound is lowered by 512 epsilons of the `precision` of the sum, 6e-5 in float32, so that its rounding
    cannot lift a clipped norm past C.
    An example whose gradient is not finite contributes nothing: to refuse the batch because of it would tell
    that it was there.
    """
    bound = max_grad_norm * (1 - _ROUNDINGS * torch.finfo(precision).eps)
    norms = squared_norms.sqrt()
    if automatic:
        factors = bound / (norms + _STABILITY)
    else:
        factors = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    # What is not finite, and what the sum's precision could not hold exactly enough, is left out.
    usable = torch.isfinite(squared_norms) & (factors >= torch.finfo(precision).tiny)
    return torch.where(usable, factors, torch.zeros_like(factors))


def examples_within(
    memory_budget: int, block: nn.Module, losses: Callable[[slice], Tensor], examples: int = 2
) -> int:
    """How many examples a pass over `block` may take if it keeps no more than so many bytes; one at the least.

    Takes one pass forward with `examples`, of which only shapes matter: `losses` as in `PerExampleClipping.sum`.
    """
    with torch.enable_grad(), saved_bytes(block.parameters()) as saved:
        losses(slice(0, examples))
    return max(1, memory_budget * examples // max(1, saved.bytes))


class PerExampleClipping:
    """Clipped gradient sums of one block's parameters.

    with PerExampleClipping(block, max_grad_norm=1.0) as clipping:
        total = clipping.sum(lambda part: losses_of(part), examples=n, draws=4)

    `clipping`: "flat", the whole gradient to the bound; "per-layer", each of L layers to bound / sqrt(L);
    "automatic", to the bound whatever its size (Bu et al. 2023). In all three one example moves the sum by at
    most `max_grad_norm`.

    `examples_at_once`: a sum over more is made in parts of equal size; `examples_within` tells how many fit a
    budget of memory. `size` is P, the number of trainable parameters.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        max_grad_norm: float,
        clipping: Clipping = "flat",
        examples_at_once: int = 128,
    ) -> None:
        if not max_grad_norm > 0:
            raise PrivacyError(f"Expected max_grad_norm={max_grad_norm} > 0.")
        self.max_grad_norm = max_grad_norm
        self.clipping = clipping
        self.examples_at_once = examples_at_once
        self._layers = self._supported(block)
        named = sorted((name, p) for name, p in block.named_parameters() if p.requires_grad)
        self._names = {p: name for name, p in named}
        self.parameters = [p for _, p in named]
        ends = [0, *accumulate(p.numel() for p in self.parameters)]
        self.size = ends[-1]
        self._place = {p: slice(a, b) for p, (a, b) in zip(self.parameters, pairwise(ends), strict=True)}
        dtype = self.parameters[0].dtype if self.parameters else torch.float32
        self._precision = torch.promote_types(dtype, torch.float32)
        self._pass: _Pass | None = None
        self._called: list[nn.Module] = []
        self._deepest: list[int] = []
        self._hooks = [layer.register_forward_hook(self._record) for layer in self._layers]

    @staticmethod
    def _supported(block: nn.Module) -> list[nn.Module]:
        """The layers with trainable parameters; one whose per-example gradient cannot be had is refused."""
        layers: list[nn.Module] = []
        owner: dict[nn.Parameter, str] = {}
        for prefix, module in block.named_modules():
            trained = [(n, p) for n, p in module.named_parameters(recurse=False) if p.requires_grad]
            for name, parameter in trained:
                where = f"{prefix}.{name}".lstrip(".")
                check_supported(module, where)
                if parameter in owner:
                    raise UnsupportedLayer(
                        f"{where}: is the same parameter as {owner[parameter]}; untie them"
                    )
                owner[parameter] = where
            if trained:
                layers.append(module)
        return layers

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._pass is not None and output.requires_grad:
            self._pass.call(layer, inputs[0].detach(), output)

    def __enter__(self) -> PerExampleClipping:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def sum(self, losses: Callable[[slice], Tensor], *, examples: int, draws: int = 1) -> ClippedSum:
        """Sum of the examples' clipped gradients.

        `losses(part)` returns the losses of the examples in `part`, draws of one example side by side:
        (len(part) * draws,). No example, no gradient: the sum is then zero.
        """
        vector: Tensor | None = None
        within = start = 0
        while start < examples:
            left = examples - start
            n = -(-left // -(-left // self.examples_at_once))
            layers = self._layers_of(losses, slice(start, start + n), draws)
            factors, unclipped = self._factors(layers, n)
            within += unclipped
            vector = self._added(vector, layers, factors)
            start += n
        if vector is None:
            vector = torch.zeros(self.size, dtype=self._precision, device=self.parameters[0].device)
        return ClippedSum(vector, self.max_grad_norm, examples, within)

    def _added(self, vector: Tensor | None, layers: list[_Layer], factors: dict[nn.Module, Tensor]) -> Tensor:
        """The sum so far and that of `layers`, which are released one by one."""
        missing = set(self.parameters)
        first = vector is None
        if vector is None:
            vector = torch.empty(self.size, dtype=self._precision, device=self.parameters[0].device)
        vector = vector if first else vector.double()  # of many parts a float32 sum would lose the last ones
        while layers:
            layer = layers.pop()
            for part in layer.parts:
                for name, value in part.weighted_sum(factors[layer.module]).items():
                    parameter = getattr(layer.module, name)
                    place = vector[self._place[parameter]]
                    (place.copy_ if first else place.add_)(value.reshape(-1))
                    missing.discard(parameter)
        for parameter in missing if first else ():
            vector[self._place[parameter]] = 0.0
        return vector

    def _layers_of(self, losses: Callable[[slice], Tensor], part: slice, draws: int) -> list[_Layer]:
        """Every layer with the gradients of the examples in `part`, from one pass forward and one back."""
        n = part.stop - part.start
        self._pass = current = _Pass(n)
        try:
            with torch.enable_grad():
                loss = losses(part).sum() / draws
            for layer, rows in zip(current.called, current.rows, strict=True):
                if rows not in (n, n * draws):
                    name = type(layer).__name__
                    raise UnsupportedLayer(f"{name}: read {rows} rows, not {n} examples of {draws} draws")
            if current.called != self._called:
                check_every_use_is_seen(loss, self._names, current.called)
                self._called, self._deepest = current.called, deepest(loss, current.edges)
            if current.edges:
                torch.autograd.grad(loss, [current.edges[i] for i in self._deepest], allow_unused=True)
        finally:
            current.end()
            self._pass = None
        for layer in list(current.uses):  # some of whose outputs the loss does not need
            current.close(layer)
        return current.layers

    def _factors(self, layers: Sequence[_Layer], n: int) -> tuple[dict[nn.Module, Tensor], int]:
        """Each layer's clip factors (n,), and how many examples were not clipped."""
        norms = [layer.squared_norms for layer in layers]
        whole = torch.stack(norms).sum(dim=0) if norms else torch.zeros(n, dtype=torch.float64)
        dropped = ~torch.isfinite(whole)
        if dropped.any():
            for layer in layers:
                layer.parts = [part.without(dropped) for part in layer.parts]
        precision = self._precision
        if self.clipping == "per-layer":
            bound = self.max_grad_norm / len(self._layers) ** 0.5
            factors = {
                layer.module: clip_factors(layer.squared_norms, bound, precision=precision).masked_fill(
                    dropped, 0
                )
                for layer in layers
            }
        else:
            automatic = self.clipping == "automatic"
            flat = clip_factors(whole, self.max_grad_norm, automatic=automatic, precision=precision)
            factors = {layer.module: flat for layer in layers}
        return factors, int((whole <= self.max_grad_norm**2).sum())
