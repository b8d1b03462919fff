"""RMSNorm as Hugging Face's models compute it: in float32 whatever the input (Zhang and Sennrich 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class PretrainedRMSNorm(nn.RMSNorm):
    """y = w x / sqrt(mean(x^2) + eps), or (1 + w) in place of w where `offset` is set, as in Gemma.

    The order of the roundings is that of the models: Llama's rounds to the input's precision before it multiplies by
    the weight, Gemma's after it.
    """

    # Private clipping takes its per-example gradient for that of this kind of layer.
    per_example_like: ClassVar[type[nn.Module]] = nn.RMSNorm

    eps: float
    weight: nn.Parameter

    def __init__(self, size: int, eps: float, *, offset: bool, weight: nn.Parameter) -> None:
        super().__init__(size, eps=eps, device="meta")
        self.offset = offset
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (normalised * (1.0 + self.weight.to(wide.dtype))).type_as(x)
        return self.weight * normalised.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}"
