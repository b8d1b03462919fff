"""What an attack rebuilt, beside the originals, and how it scored: for the report's figures, never for a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Condition = Literal["original", "released", "control", "prior"]
MOST = 12  # examples that are shown


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """Arrays by condition, of the same examples in the same order: images (n, C, H, W) or series (n, C, T)."""

    attack: str
    view: str
    block: int
    what: Literal["image", "series"]
    arrays: dict[Condition, npt.NDArray[np.float32]]

    @property
    def key(self) -> str:
        return f"{self.attack}/{self.view}/block-{self.block}"

    def named(self) -> dict[str, npt.NDArray[np.float32]]:
        """Its arrays by the names they have in a file."""
        return {f"{self.key}/{self.what}/{condition}": a[:MOST] for condition, a in self.arrays.items()}


MOST_TEXTS = 4


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Tokens (n, T) by condition, of the same texts in the same order; -1 where a token's value was not read off."""

    attack: str
    view: str
    block: int
    arrays: dict[Condition, npt.NDArray[np.int32]]

    def named(self) -> dict[str, npt.NDArray[np.int32]]:
        """As `Exhibit.named`."""
        key = f"{self.attack}/{self.view}/block-{self.block}/text"
        return {f"{key}/{condition}": tokens[:MOST_TEXTS] for condition, tokens in self.arrays.items()}


MOST_SIMULATED = 10_000


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A membership attack's scores of members (n,) and others (m,), higher for members; `simulated`: of releases
    without the candidate that the attacker makes himself, for thresholds at few false alarms."""

    attack: str
    view: str
    block: int
    members: npt.NDArray[np.float64]
    others: npt.NDArray[np.float64]
    simulated: npt.NDArray[np.float64] | None = None

    def named(self) -> dict[str, npt.NDArray[np.float32]]:
        """As `Exhibit.named`; of many simulated ones as many as a rate of 0.1% takes, evenly spread."""
        key = f"{self.attack}/{self.view}/block-{self.block}/scores"
        found = {f"{key}/members": self.members, f"{key}/others": self.others}
        if self.simulated is not None:
            ordered = np.sort(self.simulated)
            step = -(-len(ordered) // MOST_SIMULATED)
            found[f"{key}/simulated"] = ordered[step - 1 :: step]
        return {name: values.astype(np.float32) for name, values in found.items()}


Kept = Exhibit | Scores | Texts
"""What an attack yields beside its results."""
