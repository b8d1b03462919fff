"""What an attack rebuilt, beside the originals: for the report's gallery, never for a verdict."""

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
