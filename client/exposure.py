"""Does one example own a parameter row? Counted by the company, on its own examples and the weights it was sent.

Weights can be made so that a row of a linear layer is reached by one example of a batch alone, or that two rows
differ by one (trap weights: Boenisch et al. 2023, arXiv 2112.02918; Fowl et al. 2022, arXiv 2110.13057). Without
noise the row's gradient is then that example. Rows are taken as they are and, in the order of their size, less the
next.

Gradients of single examples cost as much as a step of training, so they are made in the first round of each block
since the run was joined, whenever the block has moved far from where they were made last, and in one round of
`SELDOM` at random: how long an answer takes depends on the weights and on the company's coin, not on its data. What
is found goes to the company's own log and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks import BlockObjective, Denoiser
from ..blocks.examples import Examples
from ..blocks.noise import Source
from ..blocks.state import State
from ..privacy.denormals import flushed
from ..privacy.randomness import Randomness
from ..privacy.source import CryptographicSource
from ..settings import Plan

SELDOM = 128
JUMP = 0.5
SHARE = 0.99
"""Of a row's summed gradient norms, from which on one example owns it."""
_SILENT = 1e-3  # rows without a gradient, relative to the layer's largest: nobody can read these
_SHOWN = 8
_AT_ONCE = 8  # examples whose tokens are held in float64
_SAMPLE = 64  # values of a tensor


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

    Gradients count as far as clipping leaves them: one that is not finite is dropped, and hides no other. Work and
    memory depend on `examples` and the block alone: where the company has fewer, some are taken again and count for
    nothing; where it has none, zeros are.
    """
    active = model.freeze_all_but(block, plan.training.interface)
    places, held = torch.arange(examples), len(data)
    if held == 0:
        inputs, targets = (each.new_zeros(1, *each.shape[1:]) for each in (data.inputs, data.targets))
        data = Examples(inputs, targets)
    batch = data[torch.argsort(source.normal(len(data)))[places % len(data)]].to(model.device)
    rows = _rows(model, active, block, batch, plan, source)
    squared = sum((norms.square().sum(1) for _, norms in _each(rows, examples)), torch.zeros(()))
    clip = (plan.max_grad_norm / squared.sqrt().clamp_min(1e-30)).clamp(max=1.0)  # (n,)
    clip[places >= held] = 0.0
    dropped = ~squared.isfinite()[:, None]
    found = []
    for name, norms in _each(rows, examples):
        mine = (clip[:, None] * norms).masked_fill(dropped, 0.0)  # (n, p)
        largest = mine.sum(0).max()
        by_size = mine.sum(0).argsort(descending=True)
        apart = (clip[:, None] * _norms(rows[name], examples, by_size)).masked_fill(dropped, 0.0)
        alone = torch.nonzero(_alone(mine, largest)).flatten()
        between = by_size[torch.nonzero(_alone(apart, largest)).flatten()]
        if len(alone) + len(between):
            found.append(Owned(name, tuple(alone.tolist()), tuple(sorted(between.tolist()))))
    return found


def sample(state: State, seed: int) -> list[float]:
    """Some values of every matrix, by which a later state can be held against this one; which, follows from the
    company's own seed, so that nobody else can spare them."""
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _, tensor in sorted(state.items()):
        if tensor.dim() > 1:
            values = tensor.detach().reshape(-1)
            found += values[torch.from_numpy(rng.integers(len(values), size=_SAMPLE))].tolist()
    return found


def jumped(before: list[float], now: list[float]) -> bool:
    """Whether a matrix has moved by more than `JUMP` of its size, or of the median one's if that is larger, or is not
    finite: from no number every step is one."""
    old, new = (torch.tensor(each, dtype=torch.float64).view(-1, _SAMPLE) for each in (before, now))
    if old.shape != new.shape:
        return True
    size = old.norm(dim=1)
    within = (new - old).norm(dim=1) <= JUMP * size.clamp_min(float(size.median()))  # false for NaN
    return not bool(within.all())


def warn(
    log: Callable[[str], None], model: Denoiser, block: int, data: Examples, plan: Plan, *, examples: int
) -> None:
    """Write to the company's log which rows one example owns, if there are any.

    With randomness of its own: a release has the same bits whether or not this was counted. In the arithmetic of
    training, whose time depends on no value.
    """
    source = CryptographicSource(Randomness.from_entropy())
    for owned in flushed(lambda: owned_rows(model, block, data, plan, examples=examples, source=source)):
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


def _each(rows: dict[str, _Uses], examples: int) -> list[tuple[str, Tensor]]:
    return [(name, _norms(uses, examples)) for name, uses in rows.items()]


def _norms(uses: _Uses, examples: int, order: Tensor | None = None) -> Tensor:
    """Norms (n, p) of the rows of every example's gradient; with `order`, of each row less the next in that order.

    Of sum_t g_t a_t^T the squared norm of row r is sum over s, t of (a_s . a_t) g_sr g_tr: no gradient is formed.
    """
    # The tokens of all draws of an example side by side, those of the clean stream, which draws share, once.
    a = torch.cat([inputs.reshape(examples, -1, inputs.shape[-1]) for inputs, _ in uses], 1)  # (n, T, d)
    g = torch.cat(
        [gradient.reshape(examples, -1, gradient.shape[-1]) for _, gradient in uses], 1
    )  # (n, T, p)
    found = []
    for inputs, outputs in zip(a.split(_AT_ONCE), g.split(_AT_ONCE), strict=True):
        wide, mine = inputs.double(), outputs.double()
        if order is not None:
            mine = mine[..., order]
            mine = mine[..., :-1] - mine[..., 1:]
        found.append(((wide @ wide.mT @ mine) * mine).sum(1).clamp_min(0).sqrt())
    return torch.cat(found)
