"""The computing budget of one attack."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttackBudget:
    attempts: int = 6  # starts of the noise draws, of which the best is continued
    draw_iterations: int = 16  # steps on the noise draws, per attempt
    iterations: int = 30  # steps on everything, from the best attempt
    coordinates: int = 4000  # random coordinates of the gradient that are used; all, where there is noise
    library: int = 4096  # public patches tried per position

    def words(self) -> str:
        return (
            f"{self.attempts} starts of {self.draw_iterations} steps on the noise draws, "
            f"then {self.iterations} steps on everything"
        )
