"""From reconstructions to results: the only place that compares them with the truth.

Conditions of one view are scored on the same examples in the same order: the attack on the release, its control
without noise, and the guess without the release.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..blocks.taps import Field
from .ceilings import Ceilings
from .closeness import closeness, exact_from
from .exhibits import MOST, Condition, Exhibit
from .intervals import Estimate, mean, proportion
from .results import FAILED_CONTROL, Outcome, Result

_VISIBLE = 0.5  # dB
# Of many views, blocks and fields one gains something by chance: what counts as found is judged at this level.
_SURE = 0.999


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """One attack on one view of one block: what it gave of one real field, (n, *shape) each.

    `clusters`: which release each example was in. `cut_short`: why there are fewer cases than asked for, or the
    attack had less than its budget. `guesses`: how many there were for each example; `ceilings`: of the release.
    """

    attack: str
    adversary: str
    view: str
    block: int
    of: Field
    originals: Tensor
    released: Tensor
    prior: Tensor
    control: Tensor | None = None
    protected: bool = True
    clusters: npt.NDArray[np.int64] | None = None
    cut_short: str = ""
    wins_at: float | None = None
    budget: dict[str, float | int | str] = field(default_factory=dict)
    seconds: float = 0.0
    guesses: int = 1
    ceilings: Ceilings | None = None

    def results(self) -> list[Result]:
        """How many were rebuilt exactly, and how much closer than without the release they came."""
        limit, n = exact_from(self.of), len(self.originals)
        scores = {
            name: closeness(self.of, found, self.originals)
            for name, found in (("released", self.released), ("prior", self.prior), ("control", self.control))
            if found is not None
        }
        exact = {name: proportion(int((score >= limit).sum()), n) for name, score in scores.items()}
        gain = scores["released"] - scores["prior"]
        sure = mean(gain, self.clusters, level=_SURE)
        # What the prior alone rebuilds, a blank image for example, the release has not given away.
        more = bool(((scores["released"] >= limit) & (scores["prior"] < limit)).any())
        outcome, reason = self._judged(exact, sure, more)
        control = exact.get("control")
        words = {"image": "images", "series": "series", "numbers": "rows"}.get(self.of.what, self.of.name)
        both = {
            "attack": self.attack, "adversary": self.adversary, "view": self.view, "block": self.block,
            "statement": "reconstruction", "protected": self.protected, "budget": self.budget,
            "seconds": round(self.seconds, 2), "outcome": outcome, "reason": reason,
        }  # fmt: skip
        gains: Estimate = mean(gain, self.clusters)
        return [
            Result.model_validate(
                both
                | {
                    "statistic": f"{words} rebuilt exactly ({self.of.name})", "unit": "share",
                    "value": exact["released"], "control": control, "baseline": exact["prior"],
                    "wins_at": self.wins_at, "ceiling": self._ceiling(),
                }
            ),
            Result.model_validate(
                both
                | {
                    "statistic": f"closer than without the release ({self.of.name})", "unit": "dB",
                    "value": gains, "worst_decile": float(np.quantile(gain, 0.9)),
                    "control": None if control is None else mean(scores["control"] - scores["prior"], self.clusters),
                }
            ),
        ]  # fmt: skip

    def _ceiling(self) -> float | None:
        if self.ceilings is None or not self.protected:
            return None
        return self.ceilings.exact(self.of, self.guesses)

    def exhibit(self) -> Exhibit:
        """The same for the eye."""
        shown: dict[Condition, Tensor] = {
            "original": self.originals,
            "released": self.released,
            "prior": self.prior,
        }
        if self.control is not None:
            shown["control"] = self.control
        return Exhibit(
            attack=self.attack, view=self.view, block=self.block,
            what="image" if self.of.what == "image" else "series",
            arrays={name: values[:MOST].numpy().astype(np.float32) for name, values in shown.items()},
        )  # fmt: skip

    def _judged(self, exact: dict[str, Estimate], sure: Estimate, more: bool) -> tuple[Outcome, str]:
        if more:
            return "found", ""
        if sure.low > _VISIBLE and len(self.originals) > 1:
            return "partly found", ""
        if self.cut_short:
            return "inconclusive", self.cut_short
        control = exact.get("control", exact["released"])
        # Of many examples at once it need not rebuild half: its share is to be told from that of the view.
        if control.value < 0.5 and control.low <= exact["released"].high:
            rebuilt = f"{round(control.value * control.n)} of {control.n}"
            return "inconclusive", f"{FAILED_CONTROL}: without noise {rebuilt} rebuilt exactly"
        return "not found", ""


def guessed(
    *,
    attack: str,
    adversary: str,
    view: str,
    block: int,
    of: Field,
    released: npt.NDArray[np.bool_],
    control: npt.NDArray[np.bool_] | None,
    blind: float,
    protected: bool = True,
    cut_short: str = "",
    seconds: float = 0.0,
    budget: dict[str, float | int | str] | None = None,
    ceilings: Ceilings | None = None,
) -> Result:
    """How many labels, codes or tokens (n,) were read off; `blind`: the share that is right without the release.

    Found where even the low end of an interval at 99.9% lies above `blind`.
    """
    n = len(released)
    sure = proportion(int(released.sum()), n, level=_SURE)
    own = None if control is None else proportion(int(control.sum()), len(control))
    outcome: Outcome = "not found"
    reason = ""
    if sure.low > blind:
        outcome = "found"
    elif cut_short:
        outcome, reason = "inconclusive", cut_short
    elif own is not None and own.low <= blind:
        outcome, reason = "inconclusive", f"{FAILED_CONTROL}: without noise no more are right than blindly"
    return Result(
        attack=attack, adversary=adversary, view=view, block=block, statement="reconstruction",
        statistic=f"{of.what}s read off" if not of.what.endswith("s") else f"{of.what} read off",
        unit="share", outcome=outcome, reason=reason, protected=protected, seconds=round(seconds, 2),
        value=proportion(int(released.sum()), n), control=own,
        baseline=Estimate(value=blind, low=blind, high=blind, n=n, method="exact"), budget=budget or {},
        ceiling=None if ceilings is None or not protected else ceilings.read_off(of),
    )  # fmt: skip


def blind_share(public: Tensor, truth: Tensor) -> float:
    """How often the most frequent public label is right: of these few cases, or of the public ones if that is more.

    Among few cases it may be right by chance in none, and then any success would seem to be a finding.
    """
    counts = torch.bincount(public.flatten().long())
    common = int(counts.argmax())
    return max(float((truth == common).double().mean()), float(counts[common]) / max(int(counts.sum()), 1))
