"""A company's limit on what the best attack is expected to find in a release of its own, before anything leaves.

What an attacker would gain is predicted on a few of the company's own examples, in the state that it was sent. The
prediction is made by whatever the installation offers under the entry point `fedblocks.predictors`: the audit's
posterior prediction, or a company's own.

A refusal is a bit of the data that no ledger charges, and a coordinator may offer any states in any number of
sessions. So a run that was refused stays refused: it learns how many rounds passed, which were charged, and no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import entry_points

from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..errors import InputError, PrivacyError, ProtocolError
from ..settings import Plan
from .replay_guard import Steps

GROUP = "fedblocks.predictors"
Predictor = Callable[[Denoiser, int, Examples, Plan], float]
"""(model in the state before, block, the company's data, plan) -> dB by which the best attack on one release is
expected to come closer to an example than without it. Raises: InputError where that cannot be predicted."""

# torch's levels of forward derivatives are the process's: two predictions at once end each other's.
_predicting = threading.Lock()


class PredictedGain(PrivacyError):
    """What the company's data say: above its limit, or nothing can be predicted of them."""


def predictor() -> Predictor:
    """The one that is installed. Raises: PrivacyError, as no limit may pass for kept because nobody looked."""
    found = list(entry_points(group=GROUP))
    if len(found) != 1:
        rule = f"needs one installed predictor, found {len(found)}; install fedblocks[audit]"
        raise PrivacyError(f"largest_predicted_gain {rule}")
    made: Predictor = found[0].load()
    return made


def check(limit: float, model: Denoiser, block: int, data: Examples, plan: Plan) -> None:
    """Raises: PrivacyError where more than `limit` dB is predicted, or nothing can be."""
    try:
        if plan.training.group is not None:
            raise InputError(
                "training.group", plan.training.group, "a gain is predicted for single examples alone"
            )
        with _predicting:
            gain = predictor()(model, block, data, plan)
    except InputError as error:
        raise PredictedGain(f"largest_predicted_gain={limit} cannot be checked: {error}") from None
    if not gain <= limit:  # NaN is no number that keeps a limit
        raise PredictedGain(
            f"an attack on block {block} is predicted to come {gain:.1f} dB closer, above this company's {limit}"
        )


def check_once(steps: Steps, limit: float, model: Denoiser, block: int, data: Examples, plan: Plan) -> None:
    """As `check`, of a run that was not refused before; from a refusal on it is."""
    check_not_refused(steps, plan)
    try:
        check(limit, model, block, data, plan)
    except PredictedGain:
        steps.count(*_refused(plan), times=1, most=1)
        raise


def check_not_refused(steps: Steps, plan: Plan) -> None:
    """Raises: PrivacyError for a run that `check_once` has refused."""
    try:
        steps.check_count(*_refused(plan), times=1, most=1)
    except ProtocolError:
        raise PrivacyError(
            f"run {plan.run!r} was refused by largest_predicted_gain: it stays so, as each further answer would tell "
            "of the data"
        ) from None


def _refused(plan: Plan) -> tuple[str, bytes]:
    return "predicted gain", plan.run.encode()
