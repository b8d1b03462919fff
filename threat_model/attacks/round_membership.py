"""Membership in what this run did release: every sum that its rounds have opened, read from its transcript."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...blocks import merge
from ...blocks.examples import Examples
from ..block_problem import BlockProblem
from ..intervals import Array
from ..membership.heldout import heldout, unsuited
from ..membership.rounds import Background, OpenedSum, log_ratios
from ..membership.sums import Participation, gradients_of
from ..membership.verdict import COIN, judged, powerless
from ..releases import deviation
from ..results import Result
from ..roc import auc
from ..subject import Subject
from ..transcript import OpenedRelease
from . import Attack

_ROUNDS = 12  # of a block's, evenly spread from its first to its last
_CANDIDATES = 60  # members, and as many others
_DRAWS = 2
_PUBLIC = 64  # examples that show what others add
_AT_ONCE = 64  # examples whose gradients are held
_VIEW = "the sums that the run has opened, nobody's examples known"


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    if subject.transcript is None:
        return "the run kept no transcript: it had releases = false"
    if not any(header.block == block for header in subject.transcript.headers):
        return "no sum of this block was opened"
    if subject.plan.training.proximal > 0:
        return "local steps are pulled back to the start: a sum has not equal parts of all of them"
    return unsuited(subject)


def chosen_rounds(subject: Subject, block: int) -> list[OpenedRelease]:
    """At most `_ROUNDS` opened sums of the block, evenly spread.

    Raises:
        RunError: the transcript does not lead to the states that the companies were sent.
    """
    assert subject.transcript is not None
    own = [header.round for header in subject.transcript.headers if header.block == block]
    chosen = {own[round(i)] for i in np.linspace(0, len(own) - 1, min(_ROUNDS, len(own)))}
    return [r for r in subject.transcript if r.block == block and r.round in chosen]


def _problem(subject: Subject, release: OpenedRelease) -> BlockProblem:
    """The block in the state that the companies were sent in this round."""
    model, training = copy.deepcopy(subject.model), subject.plan.training
    merge(model, *release.states.values())
    return BlockProblem(
        model, release.block, subject.objective, subject.plan.model,
        draws=training.noise_draws, interface=training.interface,
    )  # fmt: skip


def _gradients(subject: Subject, release: OpenedRelease) -> Tensor:
    """The sum of the survivors' gradients, of which the mean update was made."""
    training = subject.plan.training
    scale = -training.expected_batch_size / training.local_learning_rate * len(release.survivors)
    return scale * release.mean_update


def _run(subject: Subject) -> Iterator[Result]:
    (block,) = subject.blocks
    started = time.monotonic()
    releases = chosen_rounds(subject, block)
    others = heldout(subject)
    generator = subject.generator("membership over rounds", block)
    summed = {name for release in releases for name in release.survivors}
    n = min(_CANDIDATES, len(others), sum(len(subject.private[name]) for name in summed))
    members, owners = subject.victims_of(summed, n, "membership over rounds", block)
    others = others[torch.randperm(len(others), generator=generator)[:n]]
    pool = Examples(torch.cat([members.inputs, others.inputs]), torch.cat([members.targets, others.targets]))
    scores: Array = np.zeros(2 * n)
    control, read = scores, 0
    for release in releases:
        if subject.clock.over:
            break
        found, quiet = _round(subject, release, pool, n, generator)
        # A candidate is asked for as one company's: those sums tell of it that the company is in. Of the others each
        # is asked for as the company's whose a member is, so that rounds are no sign of either.
        asked = np.array([name in release.survivors for name in owners] * 2)
        scores, control, read = scores + asked * found, control + asked * quiet, read + 1
        subject.clock.tell(read / len(releases), f"membership over rounds, block {block}")
    cut = f"the time ran out after {read} of {len(releases)} rounds" if read < len(releases) else ""
    own = auc(control[:n], control[n:])
    found_ = judged(scores[:n], scores[n:], control=own, ceiling=None, cut_short=cut)
    found_ = powerless(found_, own, "the other examples hide one")
    yield Result(
        attack=ATTACK.name, adversary="coordinator", view=_VIEW, statement="membership", block=block,
        statistic="members told from others (AUC)", unit="auc", outcome=found_.outcome, reason=found_.reason,
        value=found_.value, control=own, baseline=COIN, seconds=round(time.monotonic() - started, 2),
        budget={
            "candidates": 2 * n, "rounds read": read, "rounds of the block": _rounds(subject, block),
            "noise draws": _DRAWS,
        },
    )  # fmt: skip


def _round(
    subject: Subject, release: OpenedRelease, pool: Examples, n: int, generator: torch.Generator
) -> tuple[Array, Array]:
    """Log likelihood ratios (2 n,) of the candidates in this sum; and in a control, a sum without noise of as many
    examples as the survivors' batches hold, to which the first n, the members, each are added."""
    problem, mechanism = _problem(subject, release), subject.mechanism(release.block)
    count = subject.plan.training.expected_batch_size * len(release.survivors)
    known = subject.public[torch.randperm(len(subject.public), generator=generator)[:_PUBLIC]]
    public = gradients_of(problem, mechanism, known, 1, generator)
    noise = deviation(mechanism, len(release.survivors))
    batch, _ = subject.victims_of(release.survivors, round(count), "batch", release.block, release.round)
    # Of all survivors' batches together only the sum is held.
    parts = (batch[part] for part in torch.arange(len(batch)).split(_AT_ONCE))
    summed = torch.stack(
        [gradients_of(problem, mechanism, own, 1, generator).double().sum(0) for own in parts]
    ).sum(0)
    own = Participation.of(mechanism)
    sums = (
        OpenedSum(_gradients(subject, release), Background.of(public, count, noise), own),
        OpenedSum(summed, Background.of(public, count, 0.0), own.certain, planted=torch.arange(2 * n) < n),
    )
    found, quiet = log_ratios(sums, problem, mechanism, pool, _DRAWS, generator)
    return found, quiet


def _rounds(subject: Subject, block: int) -> int:
    assert subject.transcript is not None
    return sum(header.block == block for header in subject.transcript.headers)


ATTACK = Attack(
    name="round-membership",
    title="Asks whether a known example is in the sums that this run has opened, over its rounds",
    statement="membership",
    adversaries=("coordinator",),
    sees="the run's own opened sums of a block and the states before them; nobody's examples",
    needs="the run's transcript, candidates and public examples",
    cost="some 10 seconds a block; at most 12 rounds",
    applies=_applies,
    run=_run,
    weight=0.7,
    open_ended=True,
)
