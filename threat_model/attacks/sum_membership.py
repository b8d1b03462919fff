"""Was this example in the step? The likelihood ratio of a candidate's gradient under the release's exact noise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks.examples import Examples
from ...errors import InputError
from ..exhibits import Exhibit
from ..intervals import Array, Estimate
from ..likelihood import Clip, unmodelled
from ..releases import clip_of, deviation, released
from ..results import Outcome, Result
from ..roc import auc, gaussian_auc, hits_at, log_mean_exp
from ..subject import Subject
from ..winning import wins_at
from . import Attack

_CANDIDATES = 120  # half of them take part
_DRAWS = 16  # noise draws over which the unknown one is averaged
_CONTROL = 0.02  # noise multiplier of the control: without any noise a likelihood is infinite
_WINS = 0.1  # area above one half that counts as winning
_SURE = 0.999


@dataclass(frozen=True)
class _Candidates:
    """What the attacker imagines: `gradients` (M, P) of each candidate, clipped; float32 holds them."""

    gradients: list[Tensor]

    def scores(self, releases: list[Tensor], noise: float) -> Array:
        """Log likelihood ratio, candidate in against candidate out, of each candidate's own release."""
        return np.array(
            [
                _ratio((g @ r.float()).double(), g, noise)
                for g, r in zip(self.gradients, releases, strict=True)
            ]
        )


def _ratio(inner: Tensor, gradients: Tensor, noise: float) -> float:
    """log mean over the draws of exp((r.g - |g|^2 / 2) / noise^2); `inner` (M,) holds the r.g."""
    exponent = (inner - 0.5 * gradients.double().square().sum(1)) / noise**2
    return float(log_mean_exp(exponent.numpy()))


def _applies(subject: Subject) -> str | None:
    (block,) = subject.blocks
    mechanism = subject.mechanism(block)
    if deviation(mechanism) == 0:
        return "the release has no noise: whoever knows all other examples sees each gradient as it is"
    return unmodelled(mechanism)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    started = time.monotonic()
    mechanism, companies = subject.mechanism(block), len(subject.cohort(block))
    victims = subject.victims(_CANDIDATES, "membership", block)
    taking_part = torch.rand(len(victims), generator=subject.generator("coins", block)) < 0.5
    gradients: list[Tensor] = []
    for i in range(len(victims)):
        gradients.append(_imagined(subject, block, victims[i : i + 1], i))
        subject.clock.tell(0.6 * i / len(victims), f"membership, block {block}")
        if subject.clock.over:
            break
    cut_short = ""
    if len(gradients) < len(victims):
        cut_short = f"the time ran out after {len(gradients)} of {len(victims)} candidates"
    if len(gradients) < 20:
        yield _result(
            subject, block, "one company's release", "colluding-coordinator", None, cut_short, started
        )
        return
    candidates = _Candidates(gradients)
    part = taking_part[: len(gradients)].numpy()
    ceiling = {n: gaussian_auc(clip_of(mechanism) / deviation(mechanism, n)) for n in (1, companies)}
    winning = wins_at(
        lambda z: _simulated(subject, block, candidates, part, z * clip_of(mechanism)).value - 0.5, _WINS
    )
    control = _simulated(subject, block, candidates, part, _CONTROL * clip_of(mechanism))
    views = (
        ("one company's release", "colluding-coordinator", 1),
        ("the opened sum", "coordinator", companies),
    )
    for done, (view, adversary, n) in enumerate(views, start=1):
        releases = [
            released(
                subject, block, victims[i : i + 1] if inside else victims[:0], "membership", n, i,
                noisy=True, companies=n,
            ).vector
            for i, inside in enumerate(part)
        ]  # fmt: skip
        scores = candidates.scores(releases, deviation(mechanism, n))
        yield _result(
            subject, block, view, adversary, (scores[part], scores[~part]), cut_short, started,
            ceiling=ceiling[n], control=control, winning=winning,
        )  # fmt: skip
        subject.clock.tell(0.6 + 0.4 * done / len(views), f"membership, block {block}")
        if n == 1:
            yield _low_rate(block, view, adversary, scores[part], scores[~part])


