"""The plan: the part of the settings that a coordinator offers to companies.

Each company checks it against its own policy and refuses anything that its own rules do not allow.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

from pydantic import Field, model_validator

from ..blocks.families import ModelSettings
from ..blocks.settings import NoiseSettings, Part, require
from .privacy import LEAST_NOISE, MOST_COMPANIES, MOST_NOISE, SecureAggregationSettings, check_mechanism
from .training import TrainingSettings


class Plan(Part):
    """What the coordinator offers: enough to train, mask and account; nothing about where data lies."""

    # Printable: it stands in logs and ledgers.
    run: str = Field(max_length=128, pattern=r"^( |[^\p{C}\p{Z}])+$")
    model: ModelSettings
    noise: NoiseSettings
    training: TrainingSettings
    delta: float = Field(gt=0, lt=1)
    max_grad_norm: float = Field(ge=1e-6, le=1e6)
    clipping: Literal["flat", "per-layer", "automatic"] = "flat"
    clip_quantile: float | None = Field(None, gt=0, lt=1)
    noise_multiplier: float = Field(ge=0, le=MOST_NOISE)
    company_clip: float = Field(ge=1e-6, le=1e9)
    mode: Literal["local", "secure_step"] = "local"
    dropouts: int = Field(0, ge=0, le=MOST_COMPANIES)
    colluders: int = Field(0, ge=0, le=MOST_COMPANIES)
    secure_aggregation: SecureAggregationSettings

    @model_validator(mode="after")
    def _single_steps(self) -> Plan:
        z = self.noise_multiplier
        require(z == 0 or z >= LEAST_NOISE, "noise_multiplier", z, f"expected 0 or at least {LEAST_NOISE}")
        check_mechanism(self.training, self.mode, self.clip_quantile)
        return self

    @property
    def private(self) -> bool:
        return self.noise_multiplier > 0

    @property
    def secure_step(self) -> bool:
        """Whether companies add shares of one noise; without any noise there is nothing to share."""
        return self.private and self.mode == "secure_step"

    @property
    def bits(self) -> int:
        """Bits a value takes in the secure sum.

        With 22 a company of ten has 2^21 / 10 levels on each side of zero for a coordinate as large as the whole
        clip; an update of 10^6 values has 190 of them in a standard deviation of its noise, and rounding adds some
        millionths to that noise's variance.
        """
        return self.secure_aggregation.bits or (32 if self.secure_step else 22)

    def threshold(self, cohort: int) -> int | None:
        """The smallest set that may be opened, where the plan has a say."""
        asked = self.secure_aggregation.threshold
        return max(asked or 0, cohort - self.dropouts) if self.secure_step else asked

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON; companies sign up to exactly this plan."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    def default_company_clip(self, parameters: int) -> float:
        """A bound that an honest update of `parameters` values passes but for a negligible chance.

        The norm of the noise over the local steps concentrates at z C sqrt(steps P); 1.1 covers its tail.
        """
        t = self.training
        if self.secure_step:  # the shares of noise are added to what has been bounded
            return 2 * t.local_learning_rate * self.max_grad_norm
        noise = self.noise_multiplier * self.max_grad_norm * math.sqrt(t.local_steps * parameters)
        # The sum of clipped gradients stays below this for batches of up to twice the expected size.
        signal = 2 * t.expected_batch_size * self.max_grad_norm * t.local_steps
        return t.local_learning_rate * (1.1 * noise + signal) / t.expected_batch_size
