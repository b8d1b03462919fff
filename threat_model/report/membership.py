"""Membership over all thresholds: the stored scores of an audit as ROC curves, with hits at few false alarms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..intervals import proportion
from ..roc import LEAST_NON_MEMBERS, auc
from .document import HitsAt, Roc

Array = npt.NDArray[np.float32]
RATES = (0.001, 0.01)
_KINDS = ("members", "others", "simulated")


@dataclass(frozen=True)
class Curve:
    """Scores of one attack, view and block; false alarms are counted among `simulated`, where these are."""

    attack: str
    view: str
    block: int
    members: npt.NDArray[np.float64]
    others: npt.NDArray[np.float64]
    simulated: npt.NDArray[np.float64] | None

    @property
    def nulls(self) -> npt.NDArray[np.float64]:
        return self.others if self.simulated is None else self.simulated

    @property
    def points(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(rate of false alarms, rate of hits) at every threshold, both rising from 0 to 1."""
        thresholds = np.unique(np.concatenate([self.nulls, self.members]))[::-1]
        return (
            np.concatenate([[0.0], _share_from(self.nulls, thresholds)]),
            np.concatenate([[0.0], _share_from(self.members, thresholds)]),
        )

    def hits_at(self, rate: float) -> HitsAt:
        """At the threshold that at most this share of those without pass."""
        n = len(self.nulls)
        if n < LEAST_NON_MEMBERS[rate]:
            return HitsAt(rate=rate, hits=None, low=None, high=None, others=n)
        threshold = np.sort(self.nulls)[-(int(rate * n) + 1)]
        found = proportion(int((self.members > threshold).sum()), len(self.members))
        return HitsAt(rate=rate, hits=found.value, low=found.low, high=found.high, others=n)

    def roc(self) -> Roc:
        area = auc(self.members, self.others)
        return Roc(
            attack=self.attack, view=self.view, block=self.block, area=area.value, low=area.low, high=area.high,
            members=len(self.members), others=len(self.others), at=tuple(self.hits_at(rate) for rate in RATES),
        )  # fmt: skip


def curves(arrays: dict[str, Array]) -> tuple[Curve, ...]:
    """Those of an audit's stored arrays. Raises: KeyError or ValueError where they are not what an audit writes."""
    by: dict[tuple[str, str, int], dict[str, npt.NDArray[np.float64]]] = {}
    for name, array in arrays.items():
        attack, view, block, what, kind = name.split("/")
        if what != "scores":
            continue
        if kind not in _KINDS or array.ndim != 1 or array.dtype.kind != "f" or len(array) < 2:
            raise ValueError(name)
        if np.isnan(array).any():
            raise ValueError(name)
        by.setdefault((attack, view, int(block.removeprefix("block-"))), {})[kind] = array.astype(np.float64)
    return tuple(
        Curve(*key, found["members"], found["others"], found.get("simulated"))
        for key, found in sorted(by.items())
    )


def _share_from(
    scores: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The share of the scores that reach each threshold."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    found: npt.NDArray[np.float64] = 1 - below / len(scores)
    return found