def _imagined(subject: Subject, block: int, victim: Examples, i: int) -> Tensor:
    """The victim's clipped gradient at noise draws of the attacker's own, (M, P)."""
    problem = subject.problem(block)
    values = {
        name: value.expand(_DRAWS, *value.shape[1:]) for name, value in problem.values_of(victim).items()
    }
    drawn = problem.sample(values, subject.generator("imagined", block, i))
    clip = Clip.of(subject.mechanism(block))
    with torch.no_grad():
        return clip(problem, problem.gradient(drawn)).float()


def _simulated(
    subject: Subject, block: int, candidates: _Candidates, part: npt.NDArray[np.bool_], noise: float
) -> Estimate:
    """The area at another noise: the first imagined draw is taken for the true one, the others for the attacker's.

    Only inner products of the noise with gradients matter, so these are drawn, by their Gram matrix.
    """
    draw = np.random.default_rng(subject.seed)
    scores = []
    for g, inside in zip(candidates.gradients, part, strict=True):
        gram = (g @ g.T).double().numpy()
        values, vectors = np.linalg.eigh(gram)
        noises = noise * (vectors * np.sqrt(np.maximum(values, 0))) @ draw.standard_normal(len(gram))
        inner = noises[1:] + (gram[0, 1:] if inside else 0.0)
        exponent = (inner - 0.5 * np.diag(gram)[1:]) / noise**2
        scores.append(float(log_mean_exp(exponent)))
    found = np.array(scores)
    return auc(found[part], found[~part])


def _result(
    subject: Subject,
    block: int,
    view: str,
    adversary: str,
    scores: tuple[Array, Array] | None,
    cut_short: str,
    started: float,
    *,
    ceiling: float | None = None,
    control: Estimate | None = None,
    winning: float | None = None,
) -> Result:
    outcome: Outcome = "inconclusive"
    reason, value = cut_short, None
    if scores is not None:
        value = auc(*scores)
        sure = auc(*scores, level=_SURE)
        if sure.low > 0.5:
            outcome, reason = "found", ""
        elif not cut_short and control is not None and control.low > 0.5:
            outcome = "not found"
        elif not cut_short:
            reason = f"the control failed: at a noise multiplier of {_CONTROL:g} nothing is told apart either"
    return Result(
        attack=ATTACK.name, adversary=adversary, view=f"{view}, all other examples known", block=block,
        statement="membership", statistic="members told from others (AUC)", unit="auc", outcome=outcome,
        reason=reason, value=value, control=control, ceiling=ceiling, wins_at=winning,
        baseline=Estimate(value=0.5, low=0.5, high=0.5, n=1, method="exact"),
        budget={"candidates": _CANDIDATES, "noise draws": _DRAWS}, seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


def _low_rate(block: int, view: str, adversary: str, members: Array, others: Array) -> Result:
    """Hits at a thousandth of false alarms, refused where there are too few to say."""
    try:
        hits = hits_at(members, others, 0.001)
    except InputError as error:
        return Result(
            attack=ATTACK.name, adversary=adversary, view=f"{view}, all other examples known", block=block,
            statement="membership", statistic="hits at 0.1% false alarms", unit="share",
            outcome="not applicable", reason=str(error),
        )  # fmt: skip
    return Result(
        attack=ATTACK.name, adversary=adversary, view=f"{view}, all other examples known", block=block,
        statement="membership", statistic="hits at 0.1% false alarms", unit="share",
        outcome="found" if hits.low > 0.001 else "not found", value=hits,
    )  # fmt: skip


ATTACK = Attack(
    name="sum-membership",
    title="Likelihood ratio of a candidate's gradient in one release, averaged over the noise draws it may have had",
    statement="membership",
    adversaries=("colluding-coordinator", "coordinator"),
    sees="one release of one block, of which all examples but the candidate are known",
    needs="the model and the candidate, not its noise draws",
    cost="a tenth of a second a candidate",
    applies=_applies,
    run=_run,
    weight=1.5,
)
