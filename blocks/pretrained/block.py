"""A block of a pretrained model: its layers, what of them trains, and what denoising adds.

What denoising adds is zero at first, so a block begins by computing what the original layers computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..groups import GroupedModule
from ..transformer import NoiseEmbedding
from .lora import LoRALinear, add_lora
from .norms import PretrainedRMSNorm
from .settings import PretrainedSettings

_NORMS = (nn.LayerNorm, nn.RMSNorm, PretrainedRMSNorm)
_WHOLE = (nn.Linear, *_NORMS)  # a layer's parameters of other kinds stay as they are


class PretrainedBlock(GroupedModule):
    """Consecutive layers, modules of the architecture, with the block's own interface.

    `interface`: what a family reads its predictions with; where a run denoises, also `noise` and `noisy`, the maps of
    the noise level and of the noised target. `modulation` shifts and scales the noisy tokens before each layer: adaLN
    (Peebles & Xie 2023) at the layer's input, where every architecture has one.
    """

    def __init__(
        self, layers: nn.ModuleList, interface: nn.ModuleDict, settings: PretrainedSettings, target_size: int
    ) -> None:
        super().__init__()
        size = settings.hidden_size
        if settings.trains != "lora":
            layers.float()  # what trains is kept in single precision
        if settings.trains == "lora":
            targets = settings.lora_targets or _queries_and_values(layers)
            add_lora(layers, targets, settings.lora_rank, settings.lora_alpha)
        self.layers = layers
        self.interface = interface
        self.personal = nn.ModuleDict()  # see `personal`, as for these
        self.personal_hooks: list[RemovableHandle] = []
        self.modulation = nn.ModuleList()
        if settings.denoises:
            interface["noise"] = NoiseEmbedding(size)
            interface["noisy"] = nn.Linear(target_size, size, bias=False)
            self.modulation.extend(nn.Linear(size, 2 * size) for _ in layers)
            for added in (interface["noisy"], *self.modulation):
                for parameter in added.parameters():
                    nn.init.zeros_(parameter)
        trained = _trained(layers, settings.trains)
        self._pinned = frozenset(layers.state_dict()) - trained

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations in the layers."""
        return next(self.layers.parameters()).dtype

    def interface_modules(self) -> Sequence[nn.Module]:
        return (self.interface,)

    def personal_modules(self) -> Sequence[nn.Module]:
        return (self.personal,)

    def lift(self) -> None:
        """Take a company's own parts off again."""
        self.personal.clear()
        while self.personal_hooks:
            self.personal_hooks.pop().remove()

    def pinned_tensors(self) -> Sequence[Tensor]:
        """All tensors of the layers but those that train."""
        own = self.layers.state_dict(keep_vars=True)
        return [tensor for name, tensor in own.items() if name in self._pinned]


def wide(x: Tensor) -> Tensor:
    """In single precision at the least, as what trains is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def targets_of(layers: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear | LoRALinear]:
    """The linear maps, adapted or not, whose names end in a target (none: attention's queries and values)."""
    names = targets or _queries_and_values(layers)
    return {
        name: module
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | LoRALinear)
        and any(f".{name}".endswith(f".{each}") for each in names)
    }


def _queries_and_values(layers: nn.Module) -> list[str]:
    """Names of the maps of attention's queries and values, by those of transformers' architectures."""
    known = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "c_attn", "Wqkv")
    there = {
        name.rpartition(".")[2]
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | LoRALinear)
    }
    return [name for name in known if name in there]


def _trained(layers: nn.ModuleList, trains: str) -> frozenset[str]:
    """Names of the tensors of these layers that rounds change."""
    found = set[str]()
    for prefix, module in layers.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if trains == "lora":
                wanted = prefix.rpartition(".")[2] in LoRALinear.TRAINED and _within_lora(layers, prefix)
            elif trains == "bias":
                wanted = isinstance(module, _NORMS) or (name == "bias" and isinstance(module, nn.Linear))
            else:
                wanted = isinstance(module, _WHOLE)
            if wanted:
                found.add(f"{prefix}.{name}")
    return frozenset(found)


def _within_lora(layers: nn.ModuleList, prefix: str) -> bool:
    return isinstance(layers.get_submodule(prefix.rpartition(".")[0]), LoRALinear)
