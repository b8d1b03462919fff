"""What an audit must not exceed: limits that a privacy officer sets beforehand, in TOML.

    inconclusive = "fails"           # or "passes"
    found = "fails"                  # a protected view that gave something away; or "passes", limits alone decide
    membership = 0.88                # the most that the lower end of an AUC may be, instead of `found`

    [[limit]]
    statement = "reconstruction"     # of these results: by statement, attack, adversary, view or statistic
    of = "high"                      # the figure itself, an end of its interval, or its worst decile
    most = 0.1

A claim that is refuted always fails. Limits are for protected views: of a raw gradient everything comes back.

Membership is told better than by a coin wherever there is less than infinite noise, and each epsilon allows some of
it, so that finding it is no failure by itself. 0.88 is what an epsilon of 8 at a delta of 1e-5 allows of any Gaussian
release (mu = 1.67).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings.load import parsed_toml, read_text, validated
from .results import Result, Statement

Of = Literal["value", "low", "high", "worst_decile"]


class Limit(BaseModel):
    """At most `most`, in the unit of the results that it names; without a name, all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statement: Statement | None = None
    attack: str | None = None
    adversary: str | None = None
    view: str | None = None
    statistic: str | None = None
    of: Of = "value"
    most: float = Field(allow_inf_nan=False)

    def concerns(self, result: Result) -> bool:
        names = ("statement", "attack", "adversary", "view", "statistic")
        return all(getattr(self, name) in (None, getattr(result, name)) for name in names)

    def exceeded(self, result: Result) -> str | None:
        """What to say of a result above this limit; none where it is within, or has no such figure."""
        figure = result.worst_decile if self.of == "worst_decile" else None
        if self.of != "worst_decile" and result.value is not None:
            figure = getattr(result.value, self.of)
        if figure is None or figure <= self.most:
            return None
        return f"{self.of.replace('_', ' ')} {figure:.4g} is above the limit of {self.most:g}"


class Gate(BaseModel):
    """The limits of an audit; the default has none but that nothing protected may be found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inconclusive: Literal["fails", "passes"] = "fails"
    found: Literal["fails", "passes"] = "fails"
    membership: float = Field(0.88, ge=0.5, le=1)
    limit: tuple[Limit, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Raises: InputError naming field, value and rule."""
        return validated(cls, parsed_toml("--gate", path, read_text("--gate", path)))

    def failures(self, result: Result) -> list[str]:
        """Why this result fails, in words; empty where it does not."""
        if result.outcome == "refuted":
            return [result.reason]
        if not result.protected:
            return []
        found = [self._found(result)]
        over = [limit.exceeded(result) for limit in self.limit if limit.concerns(result)]
        return [why for why in (*found, *over) if why is not None]

    def _found(self, result: Result) -> str | None:
        if result.statement == "property":
            return None  # what all of a company's examples have in common was never promised; a limit may judge it
        if result.statement == "membership":
            if result.unit != "auc" or result.value is None or result.value.low <= self.membership:
                return None
            return f"members are told from others with an AUC of at least {result.value.low:.3g}"
        gave = result.outcome in ("found", "partly found") and self.found == "fails"
        return result.outcome if gave else None

    def unused(self, results: tuple[Result, ...]) -> list[Limit]:
        """Limits that concern no result at all: they would pass for want of evidence."""
        return [limit for limit in self.limit if not any(limit.concerns(result) for result in results)]
