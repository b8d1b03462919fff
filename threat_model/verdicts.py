"""Verdicts: what an attack within a budget did or did not recover, which never proves safety. A verdict is computed
once and stored as data; its sentences are made when it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .attack_budget import AttackBudget
from .metrics import Score

Outcome = Literal["recovered", "partly recovered", "not recovered", "inconclusive"]

TITLES = {
    "raw_gradient": "One example's raw gradient, without clipping or noise",
    "company_release": "One company's release, all its other examples known to the attacker",
    "opened_sum": "The securely opened sum, all examples but one known to the attacker",
}

# A bootstrap interval over six cases is too narrow, so a gain must also be large enough to be visible.
_MATERIAL_GAIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The counts on which a verdict is based; `control_exact` is None where there is no noise to remove."""

    cases: int
    exact: int
    control_exact: int | None
    reidentified: int
    reidentified_by_prior: int
    gain: Score  # of PSNR over prior-only, in dB

    @property
    def exact_without_noise(self) -> int:
        return self.exact if self.control_exact is None else self.control_exact

    @property
    def control_succeeded(self) -> bool:
        """Whether at least half of the cases are exact without the noise."""
        return 2 * self.exact_without_noise >= self.cases

    def judged(self) -> Outcome:
        if self.exact:
            return "recovered"
        # By chance, two or more re-identified cases of a few among 100 candidates happen in under 1% of audits.
        if self.gain.low > _MATERIAL_GAIN or self.reidentified - self.reidentified_by_prior >= 2:
            return "partly recovered"
        return "not recovered" if self.control_succeeded else "inconclusive"


@dataclass(frozen=True)
class Verdict:
    """One view's outcome, as it was judged when the audit ran."""

    outcome: Outcome
    evidence: Evidence

    @classmethod
    def of(cls, evidence: Evidence) -> Verdict:
        return cls(evidence.judged(), evidence)

    def to_json(self) -> dict[str, Any]:
        """Without the gain, which is among the view's scores."""
        e = self.evidence
        return {
            "outcome": self.outcome,
            "recovered": self.recovered,
            "control_recovered": e.control_succeeded,
            "cases": e.cases,
            "exact": e.exact,
            "control_exact": e.control_exact,
            "reidentified": e.reidentified,
            "reidentified_by_prior": e.reidentified_by_prior,
        }

    @classmethod
    def from_json(cls, view: dict[str, Any]) -> Verdict:
        """The verdict of a view in audit.json.

        Raises:
            KeyError: the file was written by another version.
        """
        evidence = Evidence(
            cases=view["cases"],
            exact=view["exact"],
            control_exact=view["control_exact"],
            reidentified=view["reidentified"],
            reidentified_by_prior=view["reidentified_by_prior"],
            gain=Score(**view["gain"]["psnr"]),
        )
        return cls(view["outcome"], evidence)

    @property
    def recovered(self) -> bool:
        return self.outcome in ("recovered", "partly recovered")

    @property
    def head(self) -> str:
        return self.outcome.capitalize()

    def detail(self, attack: str, budget: AttackBudget) -> str:
        """The rest of the sentence that begins with `head`."""
        e, g = self.evidence, self.evidence.gain
        gain = f"{g.mean:+.1f} dB over prior-only (95% interval {g.low:+.1f} to {g.high:+.1f})"
        control = ""
        if e.control_exact is not None:
            control = f" Control without noise: {e.control_exact} of {e.cases} exact."
        by = f"{attack} ({budget.words()})"
        match self.outcome:
            case "recovered":
                return f" {e.exact} of {e.cases} exactly by {by}; {gain}.{control}"
            case "partly recovered":
                return (
                    f" by {by}: none of {e.cases} exactly, but {gain} and {e.reidentified} of {e.cases} "
                    f"re-identified.{control}"
                )
            case "not recovered":
                return f" by {by}: none of {e.cases} exactly; {gain}.{control}"
            case "inconclusive":
                return (
                    f": the control failed. {by} recovers {e.exact_without_noise} of {e.cases} even without noise, "
                    f"so its failure on the release ({gain}) says nothing."
                )


def sentences(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, verdict) of every view of an audit.json."""
    attack, budget = audit["attack"], AttackBudget(**audit["settings"]["budget"])
    found = [(TITLES[view["name"]], Verdict.from_json(view)) for view in audit["views"]]
    return [(title, verdict.head + verdict.detail(attack, budget)) for title, verdict in found]
