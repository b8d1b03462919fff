"""The company's own rules, by which it accepts or refuses a coordinator's plan.

`policy.toml` is in the company's home folder and is written by the company. A plan that breaks a rule is refused
before anything is charged.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..blocks.size import parameters_of
from ..errors import PrivacyError
from ..protocol.names import COMPANY_NAME
from ..settings import DataKind, Plan, parsed_toml, read_text, validated

LARGEST_MODEL = 100_000_000


class Policy(BaseModel):
    """Ceilings and floors of one company."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    company: str = Field(pattern=COMPANY_NAME)
    epsilon_ceiling: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    composition: Literal["runs", "renyi"] = Field(
        "runs",
        description="how runs compose, fixed when the ledger is created: runs, the sum of each whole run's epsilon; "
        "or renyi, release by release by a Renyi filter, better for many small runs",
    )
    data: DataKind
    minimum_cohort: int = Field(3, ge=3)
    minimum_noise_multiplier: float = Field(0.0, ge=0)
    largest_max_grad_norm: float = Field(1e3, ge=1e-6, le=1e6, description="also of an adaptive clip")
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
    allow_interface: bool = Field(False, description="let a plan train the input side, which leaks most")
    i_accept_no_dp: bool = False
    allow_shared_noise: bool = Field(
        False, description="let a plan count on other companies' shares of noise, and on secure aggregation"
    )
    least_colluders: int = Field(
        1, ge=0, description="companies that may collude with the coordinator against this one"
    )
    largest_predicted_gain: float | None = Field(
        None,
        description="dB by which the best attack on one release may be expected to come closer to one of the "
        "company's examples; predicted of a few before each training, which is refused above it: one bit of the data",
    )
    device: str = "cpu"
    memory_mb: int = Field(
        512, ge=1, description="megabytes that a training pass may keep; less means smaller passes"
    )
    answer_seconds: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="after which the answer to a join or a training leaves, however long the work took",
    )
    simulation_seed: int | None = Field(
        None, description="simulations only: whoever knows it can subtract the noise"
    )

    def check(self, plan: Plan) -> None:
        """Check a plan against this company's rules.

        Raises:
            PrivacyError: names the first rule that the plan breaks.
        """
        if not plan.private and not self.i_accept_no_dp:
            raise PrivacyError("the plan adds no noise and this company's policy does not accept that")
        if plan.private and plan.noise_multiplier < self.minimum_noise_multiplier:
            floor = self.minimum_noise_multiplier
            raise PrivacyError(f"noise_multiplier={plan.noise_multiplier} is below this company's {floor}")
        if plan.secure_step and not self.allow_shared_noise:
            raise PrivacyError("the plan's noise is shared, which this company's policy does not allow")
        if plan.colluders < self.least_colluders:
            raise PrivacyError(f"colluders={plan.colluders} is below this company's {self.least_colluders}")
        if plan.max_grad_norm > self.largest_max_grad_norm:
            limit = self.largest_max_grad_norm
            raise PrivacyError(f"max_grad_norm={plan.max_grad_norm} is above this company's {limit}")
        parameters = parameters_of(plan.model)
        if parameters > self.largest_model:
            raise PrivacyError(f"{parameters} parameters, this company allows {self.largest_model}")
        releases = plan.training.releases(plan.model.blocks)
        if releases * plan.training.local_steps > self.most_steps:
            raise PrivacyError(f"more local steps than this company's {self.most_steps}")
        # Compared with the policy's declaration, never with the data: an answer must not reveal the data.
        if plan.model.kind != self.data:
            raise PrivacyError(f"the plan is for other data: {plan.model.kind}")
        if plan.training.interface and not self.allow_interface:
            raise PrivacyError("the plan trains input embeddings, which this company's policy does not allow")
        if plan.delta > self.delta:
            raise PrivacyError(f"delta={plan.delta} is above this company's delta={self.delta}")
        if plan.secure_aggregation.minimum_cohort < self.minimum_cohort:
            offered = plan.secure_aggregation.minimum_cohort
            raise PrivacyError(f"minimum_cohort={offered} is below this company's {self.minimum_cohort}")


def load_policy(path: Path) -> Policy:
    """Read policy.toml; InputError if it is missing or not valid."""
    return _parsed(path, read_text("policy", path))


@lru_cache(maxsize=128)
def _parsed(path: Path, text: str) -> Policy:
    return validated(Policy, parsed_toml("policy", path, text))
