"""The company's own rules, by which it accepts or refuses a coordinator's plan.

`policy.toml` is in the company's home folder and is written by the company (`fedblocks company init` makes a first
one, see `policy_file`). It is read with every message: a rule that is tightened while a run goes on ends the run for
this company. A plan that breaks a rule is refused before anything is charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..blocks.pretrained import places
from ..blocks.pretrained.settings import PretrainedSettings
from ..blocks.settings import require
from ..blocks.size import parameters_of
from ..errors import InputError, PolicyRefusal
from ..protocol.names import COMPANY_NAME
from ..settings import DataKind, Plan, is_zone, parsed_toml, read_text, validated

LARGEST_MODEL = 100_000_000


_Clock = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Policy(BaseModel):
    """Ceilings and floors of one company. The descriptions are the comments in `policy.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    company: str = Field(
        pattern=COMPANY_NAME,
        description="this company's name, as in its certificate and in everybody's roster.toml",
    )
    epsilon_ceiling: float = Field(
        ge=0, description="epsilon of all runs together, over the ledger's whole life; no release passes it"
    )
    epsilon_ceiling_run: float | None = Field(
        None, ge=0, description="epsilon that one run may add to the ledger"
    )
    epsilon_ceiling_year: float | None = Field(
        None, ge=0, description="epsilon that may be added to the ledger within any 365 days"
    )
    delta: float = Field(
        gt=0,
        lt=1,
        description="the chance that is granted beside epsilon; choose it well below 1 / your number of examples. "
        "Fixed when the ledger is created",
    )
    composition: Literal["runs", "renyi"] = Field(
        "runs",
        description="how runs compose, fixed when the ledger is created: runs, the sum of each whole run's epsilon; "
        "or renyi, release by release by a Renyi filter, better for many small runs",
    )
    data: DataKind = Field(
        description="the shapes of one example in data.npz; `fedblocks company import` writes this table"
    )
    minimum_cohort: int = Field(
        3,
        ge=3,
        description="companies that a secure sum must have; what this company sends is opened in such a sum alone, "
        "which nothing can switch off",
    )
    least_colluders: int = Field(
        1, ge=0, description="companies that may collude with the coordinator against this one"
    )
    minimum_noise_multiplier: float = Field(
        0.0, ge=0, description="least noise of a step, in units of the clip max_grad_norm"
    )
    largest_max_grad_norm: float = Field(
        1e3,
        ge=1e-6,
        le=1e6,
        description="largest clip of an example's gradient (its Euclidean norm), also of an adaptive clip",
    )
    i_accept_no_dp: bool = Field(
        False, description="accept plans without noise: no differential privacy at all"
    )
    allow_shared_noise: bool = Field(
        False, description="let a plan count on other companies' shares of noise, and on secure aggregation"
    )
    group: str | None = Field(
        None,
        description="the only unit of privacy that plans may have: all records with one value in this column of the "
        "data, as a person's; not set: any unit, also a single record",
    )
    allow_interface: bool = Field(False, description="let a plan train the input side, which leaks most")
    plans: tuple[_Digest, ...] | None = Field(
        None,
        description="the only plans that are accepted, by the digest that `fedblocks company check HOME --plan FILE` "
        "prints; it does not depend on a run's name",
    )
    shared_states: tuple[_Digest, ...] | None = Field(
        None,
        description="the only shared states (the model's fixed tables) that are accepted, by the digest that "
        "company.log names where one is refused",
    )
    pretrained: tuple[str, ...] = Field(
        (),
        description="folders of the converted models that this company lets a plan adapt, as `fedblocks convert` "
        "makes them; a plan names one by the digest of its card, and nothing of it is ever sent",
    )
    largest_model: int = Field(
        LARGEST_MODEL,
        ge=1,
        description="parameters of all blocks, embeddings, readouts and fixed tables included",
    )
    most_steps: int = Field(
        1_000_000, ge=1, description="local steps over the whole run, repeated rounds included"
    )
    most_joins: int = Field(20, ge=1, description="joins a day (UTC), refused ones included")
    most_new_plans: int = Field(
        3,
        ge=1,
        description="of these, with plans not seen that day: each answer reveals something of what was spent",
    )
    most_attempts: int = Field(
        10,
        ge=1,
        description="sessions of a run a day (UTC), as a multiple of the releases that its plan has and 1000 at "
        "least; a round that fails and is begun anew is another session",
    )
    most_rounds_a_day: int | None = Field(
        None, ge=1, description="trainings a day (UTC), of all runs; further rounds wait for the next day"
    )
    hours: tuple[_Clock, _Clock] | None = Field(
        None, description="the time of day, from and until, in which this company trains; may pass midnight"
    )
    zone: str = Field("UTC", description="the time zone of `hours`, as Europe/Berlin")
    approval: Literal["never", "first", "always"] = Field(
        "first",
        description="which runs wait for a person of this company: never, any run that keeps these rules begins; "
        "first, the first run of a plan; always, each run",
    )
    largest_predicted_gain: float | None = Field(
        None,
        description="dB by which the best attack on one release may be expected to come closer to one of the "
        "company's examples; predicted of a few before each training. Above it the run is refused from then "
        "on, since each answer tells one bit of the data",
    )
    device: str = Field("cpu", description="where training runs: cpu, or cuda:0")
    threads: int | None = Field(None, ge=1, le=1024, description="processor cores that a training may use")
    memory_mb: int = Field(
        512, ge=1, description="megabytes that a training pass may keep; less means smaller passes"
    )
    prefix_cache_mb: int = Field(
        1024,
        ge=0,
        description="megabytes on this disk for what blocks that a run leaves as they are make of the examples, so "
        "that a round does not compute it again; kept until the run is over; 0 keeps nothing",
    )
    answer_seconds: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds after which the answer to a join, to a round's keys or a training leaves, however long "
        "the work took",
    )
    simulation_seed: int | None = Field(
        None, description="simulations only: whoever knows it can subtract the noise"
    )

    @model_validator(mode="after")
    def _hours(self) -> Self:
        require(is_zone(self.zone), "zone", self.zone, "no such time zone; expected as Europe/Berlin")
        if self.hours is not None:
            require(self.hours[0] != self.hours[1], "hours", self.hours, "from and until must differ")
        return self

    def open_at(self, when: float) -> bool:
        """Whether `when`, in seconds since 1970, lies within `hours`."""
        if self.hours is None:
            return True
        first, last = self.hours
        now = datetime.fromtimestamp(when, ZoneInfo(self.zone)).strftime("%H:%M")
        return first <= now < last if first < last else now >= first or now < last

    def check(self, plan: Plan) -> None:
        """Check a plan against this company's rules.

        Raises:
            PolicyRefusal: names the first rule that the plan breaks.
        """
        for broken in self.broken(plan):
            raise broken

    def broken(self, plan: Plan) -> Iterator[PolicyRefusal]:
        """Each rule that the plan breaks."""
        if plan.drawn is not None and self.simulation_seed is None:
            text = (
                "the plan draws a cohort for each round, which is for simulations alone: this run's cohorts "
            )
            yield PolicyRefusal(
                "simulation_seed", text + "would differ, and their difference isolate a company"
            )
            return
        if isinstance(plan.model, PretrainedSettings):
            try:
                self._check_pretrained(plan.model)
            except InputError as error:
                yield PolicyRefusal(
                    "pretrained", f"{error}; this company's policy names folders in `pretrained`"
                )
                return  # without it nothing is known of the model
        if not plan.private and not self.i_accept_no_dp:
            text = "the plan adds no noise and this company's policy does not accept that"
            yield PolicyRefusal("i_accept_no_dp", text)
        if plan.private and plan.noise_multiplier < self.minimum_noise_multiplier:
            floor = self.minimum_noise_multiplier
            text = f"noise_multiplier={plan.noise_multiplier} is below this company's {floor}"
            yield PolicyRefusal("minimum_noise_multiplier", text)
        evaluation = plan.evaluation
        if evaluation is not None and evaluation.noise_multiplier < self.minimum_noise_multiplier:
            floor = self.minimum_noise_multiplier
            text = (
                f"evaluation.noise_multiplier={evaluation.noise_multiplier} is below this company's {floor}"
            )
            yield PolicyRefusal("minimum_noise_multiplier", text)
        if plan.secure_step and not self.allow_shared_noise:
            text = "the plan's noise is shared, which this company's policy does not allow"
            yield PolicyRefusal("allow_shared_noise", text)
        if plan.colluders < self.least_colluders:
            text = f"colluders={plan.colluders} is below this company's {self.least_colluders}"
            yield PolicyRefusal("least_colluders", text)
        if plan.max_grad_norm > self.largest_max_grad_norm:
            limit = self.largest_max_grad_norm
            text = f"max_grad_norm={plan.max_grad_norm} is above this company's {limit}"
            yield PolicyRefusal("largest_max_grad_norm", text)
        parameters = parameters_of(plan.model)
        if parameters > self.largest_model:
            text = f"{parameters} parameters, this company allows {self.largest_model}"
            yield PolicyRefusal("largest_model", text)
        releases = plan.most_releases
        if releases * plan.training.local_steps > self.most_steps:
            yield PolicyRefusal("most_steps", f"more local steps than this company's {self.most_steps}")
        # Compared with the policy's declaration, never with the data: an answer must not reveal the data.
        if plan.model.kind != self.data:
            yield PolicyRefusal("data", f"the plan is for other data: {plan.model.kind}")
        if self.group is not None and plan.training.group != self.group:
            text = (
                f"the plan protects {plan.unit_words}, this company asks for groups by column {self.group!r}"
            )
            yield PolicyRefusal("group", text)
        if plan.training.interface and not self.allow_interface:
            text = "the plan trains input embeddings, which this company's policy does not allow"
            yield PolicyRefusal("allow_interface", text)
        if plan.delta > self.delta:
            yield PolicyRefusal("delta", f"delta={plan.delta} is above this company's delta={self.delta}")
        if plan.secure_aggregation.minimum_cohort < self.minimum_cohort:
            offered = plan.secure_aggregation.minimum_cohort
            text = f"minimum_cohort={offered} is below this company's {self.minimum_cohort}"
            yield PolicyRefusal("minimum_cohort", text)
        if self.plans is not None and plan.terms_digest().hex() not in self.plans:
            text = f"the plan {plan.terms_digest().hex()} is not one of this company's plans"
            yield PolicyRefusal("plans", text)

    def know_pretrained(self) -> None:
        """Let this process know the company's converted models. Raises: InputError where a folder is none."""
        for folder in self.pretrained:
            places.register(Path(folder))

    def _check_pretrained(self, model: PretrainedSettings) -> None:
        """Raises: InputError unless the model is one of `pretrained`, with the sizes of its card."""
        accepted = [places.register(Path(folder)) for folder in self.pretrained]
        if model.pretrained not in accepted:
            rule = "is the converted model that the plan adapts, and not one of this company's"
            raise InputError("model.pretrained", model.pretrained, rule)
        model.check_sizes()

    def check_shared(self, digest: bytes) -> None:
        """Check the shared state of a join; PolicyRefusal unless the company accepts it."""
        if self.shared_states is not None and digest.hex() not in self.shared_states:
            text = f"the shared state {digest.hex()} is not one of this company's shared_states"
            raise PolicyRefusal("shared_states", text)


def load_policy(path: Path) -> Policy:
    """Read policy.toml; InputError if it is missing or not valid."""
    return _parsed(path, read_text("policy", path))


@lru_cache(maxsize=128)
def _parsed(path: Path, text: str) -> Policy:
    raw = parsed_toml("policy", path, text)
    if "data" not in raw:
        rule = "has no [data] yet: `fedblocks company import` reads your data and writes it"
        raise InputError("policy", str(path), rule)
    return validated(Policy, raw)
