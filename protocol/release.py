"""From a plan to the mechanism of its releases, their event in a ledger, and the codec of the secure sum.

Both sides compute these from the plan alone, so they agree on what is charged, encoded and decoded.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ..blocks import Denoiser, block_parameters, build_model
from ..blocks.build import network_of
from ..errors import InputError, ProtocolError
from ..privacy.composition import Terms
from ..privacy.dp_sgd import DPSGD
from ..privacy.events import UNIT, Event, NoNoise, group_unit
from ..privacy.mechanisms.skellam import SkellamNoise, default_scale
from ..privacy.quantile_clip import QuantileClip
from ..privacy.quantisation import FixedPoint
from ..privacy.sampling import EpochSampling, PoissonSampling, Sampling
from ..privacy.secure_aggregation import Session
from ..privacy.secure_step import SecureStep, step_event
from ..settings import MechanismSettings, ModelSettings, NoiseSettings, Plan, TrainingSettings

_CLIPS = 8
_ATTEMPT = re.compile(r"\.[0-9a-f]{16}\Z")


def mechanism(plan: Plan) -> DPSGD:
    """The DP-SGD of one round of this plan, every company with its own noise."""
    return dp_sgd(plan.training, plan, plan.noise_multiplier)


def dp_sgd(training: TrainingSettings, privacy: MechanismSettings, noise_multiplier: float) -> DPSGD:
    """The DP-SGD of one round, with this noise whatever `privacy` says of it."""
    quantile = None
    if privacy.clip_quantile is not None:
        batch = training.expected_batch_size
        quantile = QuantileClip.beside(privacy.clip_quantile, noise_multiplier, batch)
    return DPSGD(
        sampling=sampling_of(training),
        noise_multiplier=noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        expected_batch_size=training.expected_batch_size,
        learning_rate=training.local_learning_rate,
        steps=training.local_steps,
        noise_draws=training.noise_draws,
        clipping=privacy.clipping,
        quantile_clip=quantile,
        noise_bands=training.noise_bands,
        proximal=training.proximal,
        records=training.records_per_group,
    )


def sampling_of(training: TrainingSettings) -> Sampling:
    """How the batches of a release are drawn."""
    if training.batches == "epochs":
        return EpochSampling(training.epoch_steps, regroup=training.noise_bands == 1)
    return PoissonSampling(training.sampling_rate)


def secure_step(plan: Plan, size: int, companies: int) -> SecureStep:
    """The step of one round of this plan for a block of `size` values, with noise from all `companies`.

    A ledger has one event for all of a run's releases, that of its largest block; so all have that one's noise.

    Raises:
        InputError: the plan's bits cannot hold the sum, or it trains no block so large.
    """
    t = plan.training
    # The plan's clip bounds an update; what is sent is the sum without learning rate and divisor.
    largest = plan.company_clip * t.expected_batch_size / t.local_learning_rate
    return SecureStep(
        sampling_rate=t.sampling_rate,
        noise=_shared_noise(
            plan, plan.noise_multiplier, size, companies, plan.bits, accounted=planned_size(plan)
        ),
        colluders=plan.colluders,
        largest_sum=largest,
        noise_draws=t.noise_draws,
        clipping=plan.clipping,
        records=t.records_per_group,
    )


def _shared_noise(
    privacy: MechanismSettings,
    noise_multiplier: float,
    size: int,
    companies: int,
    bits: int,
    accounted: int | None = None,
) -> SkellamNoise:
    return SkellamNoise(
        dimension=size,
        clip=privacy.max_grad_norm,
        companies=companies,
        tolerated=privacy.dropouts + privacy.colluders,
        noise_multiplier=noise_multiplier,
        scale=default_scale(accounted or size, privacy.max_grad_norm),
        bits=bits,
        accounted=accounted,
    )


def fewest_bits(privacy: MechanismSettings, noise_multiplier: float, size: int, companies: int) -> int | None:
    """Bits of the narrowest residues that hold shares of one noise, in blocks of `size` values; None: no fewer than
    there are.

    A coordinate of a company's sum is clamped to the codec's limit. The limit is at least eight clips, which sums of
    clipped gradients do not reach: eight examples' gradients would have to lie along one coordinate.
    """
    for bits in range(16, 32):
        with suppress(InputError):
            noise = _shared_noise(privacy, noise_multiplier, size, companies, bits)
            if noise.limit >= _CLIPS * privacy.max_grad_norm:
                return bits
    return None


def default_company_clip(
    training: TrainingSettings, privacy: MechanismSettings, noise_multiplier: float, size: int
) -> float:
    """A bound that an honest update of `size` values passes but for a negligible chance.

    The norm of the noise over the local steps concentrates at z C sqrt(steps P); 1.1 covers its tail.
    """
    t, clip = training, privacy.max_grad_norm
    if privacy.mode == "secure_step" and noise_multiplier > 0:
        # The shares of noise are added to what has been bounded.
        return 2 * t.local_learning_rate * clip
    noise = noise_multiplier * clip * math.sqrt(t.local_steps * size)
    # The sum of clipped gradients stays below this for batches of up to twice the expected size.
    signal = 2 * t.expected_batch_size * clip * t.local_steps
    return t.local_learning_rate * (1.1 * noise + signal) / t.expected_batch_size


def event_of(
    training: TrainingSettings,
    privacy: MechanismSettings,
    noise_multiplier: float,
    size: int,
    *,
    bits: int,
    companies: int | None = None,
) -> Event:
    """What one release of a block of `size` values costs with this noise, whatever `privacy` says of it.

    For shares of one noise: `companies` add them, none means the fewest that can; InputError where `bits` are too few
    for their sum.
    """
    if noise_multiplier == 0:
        return NoNoise(steps=training.local_steps)
    if privacy.mode == "local":
        return dp_sgd(training, privacy, noise_multiplier).event(size)
    n = companies or privacy.dropouts + privacy.colluders + 1
    noise = _shared_noise(privacy, noise_multiplier, size, n, bits)
    return step_event(noise, training.sampling_rate, privacy.colluders)


def release_event(plan: Plan, size: int, companies: int | None = None) -> Event:
    """The ledger event of one release of a block of `size` values, whoever takes part.

    Raises:
        InputError: with the number of `companies`, where encoding would fail after the ledger was charged.
    """
    if companies is not None and not plan.secure_step:
        codec(plan, companies)
    return event_of(plan.training, plan, plan.noise_multiplier, size, bits=plan.bits, companies=companies)


def run_terms(plan: Plan, size: int, companies: int | None = None, releases: int | None = None) -> Terms:
    """The terms to which a company's ledger pins a run of this plan; arguments and errors as in `release_event`.

    `releases`: those that the company makes; none: the most that any one makes.
    """
    made = plan.most_releases if releases is None else releases
    return Terms(release_event(plan, size, companies), made, unit_of(plan))


def unit_of(plan: Plan) -> str:
    """The unit of privacy, as a ledger names it."""
    return UNIT if plan.training.unit is None else group_unit(plan.training.unit.removeprefix("one group "))


def block_size(model: Denoiser, block: int, training: TrainingSettings) -> int:
    """Number of values in an update of this block."""
    active = model.freeze_all_but(block, training.interface)
    return sum(p.numel() for _, p in block_parameters(active))


def largest_block(model: Denoiser, training: TrainingSettings) -> int:
    """Number of values in the largest update of a run: what each of its releases is accounted by. `model` may hold
    its first block alone where all have one shape."""
    blocks = (0,) if model.blocks_alike else training.trained(len(model.blocks))
    return max(block_size(model, block, training) for block in blocks)


def planned_size(plan: Plan) -> int:
    """`largest_block` of the plan's model."""
    return _planned_size(plan.model, plan.noise, plan.training)


