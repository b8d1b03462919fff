"""From a plan to the mechanism of its evaluations, their event in a ledger, and the codec of their sums.

An evaluation is a secure sum under its own label, with the phases of a training's. Every held-out example of a
company adds to two of its values: its score, scaled to [0, 1] and rounded to 2^-20, and 1. So one example more or
less moves the sum by at most CLIP = sqrt(2) in L2 norm, whatever the number of classes; sums are exact. The
noise is that of the training's mode: every company its own (Gaussian), or shares of one (Skellam). There is no
sampling of examples, and so no amplification.

In a ledger evaluations are a run of their own, beside the training: their epsilon is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ProtocolError
from ..privacy.clipping import ClippedSum
from ..privacy.composition import Terms, run_epsilon
from ..privacy.dp_sgd import clip_to_norm
from ..privacy.events import Event, GaussianSteps
from ..privacy.mechanisms.gaussian import add_gaussian_noise
from ..privacy.mechanisms.skellam import SkellamNoise
from ..privacy.quantisation import FixedPoint
from ..privacy.randomness import Randomness
from ..privacy.secure_aggregation import Session
from ..privacy.secure_step import step_event
from ..settings import EvaluationSettings, MechanismSettings, ModelSettings, Plan
from ..settings.evaluation import EVALUATIONS
from .release import block_label, unit_of

EVALUATION = "evaluation"
BITS = 32
CLIP = math.sqrt(2)
_LEVELS = 2.0**20
# Of shares of one noise, in levels a unit; the same for any number of companies, since the event depends on it.
_SCALE = 2.0**7
# Deviations of noise that a company's bound leaves room for.
_TAIL = 8.0

Vector = npt.NDArray[np.float64]


def settings_of(plan: Plan) -> EvaluationSettings:
    """Raises: ProtocolError("bad_session") where the plan has no evaluation."""
    if plan.evaluation is None:
        raise ProtocolError("bad_session", "the plan has no evaluation")
    return plan.evaluation


def evaluation_label(attempt: str = "") -> str:
    """As `sum_label`, of an evaluation."""
    return f"{EVALUATION}.{attempt}" if attempt else EVALUATION


def is_evaluation(session: Session) -> bool:
    return block_label(session.label) == EVALUATION


def check_due(plan: Plan, session: Session) -> None:
    """ProtocolError("bad_session") unless the plan has an evaluation after the session's round, of this length."""
    if not settings_of(plan).due(session.round, plan.training.rounds):
        raise ProtocolError("bad_session", "the plan has no evaluation after this round")
    if session.length != length(plan):
        raise ProtocolError("bad_session", "the session is for sums of another length")


def evaluation_run(run: str) -> str:
    """What a run's evaluations are called in a ledger."""
    return run + EVALUATIONS


def training_run(run: str) -> str:
    """The run that a ledger's row is of, whether for its training or its evaluations."""
    return run.removesuffix(EVALUATIONS)


def cells(plan: Plan) -> int:
    """Groups of examples that have a score and a count each: the classes, or one."""
    return _cells(settings_of(plan), plan.model)


def _cells(evaluation: EvaluationSettings, model: ModelSettings) -> int:
    classes = model.kind.target_classes
    return classes if evaluation.by_class and classes is not None else 1


def length(plan: Plan) -> int:
    """Values of a sum: a score and a count for each of the `cells`."""
    return 2 * cells(plan)


def contribution(plan: Plan, value: float, label: int) -> Vector:
    """What an example with this metric adds to the sum, (length,): scores first, then counts. Its norm is at most
    CLIP; a value that is no number counts as the worst."""
    found = np.zeros(length(plan))
    cell = label if cells(plan) > 1 else 0
    score, worst = value / settings_of(plan).range(), 0.0 if settings_of(plan).largest is None else 1.0
    score = min(max(score, 0.0), 1.0) if math.isfinite(score) else worst
    found[cell] = round(score * _LEVELS) / _LEVELS
    found[cells(plan) + cell] = 1.0
    return found


