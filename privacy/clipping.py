"""Per-example clipping: the sum of clipped gradients, with its sensitivity as part of the type.

DP-SGD (Abadi et al. 2016, algorithm 1). Averaging an example's gradient over several noise draws before
clipping (augmentation multiplicity, De et al. 2022, section 3.2) costs no privacy: one example still moves
the sum by at most `max_grad_norm`.

Norms and sums are computed by book-keeping (`book_keeping`). `grouping` shows that neighbouring sums differ by at
most one example's clip, rounding included, if the caller puts the examples in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import PrivacyError, UnsupportedLayer
from .autograd_checks import check_every_use_is_seen, deepest, saved_bytes
from .book_keeping import check_supported
from .grouping import rounding_norms, slack
from .passes import LayerGradients, Pass

Clipping = Literal["flat", "per-layer", "automatic"]

# Automatic clipping divides by the norm plus this (Bu et al. 2023, section 4.2: 0.01 in all their experiments).
_STABILITY = 0.01
# Bound, in machine epsilons, on the rounding of an example's factor and products and of a float64 sum of a million.
_ROUNDINGS = 2048
_LARGEST_PASS = 128


@dataclass(frozen=True)
class ClippedSum:
    """A sum over examples, each clipped in L2 norm to `sensitivity`, under add/remove adjacency.

    `within` counts the examples whose gradient was not clipped; it and `examples` are private.
    """

    vector: Tensor = field(repr=False)  # (P,) float64, the parameters' gradients flattened in name order
    sensitivity: float
    examples: int = field(repr=False)
    within: int = field(repr=False, default=0)


def lowered(max_grad_norm: float, precision: torch.dtype = torch.float32) -> float:
    """`max_grad_norm` less the margin for rounding (see `grouping`): 0.8% in float32.

    `precision` is that of the pass.
    """
    return max_grad_norm * (1 - slack(precision) - _ROUNDINGS * torch.finfo(precision).eps)


def clip_factors(
    squared_norms: Tensor,
    max_grad_norm: float,
    *,
    automatic: bool = False,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """min(1, B/||g||), or B/(||g|| + 0.01), for each example: (n,) -> (n,); zero where it is not finite.

    B is `lowered(max_grad_norm)`. An example whose gradient is not finite contributes nothing: refusing the batch
    would reveal that it is there.
    """
    bound = lowered(max_grad_norm, precision)
    norms = squared_norms.sqrt()
    if automatic:
        factors = bound / (norms + _STABILITY)
    else:
        factors = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    # Left out: norms that are not finite, and factors that `precision` cannot hold exactly enough.
    usable = torch.isfinite(squared_norms) & (factors >= torch.finfo(precision).tiny)
    return torch.where(usable, factors, torch.zeros_like(factors))


def examples_within(
    memory_budget: int, block: nn.Module, losses: Callable[[Tensor], Tensor], examples: int = 2
) -> int:
    """The most examples for which a pass over `block` keeps at most `memory_budget` bytes for backward; may be 0.

    Beside the parameters of `block`. Measured by one forward pass of the first example, repeated `examples` times;
    only shapes matter. `losses` as in `PerExampleClipping.sum`.
    """
    with torch.enable_grad(), saved_bytes(block.parameters()) as saved:
        losses(torch.zeros(examples, dtype=torch.long))
    return memory_budget * examples // max(1, saved.bytes)


def pass_size(expected_batch_size: float, most: int = 1 << 16) -> int:
    """The number of examples in a pass: a multiple of 32 unless `most` is smaller. Depends on public numbers only.

    The fewest passes of at most 128 examples that hold 19 of 20 batches: each pass costs time in small models, each
    place that is only filled up in large ones.
    """
    b = max(expected_batch_size, 1.0)
    wanted = b + 1.7 * math.sqrt(b)
    passes = math.ceil(wanted / _LARGEST_PASS)
    size = 32 * math.ceil(wanted / passes / 32)
    if most < 32:
        return 1 << max(most, 1).bit_length() - 1
    return min(size, most // 32 * 32)


class PerExampleClipping:
    """Clipped gradient sums of one block's parameters.

    with PerExampleClipping(block, max_grad_norm=1.0) as clipping:
        total = clipping.sum(lambda part: losses_of(part), examples=n, draws=4)

    `clipping`: "flat", the whole gradient to the bound; "per-layer", each of L layers to bound / sqrt(L);
    "automatic", to the bound whatever its size (Bu et al. 2023). In all three one example moves the sum by at
    most `max_grad_norm`.

    `examples_at_once`: the size of every pass; the last one is filled up. Kernels round a row differently in a batch
    of another size, and weights can be made that amplify such a difference into another gradient. The size must not
    depend on the data; see `pass_size`. `size` is P, the number of trainable parameters.

    Raises:
        PrivacyError: max_grad_norm is not above 0.
        UnsupportedLayer: a trainable parameter has no per-example gradient; also raised by `sum` and `gradients`.
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
        self._block = block
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
        self._pass: Pass | None = None
        self._called: list[nn.Module] = []
        self._deepest: list[int] = []
        self._hooks = [layer.register_forward_hook(self._record) for layer in self._layers]

    @staticmethod
    def _supported(block: nn.Module) -> list[nn.Module]:
        """The layers with trainable parameters; UnsupportedLayer for one without per-example gradients."""
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

    def sum(
        self, losses: Callable[[Tensor], Tensor], *, examples: int, draws: int = 1, records: int = 1
    ) -> ClippedSum:
        """Sum of the clipped per-example gradients. Examples must be in random order (`Randomness.permutation`).

        `losses(places)` returns the losses of the examples at these places (n,), the draws of one example side by
        side: (n * draws,). Where an example is a group of which `records` are shown, its records stand side by side,
        each with its draws: (n * records * draws,); the group's gradient is their mean. To fill up the last pass it
        is called for some examples again. The sum of no examples is zero.
        """
        n = self.examples_at_once
        vector = torch.empty(self.size, dtype=torch.float64, device=self.parameters[0].device)
        within, fresh = 0, set(self.parameters)
        for start in range(0, examples, n):
            places = torch.arange(start, start + n)
            filling = places >= examples
            layers = self._layers_of(losses, places.masked_fill_(filling, start), draws, records)
            factors, unclipped = self._factors(layers, filling.to(vector.device))
            within += int(unclipped.sum())
            self._add(vector, layers, factors, fresh)
        for p in fresh:
            vector[self._place[p]] = 0.0
        return ClippedSum(vector, self.max_grad_norm, examples, within)

    def gradients(
        self, losses: Callable[[Tensor], Tensor], places: Tensor, *, draws: int = 1, records: int = 1
    ) -> dict[str, Tensor]:
        """All per-example tensors that `sum` uses of the examples at `places` (n,), by name: (n, ...) each."""
        names = {module: name for name, module in self._block.named_modules()}
        found: dict[str, Tensor] = {}
        for layer in self._layers_of(losses, places, draws, records):
            name = names[layer.module]
            found[f"{name}.squared_norm"] = layer.squared_norms
            for size, cost in layer.costs.items():
                found[f"{name}.cost-{size}"] = cost
            for i, values in enumerate(values for part in layer.parts for values in part.tensors()):
                found[f"{name}.{i}"] = values
        return found

    def _add(
        self,
        vector: Tensor,
        layers: list[LayerGradients],
        factors: dict[nn.Module, Tensor],
        fresh: set[nn.Parameter],
    ) -> None:
        """Add the clipped sums of `layers`, freeing them one by one; `fresh` parts of `vector` are zeroed first."""
        while layers:
            layer = layers.pop()
            named = layer.module.named_parameters(recurse=False)
            own = {name: p for name, p in named if p in self._place}
            sums = {name: vector[self._place[p]].view(p.shape) for name, p in own.items()}
            for name, p in own.items():
                if p in fresh:  # zeroed here, so that it is in cache when it is added to
                    sums[name].zero_()
                    fresh.discard(p)
            for part, group in zip(layer.parts, layer.groups, strict=True):
                part.add_weighted_sum(factors[layer.module], sums, group.size)

    def _layers_of(
        self, losses: Callable[[Tensor], Tensor], places: Tensor, draws: int, records: int
    ) -> list[LayerGradients]:
        """Every layer with the per-example gradients at these places, from one forward and one backward pass."""
        n = len(places)
        self._pass = current = Pass(n)
        try:
            with torch.enable_grad():
                loss = losses(places).sum() / (records * draws)
            for layer, rows in zip(current.called, current.rows, strict=True):
                if rows not in (n * records, n * records * draws):
                    name = type(layer).__name__
                    of = (
                        f"{n} examples of {draws} draws"
                        if records == 1
                        else f"{n} groups of {records} records"
                    )
                    raise UnsupportedLayer(f"{name}: its input has {rows} rows, expected {of}")
            if current.called != self._called:
                check_every_use_is_seen(loss, self._names, current.called)
                self._called, self._deepest = current.called, deepest(loss, current.edges)
            if current.edges:
                torch.autograd.grad(loss, [current.edges[i] for i in self._deepest], allow_unused=True)
        finally:
            current.end()
            self._pass = None
        for layer in list(current.uses):  # layers of which the loss does not use every output
            current.close(layer)
        return current.layers

    def _factors(
        self, layers: Sequence[LayerGradients], filling: Tensor
    ) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """Each layer's clip factors (n,), and which examples were not clipped; `filling` examples get factor 0."""
        norms = [layer.squared_norms for layer in layers]
        whole = (
            torch.stack(norms).sum(dim=0) if norms else filling.new_zeros(len(filling), dtype=torch.float64)
        )
        dropped = ~torch.isfinite(whole) | filling

        def factors(squared: Tensor, bound: float, of: Sequence[LayerGradients]) -> Tensor:
            rounding = rounding_norms((layer.costs for layer in of), self._precision)
            found = clip_factors(
                torch.maximum(squared, torch.as_tensor(rounding, device=squared.device) ** 2),
                bound,
                automatic=self.clipping == "automatic",
                precision=self._precision,
            )
            return found.masked_fill(dropped, 0)

        if self.clipping == "per-layer":
            bound = self.max_grad_norm / len(self._layers) ** 0.5
            each = {layer.module: factors(layer.squared_norms, bound, [layer]) for layer in layers}
        else:
            each = dict.fromkeys(
                (layer.module for layer in layers), factors(whole, self.max_grad_norm, layers)
            )
        return each, (whole <= self.max_grad_norm**2) & ~filling
