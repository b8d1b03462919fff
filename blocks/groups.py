"""The groups of a model's tensors: what is common, what a round trains, and what never leaves a company.

    shared     of no block: fixed tables, received once and pinned by digest
    pinned     of a pretrained model, and left as they are: every party holds them already, and the plan has their
               digest; in no state and no update
    frozen     of a block, and left as they are: its buffers, and its interface where a run does not train that
    trained    of a block, and moved by its rounds: they make up an update
    personal   of a block, and of one company alone: in no state, no digest and no update

Which modules are which a block declares; names say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Group = Literal["shared", "pinned", "frozen", "trained", "personal"]


class GroupedModule(nn.Module):
    """A block that says which of its modules are not simply trained.

    `checkpointing`: the activations between its layers are not kept for the backward pass, but computed again.
    """

    checkpointing: bool = False

    def interface_modules(self) -> Sequence[nn.Module]:
        """What reads the input and makes the output: trained where plan and policies agree, else frozen."""
        return ()

    def personal_modules(self) -> Sequence[nn.Module]:
        """What each company keeps to itself."""
        return ()

    def pinned_tensors(self) -> Sequence[Tensor]:
        """What every party holds already, from the pretrained model that the plan names."""
        return ()


class Absent(nn.Module):
    """Stands in the place of a block that is not in memory."""


def groups_of(block: nn.Module, interface: bool) -> dict[str, Group]:
    """The group of each tensor in a block's state, by its name there; `interface`: whether that is trained too.

    A block that declares nothing is trained as a whole. What is declared twice is pinned, or else personal.
    """
    frozen, personal, pinned = set[int](), set[int](), set[int]()
    if isinstance(block, GroupedModule):
        pinned = {id(tensor) for tensor in block.pinned_tensors()}
        frozen = set() if interface else _tensors(block.interface_modules())
        personal = _tensors(block.personal_modules())
    groups: dict[str, Group] = {}
    for name, tensor in block.state_dict(keep_vars=True).items():
        if id(tensor) in pinned:
            groups[name] = "pinned"
        elif id(tensor) in personal:
            groups[name] = "personal"
        elif isinstance(tensor, nn.Parameter) and id(tensor) not in frozen:
            groups[name] = "trained"
        else:
            groups[name] = "frozen"
    return groups


def _tensors(modules: Sequence[nn.Module]) -> set[int]:
    """The tensors of these modules and of those within them, by identity."""
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
