"""The guarantee that is asked for, and the secure sum that carries it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..blocks.settings import Part, require
from .training import TrainingSettings

# In units of the sensitivity: less counts as none, its epsilon is in the thousands, and more drowns every update.
LEAST_NOISE, MOST_NOISE = 0.01, 1e6
MOST_COMPANIES = 10_000


class PrivacySettings(Part):
    """Example-level differential privacy of each company, add/remove adjacency.

    `epsilon` none needs `i_accept_no_dp = true`; the report then opens with that.
    `noise_multiplier` is calibrated from epsilon when it is not given.

    `mode`: "local", every company adds its full noise and needs to trust nobody; "secure_step", every step's sum
    is opened alone and companies add shares of one noise. The shares suffice while at most `dropouts` companies
    are missing and `colluders` tell the coordinator theirs, or add none.
    """

    mode: Literal["local", "secure_step"] = "local"
    dropouts: int = Field(0, ge=0, le=MOST_COMPANIES)
    colluders: int = Field(1, ge=0, le=MOST_COMPANIES)
    epsilon: float | None = Field(8.0, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=1e-6, le=1e6)
    clipping: Literal["flat", "per-layer", "automatic"] = "flat"
    clip_quantile: float | None = Field(
        None, gt=0, lt=1, description="let the clip follow this quantile of norms over a round's local steps"
    )
    noise_multiplier: float | None = Field(None, ge=LEAST_NOISE, le=MOST_NOISE)
    company_clip: float | None = Field(None, ge=1e-6, le=1e9)
    i_accept_no_dp: bool = False

    @model_validator(mode="after")
    def _accepted(self) -> PrivacySettings:
        require(
            self.epsilon is not None or self.i_accept_no_dp,
            "epsilon",
            self.epsilon,
            "a run without differential privacy needs i_accept_no_dp = true",
        )
        require(
            self.epsilon is not None or self.noise_multiplier is None,
            "noise_multiplier",
            self.noise_multiplier,
            "needs an epsilon to be accounted against",
        )
        return self


class SecureAggregationSettings(Part):
    """`threshold` none means the smallest allowed, floor(2n/3) + 1.

    `bits` none means 22 (see `Plan.bits`), or for shares of one noise as few as its levels fit in, up to 32.
    """

    minimum_cohort: int = Field(3, ge=3, le=MOST_COMPANIES)
    threshold: int | None = Field(None, ge=2, le=MOST_COMPANIES)
    bits: int | None = Field(None, ge=16, le=32)


def check_mechanism(
    training: TrainingSettings,
    mode: Literal["local", "secure_step"],
    clip_quantile: float | None,
    part: str = "",
) -> None:
    """Refuse combinations that no mechanism has; `part`: where the quantile stands, as "privacy."."""
    q, bands = clip_quantile, training.noise_bands
    require(bands == 1 or q is None, "training.noise_bands", bands, "needs a clip that stays")
    if mode == "secure_step":
        steps, batches = training.local_steps, training.batches
        require(steps == 1, "training.local_steps", steps, "must be 1: shares of noise protect single steps")
        require(batches == "poisson", "training.batches", batches, "needs mode local")
        require(q is None, f"{part}clip_quantile", q, "needs mode local: sums of shares have one clip")
