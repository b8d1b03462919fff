"""From a plan to the mechanism of its releases, their event in a ledger, and the codec of the secure sum.

Both sides compute these from the plan alone, so they agree on what is charged, encoded and decoded.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ..blocks import Denoiser, block_parameters
from ..errors import InputError
from ..privacy.clipping import Clipping
from ..privacy.composition import Terms
from ..privacy.dp_sgd import DPSGD
from ..privacy.events import Event, NoNoise
from ..privacy.mechanisms.skellam import SkellamNoise, default_scale
from ..privacy.quantile_clip import QuantileClip
from ..privacy.quantisation import FixedPoint
from ..privacy.sampling import EpochSampling, PoissonSampling, Sampling
from ..privacy.secure_step import SecureStep
from ..settings import Plan, TrainingSettings

_CLIPS = 8


def mechanism(plan: Plan) -> DPSGD:
    """The DP-SGD of one round of this plan, where every company adds its full noise."""
    return dp_sgd(plan.training, plan.noise_multiplier, plan.max_grad_norm, plan.clipping, plan.clip_quantile)


def dp_sgd(
    training: TrainingSettings,
    noise_multiplier: float,
    max_grad_norm: float = 1.0,
    clipping: Clipping = "flat",
    clip_quantile: float | None = None,
) -> DPSGD:
    """The DP-SGD of one round; its privacy cost depends on `training` and `noise_multiplier` only."""
    quantile = None
    if clip_quantile is not None:
        quantile = QuantileClip.beside(clip_quantile, noise_multiplier, training.expected_batch_size)
    return DPSGD(
        sampling=sampling_of(training),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=training.expected_batch_size,
        learning_rate=training.local_learning_rate,
        steps=training.local_steps,
        noise_draws=training.noise_draws,
        clipping=clipping,
        quantile_clip=quantile,
        noise_bands=training.noise_bands,
    )


def sampling_of(training: TrainingSettings) -> Sampling:
    """How the batches of a release are drawn."""
    if training.batches == "epochs":
        return EpochSampling(training.epoch_steps, regroup=training.noise_bands == 1)
    return PoissonSampling(training.sampling_rate)


def secure_step(plan: Plan, size: int, companies: int) -> SecureStep:
    """The step of one round of this plan for a block of `size` values, with noise from all `companies`.

    Raises:
        InputError: the plan's bits cannot hold the sum.
    """
    t = plan.training
    noise = SkellamNoise(
        dimension=size,
        clip=plan.max_grad_norm,
        companies=companies,
        tolerated=plan.dropouts + plan.colluders,
        noise_multiplier=plan.noise_multiplier,
        scale=default_scale(size, plan.max_grad_norm),
        bits=plan.bits,
    )
    # The plan's clip bounds an update; what is sent is the sum without learning rate and divisor.
    largest = plan.company_clip * t.expected_batch_size / t.local_learning_rate
    return SecureStep(
        sampling_rate=t.sampling_rate,
        noise=noise,
        colluders=plan.colluders,
        largest_sum=largest,
        noise_draws=t.noise_draws,
        clipping=plan.clipping,
    )


def with_fewest_bits(plan: Plan, size: int, companies: int) -> Plan:
    """The plan with the fewest bits that hold a secure step's sum, in blocks of `size` values.

    A coordinate of a company's sum is clamped to the codec's limit. The limit is at least eight clips, which sums of
    clipped gradients do not reach: eight examples' gradients would have to lie along one coordinate.
    """
    for bits in range(16, 32):
        narrow = plan.secure_aggregation.model_copy(update={"bits": bits})
        candidate = plan.model_copy(update={"secure_aggregation": narrow})
        with suppress(InputError):
            if secure_step(candidate, size, companies).noise.limit >= _CLIPS * plan.max_grad_norm:
                return candidate
    return plan


def release_event(plan: Plan, size: int, companies: int | None = None) -> Event:
    """The ledger event of one release of a block of `size` values, whoever takes part.

    Raises:
        InputError: with the number of `companies`, where encoding would fail after the ledger was charged.
    """
    if plan.secure_step:
        return secure_step(plan, size, companies or plan.dropouts + plan.colluders + 1).event
    if companies is not None:
        codec(plan, companies)
    return mechanism(plan).event(size) if plan.private else NoNoise(steps=plan.training.local_steps)


def run_terms(plan: Plan, size: int, companies: int | None = None) -> Terms:
    """The terms to which a company's ledger pins a run of this plan; arguments and errors as in `release_event`."""
    return Terms(release_event(plan, size, companies), plan.training.releases(plan.model.blocks))


def block_size(model: Denoiser, block: int, plan: Plan) -> int:
    """Number of values in an update of this block."""
    active = model.freeze_all_but(block, plan.training.interface)
    return sum(p.numel() for _, p in block_parameters(active))


def blocks_read(plan: Plan, block: int) -> range:
    """The blocks whose state a company needs to train this one: with prefix features all before it too."""
    return range(0 if plan.model.features == "prefix" else block, block + 1)


def codec(plan: Plan, parties: int) -> FixedPoint:
    """The fixed-point codec of updates; InputError for a bound or number of parties that it cannot hold."""
    return FixedPoint(bound=plan.company_clip, parties=parties, bits=plan.bits)


def mean_update(
    plan: Plan, residues: npt.NDArray[np.uint32], companies: int, survivors: int
) -> npt.NDArray[np.float64]:
    """The survivors' mean update (P,) from the opened sum; `companies`: the size of the session's cohort."""
    if plan.secure_step:
        total = secure_step(plan, len(residues), companies).noise.decode_sum(residues)
        return -plan.training.local_learning_rate / plan.training.expected_batch_size / survivors * total
    return codec(plan, companies).decode_sum(residues) / survivors
