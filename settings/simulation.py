"""Everything that decides a run, the invented companies of a simulation among it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..blocks.families import ModelSettings, family
from ..blocks.settings import NoiseSettings, Part, require
from .contract import DataContract
from .privacy import PrivacySettings, SecureAggregationSettings, check_mechanism
from .training import PretrainingSettings, TrainingSettings

# How a simulation's messages travel; no part of the settings, since no result depends on it.
Transport = Literal["grid", "grpc"]


class DataSource(Part):
    """A built-in set, or a path on disk; see `client/data/` for the formats.

    `label` names the label column of a table of images, `columns` the value columns of a table of time
    series (none means all numeric ones).
    """

    source: str
    label: str = "label"
    columns: tuple[str, ...] | None = None
    contract: DataContract | None = None


class DataSettings(Part):
    """Public data for the coordinator, private data to be dealt to the companies."""

    public: DataSource = DataSource(source="digits")
    private: DataSource = DataSource(source="mnist-5k")
    match_contrast: bool = True
    test_examples: int = Field(
        2000, ge=1, description="of each held-out set at most so many are evaluated, spread evenly over it"
    )


class DropoutSettings(Part):
    """Injected failures: at every round each company is lost with probability `rate` in phase `phase`."""

    rate: float = Field(0.0, ge=0, lt=1)
    phase: Literal["keys", "train", "confirm", "unmask"] = "train"


class CompanySettings(Part):
    """Simulated companies; `alpha` is the Dirichlet concentration of their label shares."""

    count: int = Field(5, ge=1, le=100)
    alpha: float = Field(1.0, gt=0)
    holdout: float = Field(0.2, gt=0, lt=1)
    dropout: DropoutSettings = DropoutSettings()


class AuditSettings(Part):
    """Budget of the leakage audit; `block` none means the last one trained."""

    targets: int = Field(6, ge=2)
    aggregates: int = Field(4, ge=1)
    block: int | None = Field(None, ge=0)


class InfluenceSettings(Part):
    """Whether the coordinator looks, every round, at what each group's sum does to the model on public data.

    A group is flagged where the public metric would be better without its sum by more than `tolerance`, a share
    of the metric; "discard" also leaves it out.
    """

    leave_group_out: Literal["off", "flag", "discard"] = "off"
    tolerance: float = Field(0.1, gt=0)

    @property
    def discards(self) -> bool:
        return self.leave_group_out == "discard"


class Settings(Part):
    """Everything that decides a run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    seed: int = Field(0, ge=0, lt=2**57)  # a pretrained block's own is 64 times that
    device: str = "cpu"
    workers: int = Field(2, ge=1, le=256, description="companies simulated at once, a core each")
    model: ModelSettings = Field(default_factory=lambda: family("vit").settings.model_validate({}))
    noise: NoiseSettings = NoiseSettings()
    data: DataSettings = DataSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    companies: CompanySettings = CompanySettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    secure_aggregation: SecureAggregationSettings = SecureAggregationSettings()
    influence: InfluenceSettings = InfluenceSettings()
    audit: AuditSettings = AuditSettings()

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        from ..privacy.secure_aggregation import lowest_threshold

        check_mechanism(self.training, self.privacy.mode, self.privacy.clip_quantile, "privacy.")
        n, least = self.companies.count, self.secure_aggregation.minimum_cohort
        require(n >= least, "companies.count", n, f"must reach secure_aggregation.minimum_cohort={least}")
        t = self.secure_aggregation.threshold
        group = self.smallest_group
        colluders = self.privacy.colluders
        require(colluders < group, "privacy.colluders", colluders, f"sums are of {group} companies")
        floor = lowest_threshold(n, colluders)
        require(t is None or floor <= t <= n, "secure_aggregation.threshold", t, f"expected {floor} to {n}")
        if self.privacy.mode == "secure_step":
            dropouts = self.privacy.dropouts
            rule = f"sums are of {group} companies, of which privacy.colluders={colluders} are tolerated"
            require(dropouts + colluders < group, "privacy.dropouts", dropouts, rule)
            needed = group - dropouts
            require(t is None or t >= needed, "secure_aggregation.threshold", t, f"expected {needed} or more")
        b = self.audit.block
        require(
            b is None or b < self.model.blocks, "audit.block", b, f"the model has {self.model.blocks} blocks"
        )
        return self

    @property
    def largest_group(self) -> int:
        """How many companies a sum has at most."""
        return -(-self.companies.count // self._groups)

    @property
    def smallest_group(self) -> int:
        """How many companies a sum has where nobody is missing, at least."""
        return self.companies.count // self._groups

    @property
    def _groups(self) -> int:
        if self.training.assignment != "parallel":
            return 1
        return groups_of(self.companies.count, self.model.blocks, self.secure_aggregation.minimum_cohort)

    @property
    def total_steps(self) -> int:
        """DP-SGD steps of one company over the run."""
        return self.training.releases(self.model.blocks) * self.training.local_steps


def groups_of(companies: int, blocks: int, minimum_cohort: int) -> int:
    """Into how many groups `parallel` splits a cohort: one a block, as far as each stays large enough."""
    return min(blocks, companies // minimum_cohort)
