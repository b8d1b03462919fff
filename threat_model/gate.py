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

from ..errors import InputError
from ..settings.load import parsed_toml, read_text, validated
from .adversaries import ADVERSARIES
from .attacks import attacks
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

    def figure(self, result: Result) -> float | None:
        """What of a result is held against this limit; none where it has no such figure."""
        if self.of == "worst_decile":
            return result.worst_decile
        return None if result.value is None else float(getattr(result.value, self.of))

    def exceeded(self, result: Result) -> str | None:
        """What to say of a result above this limit; none where it is within, or has no such figure."""
        figure = self.figure(result)
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
        found = validated(cls, parsed_toml("--gate", path, read_text("--gate", path)))
        names = {"attack": [each.name for each in attacks()], "adversary": list(ADVERSARIES)}
        for number, limit in enumerate(found.limit):
            for field, known in names.items():
                if (value := getattr(limit, field)) not in (None, *known):
                    raise InputError(f"limit.{number}.{field}", value, f"expected one of {', '.join(known)}")
        return found

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
        """Limits that would pass for want of evidence: they concern no result at all, or none that has their figure
        and can fail. Where all that they concern does not apply to the run, each says why, and they pass."""
        return [limit for limit in self.limit if not _has_evidence(limit, results)]


def _has_evidence(limit: Limit, results: tuple[Result, ...]) -> bool:
    concerned = [result for result in results if limit.concerns(result)]
    if concerned and all(result.outcome == "not applicable" for result in concerned):
        return True
    return any(result.protected and limit.figure(result) is not None for result in concerned)
