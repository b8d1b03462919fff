"""What a company has for itself in the last block: a readout or low-rank adapters of its own (Li et al. 2021, Ditto).

    minimise over v:  loss(common model with v, own examples) + pull / 2 |v - w|^2

where w is what v begins as: the common readout, or adapters that add nothing. They lie in the block's `personal`
modules, beside the common ones: no state, digest or update of a model has them (see `groups`), and the common model
is the same with and without. They are trained without noise, because they never leave the company.

    add_personal(model)
    train_personal(model, data, generator)
    state = personal_state(model)           # later, on another copy: lay_over(model, state)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..examples import Examples
from ..noise import Seeded
from ..objective import BlockObjective
from ..state import State
from .block import PretrainedBlock, targets_of
from .denoiser import PretrainedDenoiser

_BATCH = 32


class Addition(nn.Module):
    """(alpha / rank) B A x with alpha = 2 rank, of a linear map from d to p: A (rank, d), B (p, rank), B zero at
    first."""

    def __init__(self, d: int, p: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d))
        self.B = nn.Parameter(torch.zeros(p, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x.to(self.A.dtype) @ self.A.T @ self.B.T)


def add_personal(model: PretrainedDenoiser) -> None:
    """Give the last block what `model.personal` says, as it is before training: the model computes what it did."""
    lift(model)
    part, settings = _last(model), model.settings
    if settings.personal == "head":
        for name in ("norm", "head"):
            part.personal[name] = copy.deepcopy(part.interface[name])
    elif settings.personal == "adapter":
        generator = torch.Generator().manual_seed(0)
        for name, linear in targets_of(part.layers, settings.lora_targets).items():
            added = Addition(linear.in_features, linear.out_features, settings.personal_rank, generator)
            part.personal[name.replace(".", "/")] = added
            part.personal_hooks.append(linear.register_forward_hook(_adding(added)))
    part.personal.to(model.device)


def _adding(addition: Addition) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        added: Tensor = addition(inputs[0])
        return out + added.to(out.dtype)

    return add


def train_personal(model: PretrainedDenoiser, data: Examples, generator: torch.Generator) -> None:
    """Train what `add_personal` gave, from there, on a company's own examples; nothing else moves."""
    settings, part, last = model.settings, _last(model), len(model.blocks) - 1
    model.requires_grad_(False)
    moved = [parameter.requires_grad_() for parameter in part.personal.parameters()]
    begun = [parameter.detach().clone() for parameter in moved]
    optimizer = torch.optim.AdamW(moved, settings.personal_learning_rate, weight_decay=0.0)
    objective, source = BlockObjective(), Seeded(generator)
    for _ in range(settings.personal_steps):
        batch = data[torch.randint(len(data), (min(_BATCH, len(data)),), generator=generator)]
        batch = batch.to(model.device)
        losses = objective(model, block=last, inputs=batch.inputs, targets=batch.targets, source=source)
        distance = torch.stack([(v - w).square().sum() for v, w in zip(moved, begun, strict=True)]).sum()
        optimizer.zero_grad(set_to_none=True)
        (losses.mean() + settings.personal_pull / 2 * distance).backward()
        optimizer.step()
    model.requires_grad_(False).eval()


def personal_state(model: PretrainedDenoiser) -> State:
    """The personal tensors, copies on the CPU; the names are those in the block's personal modules."""
    own = _last(model).personal.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in own.items()}


def lay_over(model: PretrainedDenoiser, state: State, field: str, value: str) -> None:
    """Put a company's personal tensors over the common model. Raises: InputError where they do not fit it."""
    add_personal(model)
    own = _last(model).personal.eval()
    wanted = {name: tuple(tensor.shape) for name, tensor in own.state_dict().items()}
    if not wanted or wanted != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        lift(model)
        raise InputError(
            field, value, f'not of this model, whose personal part is "{model.settings.personal}"'
        )
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        lift(model)
        raise InputError(field, value, "holds values that are not finite")
    own.load_state_dict(state)
    model.requires_grad_(False).eval()


def lift(model: PretrainedDenoiser) -> None:
    """The common model again."""
    _last(model).lift()


def _last(model: PretrainedDenoiser) -> PretrainedBlock:
    return model.block(len(model.blocks) - 1)
