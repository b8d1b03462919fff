"""What decides a run for its coordinator, who holds public data alone and expects companies that it did not make."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..blocks.families import ModelSettings, family
from ..blocks.settings import NoiseSettings, Part, require
from .built_in import CLASS_NAMES
from .contract import DataContract
from .drawn import DrawnCohorts
from .evaluation import EvaluationSettings
from .privacy import MOST_COMPANIES, PrivacySettings, SecureAggregationSettings, check_mechanism
from .training import PretrainingSettings, TrainingSettings


class DataSource(Part):
    """A built-in set, or a path on disk; see `client/data/` for the formats.

    `label` names the label column of a table of images, `columns` the value columns of a table of time
    series (none means all numeric ones).
    """

    source: str
    label: str = "label"
    columns: tuple[str, ...] | None = None
    contract: DataContract | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in order, where the contract or the built-in source names them."""
        told: tuple[str, ...] | None = getattr(self.contract, "labels", None)
        return CLASS_NAMES.get(self.source) if told is None else told


class PublicDataSettings(Part):
    """The coordinator's public data, for pretraining and evaluation."""

    public: DataSource = DataSource(source="digits")
    match_contrast: bool = True
    test_examples: int = Field(
        2000, ge=1, description="of each held-out set at most so many are evaluated, spread evenly over it"
    )


class CohortSettings(Part):
    """How many companies the coordinator expects, and how many of them take part in a round."""

    count: int = Field(5, ge=1, le=MOST_COMPANIES)
    per_round: int | None = Field(
        None,
        ge=1,
        le=MOST_COMPANIES,
        description="simulations only: drawn anew each round; none: all take part",
    )

    @property
    def cohort(self) -> int:
        """Companies that take part in a round."""
        return self.count if self.per_round is None else self.per_round

    @property
    def cohort_field(self) -> str:
        return f"companies.{'count' if self.per_round is None else 'per_round'}"


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


class GuardSettings(Part):
    """What becomes of a run whose loss on the coordinator's public data rises past `limit` times the public model's.

    "flag": a warning, and a mark in metrics and report, of rounds that are evaluated. "stop": it is looked at after
    every round; one that rises past the limit is discarded, and ends the run.
    """

    public_loss: Literal["off", "flag", "stop"] = "off"
    limit: float = Field(1.2, gt=1, le=1e6)

    @property
    def stops(self) -> bool:
        return self.public_loss == "stop"


class RunSettings(Part):
    """Everything that decides a run but the companies' own data; `SimulationSettings` adds invented companies."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    seed: int = Field(0, ge=0, lt=2**57)  # a pretrained block's own is 64 times that
    device: str = "cpu"
    model: ModelSettings = Field(default_factory=lambda: family("vit").settings.model_validate({}))
    noise: NoiseSettings = NoiseSettings()
    data: PublicDataSettings = PublicDataSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    companies: CohortSettings = CohortSettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    secure_aggregation: SecureAggregationSettings = SecureAggregationSettings()
    influence: InfluenceSettings = InfluenceSettings()
    guard: GuardSettings = GuardSettings()
    evaluation: EvaluationSettings | None = None
    failed_rounds: int = Field(
        3, ge=1, description="rounds that may fail in a row before a run with real companies stops"
    )
    releases: bool | None = Field(
        None,
        description="keep every opened sum in releases/, P * bits / 8 bytes each; none: in a simulation alone",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from ..privacy.secure_aggregation import MAX_COHORT, lowest_threshold

        check_mechanism(self.training, self.privacy, "privacy.")
        for part, draws in (("pretraining", self.pretraining), ("training", self.training)):
            draws.check_blocks(self.model.blocks, part)
            self.model.check_draws(f"{part}.noise_draws", draws.noise_draws)
        self._check_pretraining()
        if self.evaluation is not None:
            epsilon = self.privacy.epsilon
            require(
                epsilon is not None, "evaluation", epsilon, "needs privacy.epsilon, which pays for it too"
            )
            self.evaluation.check(self.model)
        per_round, count = self.companies.per_round, self.companies.count
        rule = f"more than companies.count={count}"
        require(per_round is None or per_round <= count, "companies.per_round", per_round, rule)
        rule = "with cohorts that are drawn each round there is no [evaluation] by the companies"
        require(per_round is None or self.evaluation is None, "companies.per_round", per_round, rule)
        n, least = self.companies.cohort, self.secure_aggregation.minimum_cohort
        rule = f"must reach secure_aggregation.minimum_cohort={least}"
        require(n >= least, self.companies.cohort_field, n, rule)
        rule = f"a secure sum has at most {MAX_COHORT} companies; set companies.per_round"
        require(n <= MAX_COHORT, self.companies.cohort_field, n, rule)
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
        return self

    def _check_pretraining(self) -> None:
        own, model, noise = self.pretraining, self.model, self.noise
        rule = "a block of a pretrained model has weights of its own; expected another schedule"
        require(own.schedule != "stacked" or model.blocks_alike, "pretraining.schedule", own.schedule, rule)
        # Of classes there is a closed form.
        measured = noise.partition == "equi-information" and model.kind.target_classes is None
        whole = own.folder is not None or len(own.trained(model.blocks)) == model.blocks
        rule = (
            'noise.partition = "equi-information" is fitted to the loss of all: train all, or set noise.edges'
        )
        fits = whole or not measured or noise.edges is not None
        require(fits, "pretraining.blocks", own.blocks, rule)

    @property
    def largest_group(self) -> int:
        """How many companies a sum has at most."""
        return -(-self.companies.cohort // self._groups)

    @property
    def smallest_group(self) -> int:
        """How many companies a sum has where nobody is missing, at least."""
        return self.companies.cohort // self._groups

    @property
    def _groups(self) -> int:
        if self.training.assignment != "parallel":
            return 1
        return groups_of(
            self.companies.cohort,
            len(self.training.trained(self.model.blocks)),
            self.secure_aggregation.minimum_cohort,
        )

    @property
    def drawn(self) -> DrawnCohorts | None:
        """How each round's companies are drawn; none where all take part."""
        companies = self.companies
        if companies.per_round is None:
            return None
        return DrawnCohorts(seed=self.seed, companies=companies.count, per_round=companies.per_round)

    @property
    def most_releases(self) -> int:
        """Updates of one company over the run; with drawn cohorts, of the company that is drawn most often."""
        return releases_of(self.training, self.model.blocks, self.drawn)

    @property
    def total_steps(self) -> int:
        """DP-SGD steps of one company over the run."""
        return self.most_releases * self.training.local_steps


def releases_of(training: TrainingSettings, blocks: int, drawn: DrawnCohorts | None) -> int:
    """Updates that a company makes in a run at most."""
    rounds = training.rounds + training.reserve
    return training.releases(blocks, None if drawn is None else drawn.most_rounds(rounds))


def groups_of(companies: int, blocks: int, minimum_cohort: int) -> int:
    """Into how many groups `parallel` splits a cohort: one a block, as far as each stays large enough."""
    return min(blocks, companies // minimum_cohort)
