"""The plan: the part of the settings that a coordinator offers to companies.

Each company checks it against its own policy and refuses anything that its own rules do not allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ..blocks.families import ModelSettings
from ..blocks.pretrained.settings import by_digest
from ..blocks.settings import NoiseSettings, Part, require
from .drawn import DrawnCohorts
from .evaluation import EVALUATIONS, EvaluationSettings
from .load import validated
from .privacy import LEAST_NOISE, MOST_NOISE, MechanismSettings, SecureAggregationSettings, check_mechanism
from .run import RunSettings, releases_of
from .training import TrainingSettings


class _Job(Part):
    """What a company trains: the first fields of a plan, before those of its mechanism."""

    # Printable: it stands in logs and ledgers.
    run: str = Field(max_length=128, pattern=r"^( |[^\p{C}\p{Z}])+$")
    model: ModelSettings
    noise: NoiseSettings
    training: TrainingSettings

    @field_validator("model", mode="before")
    @classmethod
    def _without_a_folder(cls, raw: Any) -> Any:
        return by_digest(raw)


# The bases' order is that of the fields in JSON, from the last base on, and so decides the digest.
class Plan(MechanismSettings, _Job):
    """What the coordinator offers: enough to train, mask and account; nothing about where data lies."""

    noise_multiplier: float = Field(ge=0, le=MOST_NOISE)
    company_clip: float = Field(ge=1e-6, le=1e9)
    secure_aggregation: SecureAggregationSettings
    evaluation: EvaluationSettings | None = None
    drawn: DrawnCohorts | None = None

    @classmethod
    def of(
        cls,
        settings: RunSettings,
        run: str,
        *,
        edges: Sequence[float],
        noise_multiplier: float,
        company_clip: float,
        bits: int | None,
    ) -> Plan:
        """The plan of these settings, with what they may leave open.

        `edges`: where pretraining has cut the noise. `bits` none: see `bits` below.
        """
        found = {"noise_multiplier": noise_multiplier, "company_clip": company_clip}
        fields = {
            "run": run,
            "model": settings.model,
            # Companies get the cut that pretraining ended with, not the recipe for finding it.
            "noise": settings.noise.model_dump() | {"edges": edges},
            "training": settings.training,
            "secure_aggregation": settings.secure_aggregation.model_dump() | {"bits": bits},
            "evaluation": settings.evaluation,
            "drawn": settings.drawn,
        }
        mechanism = settings.privacy.model_dump(include=set(MechanismSettings.model_fields))
        return validated(cls, fields | mechanism | found)

    def changed(self, **values: object) -> Plan:
        """The plan with other values in some fields, validated."""
        return validated(Plan, self.model_dump() | values)

    @model_validator(mode="after")
    def _offers(self) -> Self:
        z = self.noise_multiplier
        others = self.run.endswith(EVALUATIONS)
        require(
            not others,
            "run",
            self.run,
            f"must not end in {EVALUATIONS!r}: so ledgers name a run's evaluations",
        )
        require(z == 0 or z >= LEAST_NOISE, "noise_multiplier", z, f"expected 0 or at least {LEAST_NOISE}")
        check_mechanism(self.training, self)
        self.training.check_blocks(self.model.blocks)
        self.model.check_draws("training.noise_draws", self.training.noise_draws)
        if self.evaluation is not None:
            require(
                z > 0,
                "evaluation",
                z,
                "needs noise in training too: nothing is private after a run without",
            )
            self.evaluation.check(self.model)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans without an evaluation, or without drawn cohorts, keep the digest that they had before there were
        any."""
        found: dict[str, Any] = dump(self)
        for name in ("evaluation", "drawn"):
            if getattr(self, name) is None:
                found.pop(name, None)
        return found

    @property
    def most_releases(self) -> int:
        """Updates of one company over the run; with drawn cohorts, of the company that is drawn most often."""
        return releases_of(self.training, self.model.blocks, self.drawn)

    def releases_of(self, company: str, names: Collection[str]) -> int:
        """As `most_releases`, of one company among those of these names: 0 if it is never drawn."""
        if self.drawn is None:
            return self.most_releases
        rounds = self.training.rounds + self.training.reserve
        return self.training.releases(self.model.blocks, self.drawn.rounds_of(company, names, rounds))

    @property
    def unit_words(self) -> str:
        """The unit of privacy, in the words of a report."""
        return self.training.unit or self.model.unit_words

    @property
    def trained_blocks(self) -> tuple[int, ...]:
        """The blocks that rounds train, in order."""
        return self.training.trained(self.model.blocks)

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
        return self.secure_aggregation.width(self.secure_step)

    def threshold(self, cohort: int) -> int | None:
        """The smallest set that may be opened, where the plan has a say."""
        asked = self.secure_aggregation.threshold
        return max(asked or 0, cohort - self.dropouts) if self.secure_step else asked

    def terms_digest(self) -> bytes:
        """As `digest`, whatever the run is called: the same for every run of this plan."""
        return hashlib.sha256(self.model_dump_json(exclude={"run"}).encode()).digest()

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON; companies sign up to exactly this plan."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()
