"""How hard one attack tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttackBudget:
    attempts: int = 6  # starts of the noise draws, from which the best goes on
    draw_iterations: int = 16  # steps on the noise draws, per attempt
    iterations: int = 30  # steps on everything, from the best attempt
    coordinates: int = 4000  # of the gradient, drawn at random; only where there is no noise to average out
    library: int = 4096  # public patches tried per position

    def words(self) -> str:
        return (
            f"{self.attempts} starts of {self.draw_iterations} steps on the noise draws, "
            f"then {self.iterations} steps on everything"
        )
