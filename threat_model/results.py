"""What every attack reports, as data: one schema, stored in `audit.json`. Sentences are made by the report alone."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .intervals import Estimate

Statement = Literal[
    "reconstruction",
    "membership",
    "property",
    "extraction",
    "certificate",
    "conformance",
    "estimate",
    "prediction",
]
"""What a result speaks of. A certificate, a conformance check and an estimate of epsilon are never mixed."""

Outcome = Literal["found", "partly found", "not found", "inconclusive", "not applicable", "refuted", "held"]
"""`found` to `not found`: of an attack. `refuted`, `held`: of a claim that was tested (an epsilon, a mechanism).
`inconclusive`: the budget ran out or the control failed. `not applicable`: `reason` says why."""

FAILED_CONTROL = "the control failed"
"""How the reason begins where it did."""


class Result(BaseModel):
    """One attack on one view, or one test of one claim.

    `control`: the same attack where there is no noise; `baseline`: the best guess without the release (prior only,
    random, blind); `ceiling`: what no attack on this mechanism can pass. `protected`: whether the plan promises
    anything of the view; of a raw gradient it does not. `wins_at`: the noise multiplier at which this attack starts
    to win on this model, none where that was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    attack: str
    adversary: str
    view: str
    statement: Statement
    statistic: str
    unit: Literal["share", "dB", "epsilon", "auc", "number"]
    outcome: Outcome
    reason: str = ""
    protected: bool = True
    block: int | None = Field(None, ge=0)
    company: str | None = None
    value: Estimate | None = None
    worst_decile: float | None = None
    control: Estimate | None = None
    baseline: Estimate | None = None
    ceiling: float | None = None
    wins_at: float | None = None
    budget: dict[str, float | int | str] = {}
    seconds: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _speaks(self) -> Self:
        silent = self.outcome in ("not applicable", "inconclusive", "refuted")
        if silent and not self.reason:
            raise ValueError(f"{self.outcome} needs a reason")
        if self.value is None and self.outcome not in ("not applicable", "inconclusive"):
            raise ValueError(f"{self.outcome} needs a value")
        return self

    @property
    def question(self) -> tuple[str, ...]:
        """What several attacks may ask of one view, each in its way."""
        return (self.statement, self.adversary, self.view, str(self.block), str(self.company))

    @property
    def given_away(self) -> bool:
        """Whether something was found that no guarantee speaks of: a property of a company as a whole."""
        return self.statement == "property" and self.outcome == "found" and self.protected

    @property
    def key(self) -> str:
        """What names this result in an audit, a gate and a resumed run."""
        place = "" if self.block is None else f"/block-{self.block}"
        who = "" if self.company is None else f"/{self.company}"
        return f"{self.attack}/{self.view}{place}{who}/{self.statistic}"
