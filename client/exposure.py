"""Does one example own a parameter row? Counted by the company, on its own examples and the weights it was sent.

Weights can be made so that a row of a linear layer is reached by one example of a batch alone, or that two rows
differ by one (trap weights: Boenisch et al. 2023, arXiv 2112.02918; Fowl et al. 2022, arXiv 2110.13057). Without
noise the row's gradient is then that example. Rows are taken as they are and, in the order of their size, less the
next.

Gradients of single examples cost as much as a step of training, so they are made in the first round of each block
since the run was joined, whenever the block has moved by more than a server's step would, and in one round of
`SELDOM` at random: how long an answer takes depends on the weights and on the company's coin, not on its data. What
is found goes to the company's own log and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..blocks import BlockObjective, Denoiser
from ..blocks.examples import Examples
from ..blocks.noise import Source
from ..blocks.state import State
from ..privacy.randomness import Randomness
from ..privacy.source import CryptographicSource
from ..settings import Plan

SELDOM = 32
JUMP = 0.5
SHARE = 0.99
"""Of a row's summed gradient norms, from which on one example owns it."""
_SILENT = 1e-4  # rows without a gradient, relative to the layer's largest: nobody can read these
_SHOWN = 8
_SKETCH = 64


@dataclass(frozen=True)
class Owned:
    """Rows of one tensor that one example owns; `differences`: rows of which it owns the difference to the next."""

    tensor: str
    rows: tuple[int, ...]
    differences: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) + len(self.differences)

    def __str__(self) -> str:
        words = []
        for what, rows in (("rows", self.rows), ("differences of rows", self.differences)):
            if rows:
                more = ", ..." if len(rows) > _SHOWN else ""
                words.append(f"{len(rows)} {what} ({', '.join(map(str, rows[:_SHOWN]))}{more})")
        return f"{self.tensor}: {' and '.join(words)}"


def owned_rows(
    model: Denoiser, block: int, data: Examples, plan: Plan, *, examples: int, source: Source
) -> list[Owned]:
    """The weights of the block's linear layers with rows that one of so many examples owns.

    Gradients count as far as clipping leaves them. Work and memory depend on `examples` and the block alone: where
    the company has fewer, some are taken again and count for nothing.
    """
    if len(data) == 0:
        return []
    active = model.freeze_all_but(block, plan.training.interface)
    draws = plan.training.noise_draws
    places = torch.arange(examples)
    batch = data[torch.argsort(source.normal(len(data)))[places % len(data)]].to(model.device)
    rows = _rows(model, active, block, batch, plan, source)
    squared = sum((norms.square().sum(1) for _, norms in _each(rows, examples, draws)), torch.zeros(()))
    clip = (plan.max_grad_norm / squared.sqrt().clamp_min(1e-30)).clamp(max=1.0)  # (n,)
    clip[places >= len(data)] = 0.0
    found = []
    for name, norms in _each(rows, examples, draws):
        mine = clip[:, None] * norms  # (n, p)
        largest = mine.sum(0).max()
        by_size = mine.sum(0).argsort(descending=True)
        apart = clip[:, None] * _norms(rows[name], examples, draws, by_size)
        alone = torch.nonzero(_alone(mine, largest)).flatten()
        between = by_size[torch.nonzero(_alone(apart, largest)).flatten()]
        if len(alone) + len(between):
            found.append(Owned(name, tuple(alone.tolist()), tuple(sorted(between.tolist()))))
    return found


def sketch(state: State, seed: int) -> list[float]:
    """A few numbers whose distances are about those of states (Charikar et al. 2002, count sketch); nobody else can
    aim at them, as the signs follow from the company's own seed."""
    values = torch.cat([state[name].detach().reshape(-1).float().cpu() for name in sorted(state)])
    signs = torch.randint(2, values.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    padded = torch.nn.functional.pad(values * signs, (0, -len(values) % _SKETCH))
    return [float(part) for part in padded.view(_SKETCH, -1).double().sum(1)]


def jumped(before: list[float], now: list[float]) -> bool:
    """Whether a block has moved by more than `JUMP` of its own size."""
    old, new = torch.tensor(before, dtype=torch.float64), torch.tensor(now, dtype=torch.float64)
    return old.shape != new.shape or bool((new - old).norm() > JUMP * old.norm())


def warn(
    log: Callable[[str], None], model: Denoiser, block: int, data: Examples, plan: Plan, *, examples: int
) -> None:
    """Write to the company's log which rows one example owns, if there are any.

    With randomness of its own: a release has the same bits whether or not this was counted.
    """
    source = CryptographicSource(Randomness.from_entropy())
    for owned in owned_rows(model, block, data, plan, examples=examples, source=source):
        log(
            f"warning: block {block}: one example of {examples} owns {owned}; the weights may be made to read it off"
        )


def _alone(norms: Tensor, largest: Tensor) -> Tensor:
    """Of (n, p) by example and row: whether one example has the row to itself."""
    total, most = norms.sum(0), norms.max(0).values
    return (total > _SILENT * largest) & (most > SHARE * total)


_Uses = list[
    tuple[Tensor, Tensor]
]  # input activations (n m, ..., d) and output gradients (n m, ..., p), by use


def _rows(
    model: Denoiser, active: nn.Module, block: int, batch: Examples, plan: Plan, source: Source
) -> dict[str, _Uses]:
    """What the gradients of the trained weights of linear layers are made of."""
    uses: dict[str, list[tuple[Tensor, Tensor]]] = {}
    layers = {
        f"{name}.weight": layer
        for name, layer in active.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }
    outputs: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            outputs.append((name, inputs[0].detach(), output))

    def hook(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda module, inputs, output: keep(name, module, inputs, output))

    handles = [hook(name, layer) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            loss = BlockObjective(weight=plan.noise.weight)(
                model, block=block, inputs=batch.inputs, targets=batch.targets, source=source,
                draws=plan.training.noise_draws,
            ).sum() / plan.training.noise_draws  # fmt: skip
        gradients = torch.autograd.grad(loss, [output for _, _, output in outputs], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for (name, inputs, _), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            uses.setdefault(name, []).append((inputs, gradient))
    return uses


def _each(rows: dict[str, _Uses], examples: int, draws: int) -> list[tuple[str, Tensor]]:
    return [(name, _norms(uses, examples, draws)) for name, uses in rows.items()]


def _norms(uses: _Uses, examples: int, draws: int, order: Tensor | None = None) -> Tensor:
    """Norms (n, p) of the rows of every example's gradient; with `order`, of each row less the next in that order."""
    found = []
    for i in range(examples):
        whole = None
        for inputs, gradient in uses:
            each = (
                len(inputs) // examples
            )  # the draws of one example side by side, or one clean stream for all
            a = inputs[i * each : (i + 1) * each].reshape(-1, inputs.shape[-1])
            g = gradient[i * each : (i + 1) * each].reshape(-1, gradient.shape[-1])
            whole = g.T @ a if whole is None else whole.add_(g.T @ a)
        assert whole is not None
        if order is not None:
            whole = whole[order]
            whole = whole[:-1] - whole[1:]
        found.append(whole.norm(dim=1))
    return torch.stack(found)
