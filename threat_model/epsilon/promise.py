"""What a company's ledger is charged for a release, and so what the company's step has to do.

Read from the event, not from the objects that train: if they differ, the account is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...privacy.events import EpochGaussian, GaussianSteps, SharedSkellamSteps
from ...privacy.mechanisms.banded import BandedNoise
from ...privacy.sampling import PoissonSampling, Sampling
from ...protocol.release import mechanism, release_event, secure_step
from ...settings import Plan

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """`sampling_rate`: of Poisson batches; none: every example once in `epoch_steps` steps, the same ones in every
    epoch of a release unless `regroup`. Noise: `noise_multiplier` times a step's clip for each value, or for shares,
    `share_variance` in whole numbers. `coefficients`: what makes correlated noise white again. `moving_clip`: it and
    its noise change from step to step.
    """

    clip: float
    sampling_rate: float | None
    epoch_steps: int = 1
    regroup: bool = True
    noise_multiplier: float = 0.0
    share_variance: float | None = None
    coefficients: Array | None = None
    moving_clip: bool = False

    @classmethod
    def of(cls, plan: Plan, size: int, companies: int) -> Promise:
        """Of a release of `size` values in a cohort of `companies`. Raises: InputError for a plan without noise."""
        t, event = plan.training, release_event(plan, size, companies if plan.secure_step else None)
        if isinstance(event, SharedSkellamSteps):
            return cls(
                clip=plan.max_grad_norm,
                sampling_rate=event.sampling_rate,
                share_variance=event.variance / event.shares,
            )
        if isinstance(event, GaussianSteps):
            return cls(
                clip=plan.max_grad_norm,
                sampling_rate=event.sampling_rate,
                noise_multiplier=event.noise_multiplier,
                moving_clip=plan.clip_quantile is not None,
            )
        if isinstance(event, EpochGaussian):
            banded = None
            if t.noise_bands > 1:
                banded = BandedNoise(
                    steps=t.local_steps,
                    bands=t.noise_bands,
                    separation=t.epoch_steps,
                    noise_multiplier=event.noise_multiplier,
                )
            return cls(
                clip=plan.max_grad_norm,
                sampling_rate=None,
                epoch_steps=t.epoch_steps,
                regroup=banded is None,
                noise_multiplier=event.noise_multiplier,
                coefficients=None if banded is None else banded.coefficients,
                moving_clip=plan.clip_quantile is not None,
            )
        raise InputError("noise_multiplier", plan.noise_multiplier, "the plan promises no noise")


def sampler(plan: Plan, size: int, companies: int) -> Sampling:
    """The object that draws the batches of a release of this plan."""
    if plan.secure_step:
        return PoissonSampling(secure_step(plan, size, companies).sampling_rate)
    return mechanism(plan).sampling
