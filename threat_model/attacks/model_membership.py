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
from ..exhibits import Scores
from ..intervals import Array
from ..membership.heldout import heldout, unsuited
from ..membership.scores import SCORES, Shadows
from ..membership.shadows import Signals, trained
from ..membership.verdict import judged
from ..results import Result
from ..roc import auc
from ..subject import Subject
from . import Attack

_POOL = 500  # members, and as many others
_SHADOWS = 6
_STEPS, _LEAST_STEPS = 120, 30
_PLANTED = 80  # examples with random labels, for the control
_OVERFITTING = 4  # times the steps of a shadow
_TRIED = 5  # steps, to see how long one takes
_VIEW = "the released model"


def _applies(subject: Subject) -> str | None:
    if (why := unsuited(subject)) is not None:
        return why
    try:
        Checkpoint.load(subject.run.checkpoints, 0)
    except (FedblocksError, OSError) as error:
        return f"it needs the public model from which the run began: {error}"
    return None


def _public(subject: Subject, block: int) -> Denoiser:
    """The released model with this block as it was before the run."""
    model = copy.deepcopy(subject.model)
    blocks = list(subject.checkpoint.model.blocks)
    blocks[block] = Checkpoint.load(subject.run.checkpoints, 0).model.blocks[block]
    merge(model, subject.checkpoint.model.shared, *blocks)
    return model


def _joined(*parts: Examples) -> Examples:
    return Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))


def _pool(subject: Subject, block: int) -> tuple[Examples, int, int]:
    """n members, then n examples that no company trained on, then k further ones with random labels."""
    others = heldout(subject)
    generator = subject.generator("held out", block)
    others = others[torch.randperm(len(others), generator=generator)]
    k = min(_PLANTED, len(others) // 3)
    n = min(_POOL, len(others) - k, sum(len(own) for own in subject.private.values()))
    members, planted = subject.victims(n, "model membership", block), others[-k:]
    return _joined(members, others[:n], _relabelled(planted, subject, generator)), n, k


def _relabelled(examples: Examples, subject: Subject, generator: torch.Generator) -> Examples:
    """The same with labels drawn at random, which a model can only learn by heart."""
    kind, side = subject.plan.model.kind, subject.plan.model.label_side
    labels = examples.targets if side == "targets" else examples.inputs
    classes = kind.target_classes if side == "targets" else kind.input_classes
    if classes is None:
        drawn = labels.roll(1, 0)
    else:
        drawn = (labels + torch.randint(classes, labels.shape, generator=generator)) % classes
    return Examples(examples.inputs, drawn) if side == "targets" else Examples(drawn, examples.targets)


def _run(subject: Subject) -> Iterator[Result | Scores]:
    (block,) = subject.blocks
    started, clock = time.monotonic(), subject.clock
    public, (pool, n, k) = _public(subject, block), _pool(subject, block)
    generator = subject.generator("shadows", block)
    signals = Signals(public, block, subject.objective, pool, generator)
    before = signals.of(public)
    begun = time.monotonic()
    target = signals.of(subject.model)
    read = time.monotonic() - begun

    def fit(index: torch.Tensor, steps: int) -> Denoiser:
        schedule = Schedule(
            steps=steps, batch_size=min(64, len(index)), noise_draws=subject.plan.training.noise_draws,
            learning_rate=min(subject.plan.training.server_learning_rate, 0.01),
        )  # fmt: skip
        return trained(
            public, block, pool[index], interface=subject.plan.training.interface,
            objective=subject.objective, schedule=schedule, generator=generator,
        )  # fmt: skip

    every = torch.arange(len(pool))
    fit(every, 1)  # what is done only once: imports, memory
    begun = time.monotonic()
    fit(every, _TRIED)
    step = (time.monotonic() - begun) / _TRIED
    # Of the time that is left, what the models' reading of the candidates leaves; the control has more steps.
    spare = 0.8 * clock.left - (_SHADOWS + 2) * read
    steps = int(min(_STEPS, spare / ((_SHADOWS + _OVERFITTING) * step)))
    if steps < _LEAST_STEPS:
        why = f"the time suffices for {max(steps, 0)} steps of each of {_SHADOWS} shadows, of at least {_LEAST_STEPS}"
        for name in SCORES:
            yield _result(block, name, started, outcome="inconclusive", reason=why)
        return
    # The control: a block that learns half of the random labels by heart. True ones may be guessed too well to tell.
    planted = 2 * n + torch.randperm(k, generator=generator)
    known = signals.of(fit(planted[: k // 2], _OVERFITTING * steps))
    made: list[Array] = []
    inside = np.zeros((_SHADOWS, len(pool)), dtype=bool)
    for i in range(_SHADOWS):
        half = torch.randperm(len(pool), generator=generator)[: len(pool) // 2]
        inside[i, half.numpy()] = True
        made.append(signals.of(fit(half, steps)))
        clock.tell((i + 1) / (_SHADOWS + 1), f"shadows, block {block}")
    shadows = Shadows(np.stack(made), inside)
    learnt, left = planted[: k // 2].numpy(), planted[k // 2 :].numpy()
    for name, score in SCORES.items():
        over, blind, scores = score(known, shadows), score(before, shadows), score(target, shadows)
        control, guess = auc(over[learnt], over[left]), auc(blind[:n], blind[n : 2 * n])
        found = judged(
            scores[:n], scores[n : 2 * n], control=control, ceiling=None, floor=max(0.5, guess.value)
        )
        yield _result(
            block, name, started, outcome=found.outcome, reason=found.reason, value=found.value, control=control,
            baseline=guess, budget={"shadows": _SHADOWS, "steps": steps, "candidates": 2 * n},
        )  # fmt: skip
        if name == next(iter(SCORES)):
            yield Scores(
                attack=ATTACK.name, view=f"{_VIEW}, by {name}", block=block,
                members=scores[:n], others=scores[n : 2 * n],
            )  # fmt: skip
    clock.tell(1.0, f"membership from the model, block {block}")


def _result(block: int, name: str, started: float, **values: object) -> Result:
    fixed: dict[str, object] = {
        "attack": ATTACK.name, "adversary": "user", "view": _VIEW, "statement": "membership", "block": block,
        "statistic": f"members told from others by {name} (AUC)", "unit": "auc",
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    return Result.model_validate(fixed | values)


ATTACK = Attack(
    name="model-membership",
    title="Asks of the released model whether an example was trained on, with a few shadow models of one block",
    statement="membership",
    adversaries=("user",),
    sees="the released model",
    needs="candidates, and the public model from which the run began",
    cost="ten short trainings of a block",
    applies=_applies,
    run=_run,
    weight=1.0,
    open_ended=True,
)