@lru_cache(maxsize=32)
def _planned_size(model: ModelSettings, noise: NoiseSettings, training: TrainingSettings) -> int:
    with torch.device("meta"):  # its shapes alone: no memory, however large the model is
        built = build_model(model, noise, 0 if network_of(model).blocks_alike else None)
    return largest_block(built, training)


def sum_label(block: int, attempt: str = "") -> str:
    """The label of a block's secure sum. A round that is begun anew has another `attempt`, 16 hexadecimal digits, so
    that no key, share or signature of the sum that failed is valid in the new one."""
    return f"block-{block}.{attempt}" if attempt else f"block-{block}"


def block_label(label: str) -> str:
    """`sum_label` without the attempt: what a ledger and the noise of a simulation know a release by."""
    return _ATTEMPT.sub("", label)


def block_of(plan: Plan, session: Session) -> int:
    """The block whose secure sum this is; ProtocolError("bad_session") for the label of none."""
    name, _, number = block_label(session.label).partition("-")
    if name != "block" or not number.isdecimal() or not (block := int(number)) < plan.model.blocks:
        raise ProtocolError("bad_session", "the session is for no block of the plan")
    if sum_label(block) != f"block-{number}" or block not in plan.trained_blocks:
        raise ProtocolError("bad_session", "the session is for no block of the plan")
    return block


def blocks_read(plan: Plan, block: int) -> range:
    """The blocks whose state a company needs to train this one: with prefix features all before it too, and all after
    it where the loss is of what they make of it."""
    end = plan.model.blocks if plan.model.reads_to_the_end else block + 1
    return range(0 if plan.model.features == "prefix" else block, end)


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