def mean_contribution(contributions: Sequence[Vector]) -> Vector:
    """What a group of records, each with a contribution, adds to the sum: their mean, rounded down to 2^-20.

    No longer than the longest of them; computed in whole numbers, so that their order does not matter.
    """
    levels = np.rint(np.stack(contributions) * _LEVELS).astype(np.int64).sum(axis=0)
    found: Vector = (levels // len(contributions)).astype(np.float64) / _LEVELS
    return found


def encoded(plan: Plan, companies: int, total: Vector, randomness: Randomness) -> npt.NDArray[np.uint32]:
    """A company's sum (length,) with its noise, or its share of it, as residues for a sum of `companies`."""
    if plan.secure_step:
        return _shared_noise(plan, companies).encode(total, randomness)
    z = settings_of(plan).noise_multiplier
    noisy = add_gaussian_noise(ClippedSum(torch.from_numpy(total), CLIP, examples=0), z, randomness)
    bounded = clip_to_norm(noisy, _bound(plan)).numpy()
    return _codec(plan, companies).encode(bounded)


def decoded(plan: Plan, companies: int, residues: npt.NDArray[np.uint32]) -> Vector:
    """The opened sum (length,), noise included."""
    if plan.secure_step:
        return _shared_noise(plan, companies).decode_sum(residues)
    return _codec(plan, companies).decode_sum(residues)


def deviation(plan: Plan, companies: int, survivors: int) -> float:
    """Standard deviation of the noise in each value of a sum that `survivors` of `companies` have added to."""
    if plan.secure_step:
        noise = _shared_noise(plan, companies)
        return math.sqrt(survivors * noise.variance_share) / noise.scale
    return math.sqrt(survivors) * settings_of(plan).noise_multiplier * CLIP


def evaluation_event(plan: Plan, companies: int | None = None) -> Event:
    """What one evaluation costs; `companies`: as in `release.event_of`."""
    return _event(settings_of(plan), plan.model, plan, companies)


def _event(
    evaluation: EvaluationSettings,
    model: ModelSettings,
    privacy: MechanismSettings,
    companies: int | None = None,
) -> Event:
    if privacy.mode == "secure_step":
        n = companies or privacy.dropouts + privacy.colluders + 1
        return step_event(_skellam(evaluation, model, privacy, n), 1.0, privacy.colluders)
    z, dimension = evaluation.noise_multiplier, 2 * _cells(evaluation, model)
    return GaussianSteps(sampling_rate=1.0, noise_multiplier=z, steps=1, dimension=dimension)


def whole_evaluation(
    evaluation: EvaluationSettings | None, model: ModelSettings, privacy: MechanismSettings, rounds: int
) -> Event | None:
    """All evaluations of a run as one event, none if it has none."""
    return None if evaluation is None else _event(evaluation, model, privacy).times(evaluation.rounds(rounds))


def evaluation_epsilon(whole: Event | None, delta: float) -> float:
    """What evaluations add to a fresh ledger, whose second run they are, after the training."""
    return 0.0 if whole is None else run_epsilon(whole, delta, 2)


def evaluation_terms(plan: Plan, companies: int | None = None) -> Terms:
    """The terms to which a ledger pins the evaluations of a run."""
    rounds = settings_of(plan).rounds(plan.training.rounds)
    return Terms(evaluation_event(plan, companies), rounds, unit_of(plan))


def _shared_noise(plan: Plan, companies: int) -> SkellamNoise:
    return _skellam(settings_of(plan), plan.model, plan, companies)


def _skellam(
    evaluation: EvaluationSettings, model: ModelSettings, privacy: MechanismSettings, companies: int
) -> SkellamNoise:
    return SkellamNoise(
        dimension=2 * _cells(evaluation, model),
        clip=CLIP,
        companies=companies,
        tolerated=privacy.dropouts + privacy.colluders,
        noise_multiplier=evaluation.noise_multiplier,
        scale=_SCALE,
        bits=BITS,
    )


def _bound(plan: Plan) -> float:
    """The largest norm of what a company sends with its own noise."""
    found = settings_of(plan)
    noise = _TAIL * found.noise_multiplier * CLIP * math.sqrt(length(plan))
    return CLIP * found.most_examples + noise


def _codec(plan: Plan, companies: int) -> FixedPoint:
    return FixedPoint(bound=_bound(plan), parties=companies, bits=BITS)
