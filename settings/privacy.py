"""The guarantee that is asked for, and the secure sum that carries it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..blocks.settings import Part, require
from .training import TrainingSettings

# In units of the sensitivity: less counts as none, its epsilon is in the thousands, and more drowns every update.
LEAST_NOISE, MOST_NOISE = 0.01, 1e6
MOST_COMPANIES = 10_000


_Share = Annotated[float, Field(gt=0, lt=1)]
_Norm = Annotated[float, Field(ge=1e-6, le=1e6)]
_Companies = Annotated[int, Field(ge=0, le=MOST_COMPANIES)]


class MechanismSettings(Part):
    """What a release's mechanism is: what a coordinator asks for and what its plan offers have this in common.

    `mode`: "local", every company adds its full noise and needs to trust nobody; "secure_step", every step's sum
    is opened alone and companies add shares of one noise. The shares suffice while at most `dropouts` companies
    are missing and `colluders` tell the coordinator theirs, or add none.
    """

    delta: _Share
    max_grad_norm: _Norm
    clipping: Literal["flat", "per-layer", "automatic"] = "flat"
    clip_quantile: _Share | None = Field(
        None, description="let the clip follow this quantile of norms over a round's local steps"
    )
    noise_multiplier: float | None = Field(None, ge=LEAST_NOISE, le=MOST_NOISE)
    company_clip: float | None = Field(None, ge=1e-6, le=1e9)
    mode: Literal["local", "secure_step"] = "local"
    dropouts: _Companies = 0
    colluders: _Companies = 0


class PrivacySettings(MechanismSettings):
    """Example-level differential privacy of each company, add/remove adjacency.

    `epsilon` none needs `i_accept_no_dp = true`; the report then opens with that.
    `noise_multiplier` is calibrated from epsilon when it is not given, `company_clip` set by the noise.
    """

    epsilon: float | None = Field(8.0, gt=0)
    delta: _Share = 1e-5
    max_grad_norm: _Norm = 1.0
    colluders: _Companies = 1
    i_accept_no_dp: bool = False

    @model_validator(mode="after")
    def _accepted(self) -> Self:
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

    def width(self, secure_step: bool) -> int:
        """Bits of a value, of a sum of updates or of one that companies noise together."""
        return self.bits or (32 if secure_step else 22)


def check_mechanism(training: TrainingSettings, mechanism: MechanismSettings, part: str = "") -> None:
    """Refuse combinations that no mechanism has; `part`: where the mechanism's fields stand, as "privacy."."""
    q, bands = mechanism.clip_quantile, training.noise_bands
    require(bands == 1 or q is None, "training.noise_bands", bands, "needs a clip that stays")
    if mechanism.mode == "secure_step":
        steps, batches = training.local_steps, training.batches
        require(steps == 1, "training.local_steps", steps, "must be 1: shares of noise protect single steps")
        require(batches == "poisson", "training.batches", batches, "needs mode local")
        require(q is None, f"{part}clip_quantile", q, "needs mode local: sums of shares have one clip")
