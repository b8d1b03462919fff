"""Sums of a cohort without the protocol, for studies of utility: no keys, masks, messages or ledgers.

A run's coordinator takes such a cohort in the place of a grid. What it computes of a sum is the same: only where the
sum comes from differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from ..blocks.state import State
from ..privacy.secure_aggregation import Session
from .secure_sum import Absences


class PlainSums(ABC):
    """A cohort that is asked for its sums, and never for a message."""

    settings_digest: bytes

    @abstractmethod
    def cohort(self, round_: int) -> tuple[str, ...]:
        """The companies of a round, in order: all, or those that the plan draws."""

    @abstractmethod
    def total(
        self, session: Session, block: int, states: dict[int, State], absences: Absences
    ) -> tuple[npt.NDArray[np.uint32], tuple[str, ...]]:
        """The sum of the residues mod 2^bits (length,) of what the session's companies make of `block`, and the
        companies in it.

        Raises: ProtocolError("too_few") where fewer than the session's threshold are left.
        """
