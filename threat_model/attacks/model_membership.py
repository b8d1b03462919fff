"""Membership from the released model alone: LiRA, RMIA and BaVarIA with a few shadows of one block."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch

from ...blocks import Denoiser, merge
from ...blocks.examples import Examples
from ...blocks.training import Schedule
from ...errors import FedblocksError
from ...server.checkpoint import Checkpoint
from ..intervals import Array, Estimate
from ..membership.scores import SCORES, Shadows, bavaria
from ..membership.shadows import Signals, trained
from ..membership.verdict import judged
from ..results import Result
from ..roc import auc
from ..subject import Subject
from . import Attack

_POOL = 500  # members, and as many others
_SHADOWS, _LEAST = 6, 2
_STEPS = 120
_VIEW = "the released model"


def _applies(subject: Subject) -> str | None:
    if subject.checkpoint.round == 0:
        return "nothing was trained on private data yet"
    try:
        heldout = Examples.load(subject.run.evaluation / "heldout.npz")
        Checkpoint.load(subject.run.checkpoints, 0)
    except (FedblocksError, OSError) as error:
        return f"it needs the public model and examples that no company trained on: {error}"
    return None if len(heldout) >= 20 else f"only {len(heldout)} examples were held out, of at least 20"


def _public(subject: Subject, block: int) -> Denoiser:
    """The released model with this block as it was before the run."""
    model = copy.deepcopy(subject.model)
    blocks = list(subject.checkpoint.model.blocks)
    blocks[block] = Checkpoint.load(subject.run.checkpoints, 0).model.blocks[block]
    merge(model, subject.checkpoint.model.shared, *blocks)
    return model


def _pool(subject: Subject, block: int) -> Examples:
    """Members first, then as many examples that no company trained on."""
    heldout = Examples.load(subject.run.evaluation / "heldout.npz")
    order = torch.randperm(len(heldout), generator=subject.generator("held out", block))
    count = min(_POOL, len(heldout), sum(len(own) for own in subject.private.values()))
    members, others = subject.victims(count, "model membership", block), heldout[order[:count]]
    return Examples(torch.cat([members.inputs, others.inputs]), torch.cat([members.targets, others.targets]))


def _run(subject: Subject) -> Iterator[Result]:
    (block,) = subject.blocks
    started, plan, clock = time.monotonic(), subject.plan, subject.clock
    public, pool = _public(subject, block), _pool(subject, block)
    n = len(pool) // 2
    generator = subject.generator("shadows", block)
    signals = Signals(public, block, subject.objective, pool, generator)

    def fit(index: torch.Tensor, steps: int) -> Array:
        schedule = Schedule(
            steps=steps, batch_size=min(64, len(index)), noise_draws=plan.training.noise_draws,
            learning_rate=min(plan.training.server_learning_rate, 0.01),
        )  # fmt: skip
        model = trained(
            public, block, pool[index], interface=plan.training.interface, objective=subject.objective,
            schedule=schedule, generator=generator,
        )  # fmt: skip
        return signals.of(model)

    # The control comes first: a block overfitted to few examples.
    few = torch.randperm(len(pool), generator=generator)[: n // 2]
    known = fit(few, 2 * _STEPS)
    made: list[Array] = []
    inside = np.zeros((_SHADOWS, len(pool)), dtype=bool)
    for i in range(_SHADOWS):
        # A shadow takes as long as those before it.
        if made and clock.spent * (i + 2) / (i + 1) > clock.seconds:
            break
        half = torch.randperm(len(pool), generator=generator)[:n]
        inside[i, half.numpy()] = True
        made.append(fit(half, _STEPS))
        clock.tell((i + 1) / (_SHADOWS + 1), f"shadows, block {block}")
    cut_short = f"the time ran out after {len(made)} shadows of {_SHADOWS}" if len(made) < _LEAST else ""
    shadows = Shadows(np.stack(made), inside[: len(made)])
    control = _control(known, shadows, few.numpy())
    before = signals.of(public).sum(0)
    blind = auc(before[:n], before[n:])
    target = signals.of(subject.model)
    for name, score in SCORES.items():
        scores = score(target, shadows)
        found = judged(
            scores[:n], scores[n:], control=control, ceiling=None, cut_short=cut_short, floor=max(0.5, blind.value)
        )  # fmt: skip
        yield Result(
            attack=ATTACK.name, adversary="user", view=_VIEW, statement="membership",
            statistic=f"members told from others by {name} (AUC)", unit="auc", outcome=found.outcome,
            reason=found.reason, block=block, value=found.value, control=control, baseline=blind,
            budget={"shadows": len(made), "steps": _STEPS, "candidates": 2 * n},
            seconds=round(time.monotonic() - started, 2),
        )  # fmt: skip
    clock.tell(1.0, f"membership from the model, block {block}")


def _control(
    known: Array, shadows: Shadows, few: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> Estimate:
    scores = bavaria(known, shadows)
    mine = np.zeros(len(scores), dtype=bool)
    mine[few] = True
    return auc(scores[mine], scores[~mine])


ATTACK = Attack(
    name="model-membership",
    title="Asks of the released model whether an example was trained on, with a few shadow models of one block",
    statement="membership",
    adversaries=("user",),
    sees="the released model",
    needs="candidates, and the public model from which the run began",
    cost="seven short trainings of a block",
    applies=_applies,
    run=_run,
    weight=1.0,
)
