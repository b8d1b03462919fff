"""Per-example clipping: the sum of clipped gradients, with its sensitivity as part of the type.

DP-SGD (Abadi et al. 2016, algorithm 1). Averaging an example's gradient over several noise draws before
clipping (augmentation multiplicity, De et al. 2022, section 3.2) costs no privacy: one example still moves
the sum by at most `max_grad_norm`.

Norms and sums come from book-keeping: see `book_keeping`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import PrivacyError, UnsupportedLayer
from .book_keeping import LAYERS, joined

Use = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ClippedSum:
    """A sum over examples, each clipped in L2 norm to `sensitivity`, under add/remove adjacency."""

    vector: Tensor  # (P,) float64, the parameters' gradients flattened in name order
    sensitivity: float
    examples: int


def clip_factors(squared_norms: Tensor, max_grad_norm: float) -> Tensor:
    """min(1, C/||g||) for each example, (N,) -> (N,); zero where the norm is not finite.

    The bound is lowered by a relative 1e-6, so that rounding in the sum cannot lift a clipped norm past C.
    An example whose gradient is not finite contributes nothing: to refuse the batch because of it would tell
    that it was there.
    """
    bound = max_grad_norm * (1 - 1e-6)
    norms = squared_norms.sqrt()
    factors = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    return torch.where(torch.isfinite(squared_norms), factors, torch.zeros_like(factors))


class PerExampleClipping:
    """Clipped gradient sums of one block's parameters.

    with PerExampleClipping(block, max_grad_norm=1.0) as clipping:
        total = clipping.sum(lambda part: losses_of(part), examples=n, draws=4)
    """

    def __init__(self, block: nn.Module, *, max_grad_norm: float, examples_at_once: int = 256) -> None:
        if not max_grad_norm > 0:
            raise PrivacyError(f"Expected max_grad_norm={max_grad_norm} > 0.")
        self.max_grad_norm = max_grad_norm
        self.examples_at_once = examples_at_once
        self._layers = self._supported(block)
        named = sorted(block.named_parameters())
        self.parameters = [p for _, p in named if p.requires_grad]
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []
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
                if type(module) not in LAYERS:
                    raise UnsupportedLayer(
                        f"{where}: no per-example gradient for parameters of {type(module).__name__}; "
                        "freeze it or use a supported layer"
                    )
                if parameter in owner:
                    raise UnsupportedLayer(
                        f"{where}: is the same parameter as {owner[parameter]}; untie them"
                    )
                owner[parameter] = where
            if trained:
                layers.append(module)
        return layers

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls.append((layer, inputs[0].detach(), output))

    def __enter__(self) -> PerExampleClipping:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._calls.clear()

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters)

    def sum(self, losses: Callable[[slice], Tensor], *, examples: int, draws: int = 1) -> ClippedSum:
        """Sum of the examples' clipped gradients.

        `losses(part)` returns the losses of the examples in `part`, draws of one example side by side:
        (len(part) * draws,). No example, no gradient: the sum is then zero. Norms and sum are float64, in
        which no float32 gradient's norm under- or overflows.
        """
        total = {p: torch.zeros_like(p, dtype=torch.float64) for p in self.parameters}
        for start in range(0, examples, self.examples_at_once):
            n = min(self.examples_at_once, examples - start)
            for layer, (a, g) in self._uses(losses, slice(start, start + n), draws):
                for name, part in LAYERS[type(layer)].weighted_sum(layer, a, g).items():
                    total[getattr(layer, name)] += part
        vector = torch.cat([total[p].reshape(-1) for p in self.parameters])
        return ClippedSum(vector, self.max_grad_norm, examples)

    def _uses(
        self, losses: Callable[[slice], Tensor], part: slice, draws: int
    ) -> list[tuple[nn.Module, Use]]:
        """Every layer with what it read and its output gradient, already scaled by the clip factors."""
        n = part.stop - part.start
        try:
            with torch.enable_grad():
                loss = losses(part).sum() / draws
                outputs = [output for _, _, output in self._calls]
                gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
            uses: dict[nn.Module, list[Use]] = {}
            for (layer, a, output), g in zip(self._calls, gradients, strict=True):
                if len(output) not in (n, n * draws):
                    raise UnsupportedLayer(
                        f"{type(layer).__name__}: read {len(output)} rows, not {n} examples of {draws} draws"
                    )
                if g is not None:
                    uses.setdefault(layer, []).append((a, g))
        finally:
            self._calls.clear()
        ready = [(layer, joined(calls, n)) for layer, calls in uses.items()]
        squared_norms = torch.zeros(n, dtype=torch.float64, device=self.parameters[0].device)
        for layer, (a, g) in ready:
            squared_norms += LAYERS[type(layer)].squared_norms(layer, a, g)
        factors = clip_factors(squared_norms, self.max_grad_norm)
        finite = torch.isfinite(squared_norms)
        if not finite.all():
            # Zero times infinity is not zero: what is not finite is taken out before the product.
            ready = [(layer, (_only(finite, a), _only(finite, g))) for layer, (a, g) in ready]
        return [(layer, (a, g * factors[:, None, None])) for layer, (a, g) in ready]


def _only(rows: Tensor, values: Tensor) -> Tensor:
    """Zero in every row but those named: rows (n,), values (n, ...)."""
    return torch.where(rows.view(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values))
