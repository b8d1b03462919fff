"""What a block of a pretrained model reads, made by the blocks before it one at a time.

So a machine that trains one block never holds two: the features of its examples are computed once, kept, and used in
every round until a block before it changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .build import build_model
from .pretrained.denoiser import PretrainedDenoiser
from .pretrained.settings import PretrainedSettings
from .settings import NoiseSettings
from .state import State, merge

_AT_ONCE = 64


@torch.no_grad()
def streamed_context(
    settings: PretrainedSettings,
    inputs: Tensor,
    block: int,
    states: Mapping[int, State] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The context of `block` for these inputs (N, ...): (N, T, D + 1), on the CPU.

    `states`: of the blocks before it; those that are not given are as in the converted model.
    """
    made: Tensor | None = None
    for b in range(max(block, 1)):
        model = build_model(settings, NoiseSettings(), only=b)
        assert isinstance(model, PretrainedDenoiser)
        merge(model, (states or {}).get(b, {}))
        model.to(device).eval()
        parts = []
        for start in range(0, len(inputs), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            context = model.embed(0, inputs[rows].to(device)) if made is None else made[rows].to(device)
            parts.append((model.passed_on(b, context) if block else context).cpu())
        made = torch.cat(parts)
        del model
    assert made is not None
    return made
