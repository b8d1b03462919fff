"""Public pretraining, and what every company does in a round."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..blocks.settings import MOST_BLOCKS, Part, chosen_of, require


class _OfBlocks(Part):
    """A training of all blocks of a model, or of some."""

    blocks: tuple[Annotated[int, Field(ge=0, lt=MOST_BLOCKS)], ...] | None = Field(
        None, description="the blocks that are trained; none: all. The others stay as they were"
    )

    @model_validator(mode="after")
    def _blocks_once(self) -> Self:
        if self.blocks is not None:
            rule, chosen = "expected at least one block, each once and in order", self.blocks
            require(bool(chosen) and [*chosen] == sorted({*chosen}), "blocks", chosen, rule)
        return self

    def trained(self, blocks: int) -> tuple[int, ...]:
        """The blocks that are trained, of a model of so many."""
        return chosen_of(self.blocks, blocks)

    def check_blocks(self, blocks: int, part: str = "training") -> None:
        """Refuse settings that train a block which a model of so many has not; `part`: what they are called."""
        last = self.trained(blocks)[-1]
        require(last < blocks, f"{part}.blocks", self.blocks, f"the model has the blocks 0 to {blocks - 1}")


class PretrainingSettings(_OfBlocks):
    """Public pretraining. `schedule`: every step trains all blocks ("together"), one at random ("random"), or the
    blocks one after another, `steps` each ("sequential"), each starting from the weights of the one before
    ("stacked")."""

    steps: int = Field(500, ge=0)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    rate_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="a block's learning rate is this share of the next one's, and the last one's is learning_rate "
        "(discriminative fine-tuning, Howard and Ruder 2018, section 3.2)",
    )
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["together", "random", "sequential", "stacked"] = "together"
    noise_draws: int = Field(1, ge=1, le=64)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0 means none")
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    folder: str | None = Field(
        None, description="take the model that `fedblocks pretrain` left in this folder, and train nothing"
    )

    @model_validator(mode="after")
    def _stacks_all(self) -> Self:
        rule = 'with schedule = "stacked" a block starts from the one before it; leave it out'
        require(self.schedule != "stacked" or self.blocks is None, "blocks", self.blocks, rule)
        return self

    def total_steps(self, blocks: int) -> int:
        """Steps of the whole training, of a model of so many blocks."""
        return self.steps * len(self.trained(blocks))

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings with neither have the digests that they had before blocks and rates could be chosen."""
        found: dict[str, Any] = dump(self)
        if self.blocks is None:
            found.pop("blocks", None)
        if self.rate_decay == 1.0:
            found.pop("rate_decay", None)
        return found


_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(_OfBlocks):
    """What every company does in a round, and how the coordinator applies the sum."""

    rounds: int = Field(60, ge=1, le=1_000_000)
    assignment: Literal["sequential", "parallel", "all"] = "sequential"
    interface: bool = Field(False, description="also train the blocks' embeddings and readouts")
    local_steps: int = Field(1, ge=1, le=10_000)
    local_learning_rate: float = Field(1.0, ge=1e-6, le=1e4)
    sampling_rate: float = Field(0.5, ge=1e-6, le=1)
    expected_batch_size: float = Field(
        400.0,
        ge=1,
        le=1e9,
        description="public divisor of every company's gradient sums, so that sizes stay private",
    )
    batches: Literal["poisson", "epochs"] = Field(
        "poisson",
        description="how a release's batches are drawn: every example joins each of them by chance, or belongs to "
        "one of 1/sampling_rate groups that take turns, which costs more privacy",
    )
    noise_bands: int = Field(
        1,
        ge=1,
        le=64,  # a step keeps so many vectors of noise
        description="epochs only: a step's noise is partly taken back over so many steps; 1 means never",
    )
    noise_draws: int = Field(2, ge=1, le=64)
    group: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^( |[^\p{C}\p{Z}])+$",
        description="the unit of privacy is all records with one value in this column, as a person's or document's; "
        "none: each example is one",
    )
    records_per_group: int = Field(
        1,
        ge=1,
        le=64,
        description="with a group: a release shows so many of a group's records, drawn anew, and clips their mean",
    )
    proximal: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="FedProx's mu: local steps are pulled back to the block that the round began with",
    )
    server_optimizer: Literal["fedavg", "fedadam"] = "fedadam"
    server_learning_rate: float = Field(0.01, gt=0, le=1e4)
    server_betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    evaluate_every: int = Field(1, ge=1)
    reserve: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="rounds that are planned, and paid for, beyond these: for rounds that are begun anew after "
        "companies have trained",
    )
    message_timeout: float = Field(600.0, gt=0, le=1e6, description="seconds to wait for a phase's replies")

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch: how many groups its examples are dealt into."""
        return round(1 / self.sampling_rate)

    @model_validator(mode="after")
    def _whole_epochs(self) -> TrainingSettings:
        if self.batches == "epochs":
            steps = self.epoch_steps
            rule = (
                f"must be a multiple of the {steps} steps of an epoch, of which a part costs as much as all"
            )
            require(self.local_steps % steps == 0, "local_steps", self.local_steps, rule)
            require(
                self.noise_bands <= steps,
                "noise_bands",
                self.noise_bands,
                f"must be at most {steps}, an epoch",
            )
        else:
            require(self.noise_bands == 1, "noise_bands", self.noise_bands, 'needs batches = "epochs"')
        return self

    @model_validator(mode="after")
    def _of_a_group(self) -> Self:
        records = self.records_per_group
        rule = "needs training.group, the column that says whose a record is"
        require(records == 1 or self.group is not None, "records_per_group", records, rule)
        return self

    @property
    def unit(self) -> str | None:
        """The unit of privacy in words, where it is a group."""
        if self.group is None:
            return None
        return f"one group (all records with the same value in column {self.group!r})"

    @model_validator(mode="after")
    def _pulls_something(self) -> Self:
        if self.proximal > 0:
            rule = "must be at least 2 with training.proximal: the first step starts where it is pulled to"
            require(self.local_steps > 1, "local_steps", self.local_steps, rule)
            require(
                self.noise_bands == 1, "noise_bands", self.noise_bands, "must be 1 with training.proximal"
            )
        return self

    def releases(self, blocks: int, rounds: int | None = None) -> int:
        """Updates of one company over the run, its reserve included: one a round, or with "all" one a round and
        block. `rounds`: those that it takes part in, where these are not all."""
        taken = self.rounds + self.reserve if rounds is None else rounds
        return taken * (len(self.trained(blocks)) if self.assignment == "all" else 1)

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan with nothing of these is the plan that it was before there were any, by its digest too."""
        found: dict[str, Any] = dump(self)
        for name in ("reserve", "proximal", "group", "blocks"):
            if not getattr(self, name):
                found.pop(name, None)
        if self.group is None:
            found.pop("records_per_group", None)
        return found
