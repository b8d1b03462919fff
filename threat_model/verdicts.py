"""From scores to words: what an attack within a budget did or did not recover, never that all is safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .metrics import Score

Outcome = Literal["recovered", "partly recovered", "not recovered", "inconclusive"]

# A bootstrap over six cases is too narrow; what it calls a gain must also be one that an eye could see.
_MATERIAL_GAIN = 0.5


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on. `control_exact` is None where the view itself has no noise to take away."""

    attack: str
    budget: str
    cases: int
    exact: int
    control_exact: int | None
    gain: Score  # of PSNR over prior-only, in dB
    reidentified: int
    reidentified_by_prior: int

    @property
    def control_succeeded(self) -> bool:
        """At least half of the cases exact once the noise is taken away."""
        return 2 * (self.exact if self.control_exact is None else self.control_exact) >= self.cases

    @property
    def outcome(self) -> Outcome:
        if self.exact:
            return "recovered"
        # By chance two or more of a handful among 100 candidates happen in less than one audit in a hundred.
        if self.gain.low > _MATERIAL_GAIN or self.reidentified - self.reidentified_by_prior >= 2:
            return "partly recovered"
        return "not recovered" if self.control_succeeded else "inconclusive"

    def words(self) -> str:
        g = self.gain
        gain = f"{g.mean:+.1f} dB over prior-only (95% interval {g.low:+.1f} to {g.high:+.1f})"
        control = (
            ""
            if self.control_exact is None
            else f" Control without noise: {self.control_exact} of {self.cases} exact."
        )
        by = f"{self.attack} ({self.budget})"
        match self.outcome:
            case "recovered":
                return f"Recovered {self.exact} of {self.cases} exactly by {by}; {gain}.{control}"
            case "partly recovered":
                return (
                    f"Partly recovered by {by}: none of {self.cases} exactly, but {gain} and "
                    f"{self.reidentified} of {self.cases} re-identified.{control}"
                )
            case "not recovered":
                return f"Not recovered by {by}: none of {self.cases} exactly; {gain}.{control}"
            case "inconclusive":
                return (
                    f"Inconclusive: the control failed. {by} recovers {self.exact_control} of {self.cases} "
                    f"even without noise, so its failure on the release ({gain}) says nothing."
                )

    @property
    def exact_control(self) -> int:
        return self.exact if self.control_exact is None else self.control_exact
