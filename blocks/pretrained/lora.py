"""Low-rank adapters (Hu et al. 2022): W x + (alpha / rank) B A x, of which A and B train; in the format of peft."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ...errors import InputError


class LoRALinear(nn.Module):
    """A linear map that stays as it is, and a low-rank one beside it, zero at first.

    `A` (rank, d) and `B` (p, rank) are in float32 whatever the base's precision: they train.
    """

    # The submodules that train.
    TRAINED: ClassVar[tuple[str, ...]] = ("A", "B")

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        # Where only shapes are asked for, a stranger's rank takes no memory.
        shapes = torch.get_default_device().type == "meta"
        device = torch.device("meta") if shapes else base.weight.device
        self.A = nn.Linear(base.in_features, rank, bias=False, device=device, dtype=torch.float32)
        self.B = nn.Linear(rank, base.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.B.weight)
        self.scale = alpha / rank

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., p)"""
        out = self.base(x)
        added = self.B(self.A(x.to(self.A.weight.dtype))) * self.scale
        return cast(Tensor, out + added.to(out.dtype))

    def merged(self) -> Tensor:
        """The weight (p, d) of the one linear map that computes the same, in the base's precision."""
        added = self.scale * (self.B.weight.double() @ self.A.weight.double())
        return (self.base.weight.double() + added).to(self.base.weight.dtype)


def add_lora(layers: nn.ModuleList, targets: Sequence[str], rank: int, alpha: float) -> list[str]:
    """Put an adapter beside every linear map whose name ends in a target; gives their names within `layers`.

    `layers` are of one block. Raises: InputError for a target that names no linear map of them.
    """
    linear = {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    for target, names in chosen.items():
        if not target or not names:
            inner = sorted({name.partition(".")[2] for name in linear})
            raise InputError(
                "model.lora_targets", target, f"names no linear map; there are {', '.join(inner)}"
            )
    found = sorted({name for names in chosen.values() for name in names})
    for name in found:
        parent, _, own = name.rpartition(".")
        setattr(layers.get_submodule(parent), own, LoRALinear(linear[name], rank, alpha))
    return found


def effective(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by name, each adapter merged into the linear map that it adds to."""
    adapted = {name: each for name, each in module.named_modules() if isinstance(each, LoRALinear)}
    found = {}
    for name, tensor in module.state_dict().items():
        inside = next((each for each in adapted if name.startswith(f"{each}.")), None)
        if inside is None:
            found[name] = tensor
        elif name == f"{inside}.base.bias":
            found[f"{inside}.bias"] = tensor
    return found | {f"{name}.weight": each.merged() for name, each in adapted.items()}
