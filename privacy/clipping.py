"""Per-example clipping: the sum of clipped gradients, with its sensitivity as part of the type.

DP-SGD (Abadi et al. 2016, algorithm 1). Averaging an example's gradient over several noise draws before
clipping (augmentation multiplicity, De et al. 2022, section 3.2) costs no privacy: one example still moves
the sum by at most `max_grad_norm`.

Per-example gradients come from Opacus' hooks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from ..errors import PrivacyError, UnsupportedLayer

# A block's inputs come from frozen parts and need no gradient, which is all this warning says.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


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
        self._refuse_unsupported(block)
        self.parameters = [p for _, p in sorted(block.named_parameters()) if p.requires_grad]
        block.train()  # the hooks record nothing in evaluation mode
        self._hooks = GradSampleModule(block, loss_reduction="sum", strict=True)

    @staticmethod
    def _refuse_unsupported(block: nn.Module) -> None:
        """Opacus would silently fall back to functorch for these, or give no per-example gradient at all."""
        for prefix, module in block.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and type(module) not in GradSampleModule.GRAD_SAMPLERS:
                    where = f"{prefix}.{name}".lstrip(".")
                    raise UnsupportedLayer(
                        f"{where}: no per-example gradient for parameters of {type(module).__name__}; "
                        "freeze it or use a supported layer"
                    )

    def __enter__(self) -> PerExampleClipping:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.to_standard_module()

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
        total = torch.zeros(self.size, dtype=torch.float64, device=self.parameters[0].device)
        for start in range(0, examples, self.examples_at_once):
            n = min(self.examples_at_once, examples - start)
            with self._fresh_gradients():
                losses(slice(start, start + n)).sum().backward()
                per_example = [self._of_examples(p, n, draws) for p in self.parameters]  # each (n, p)
            squared_norms = torch.stack([g.double().square().sum(1) for g in per_example]).sum(0)  # (n,)
            factors = clip_factors(squared_norms, self.max_grad_norm)
            finite = torch.isfinite(squared_norms)[:, None]
            # Zero times infinity is not zero: what is not finite is taken out before the product.
            total += torch.cat([factors @ torch.where(finite, g, 0.0).double() for g in per_example])
        return ClippedSum(total, self.max_grad_norm, examples)

    @staticmethod
    def _of_examples(parameter: nn.Parameter, n: int, draws: int) -> Tensor:
        """The parameter's gradient of each example, averaged over its draws: (n, p)."""
        samples: Tensor = parameter.grad_sample.view(n, draws, -1)  # type: ignore[attr-defined]
        return samples.mean(dim=1)

    @contextmanager
    def _fresh_gradients(self) -> Iterator[None]:
        try:
            yield
        finally:
            for p in self.parameters:
                p.grad = p.grad_sample = None  # type: ignore[attr-defined]
