"""Many attacks in parallel processes, each on one observation.

Every attack has its own seed, so results do not depend on how attacks are distributed over processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import BlockObjective
from ..blocks.families.vit import ViTClassifier
from .attack_budget import AttackBudget
from .gradients import BlockGradient, Unknowns
from .lm_map import LMMAP
from .views import Observation


@dataclass(frozen=True)
class Attacker:
    """The attacker's prior knowledge."""

    model: ViTClassifier
    block: int
    objective: BlockObjective
    public: Tensor

    def attack(self, budget: AttackBudget) -> LMMAP:
        gradient = BlockGradient(self.model, self.block, self.objective)
        return LMMAP(gradient, self.public, classes=int(self.model.table.shape[0]), budget=budget)


@dataclass(frozen=True)
class AttackTask:
    """One attack."""

    name: tuple[str, str, int]  # view, condition, case
    observation: Observation
    budget: AttackBudget
    seed: int


_attacker: Attacker | None = None


def _prepare(attacker: Attacker) -> None:
    global _attacker
    torch.set_num_threads(1)  # one core each
    _attacker = attacker


def _run(task: AttackTask) -> Unknowns:
    if _attacker is None:
        raise RuntimeError("the process was not prepared")
    generator = torch.Generator().manual_seed(task.seed)
    return _attacker.attack(task.budget).run(task.observation, generator).unknowns


def run_all(
    attacker: Attacker, tasks: list[AttackTask], *, workers: int, on_done: Callable[[AttackTask], None]
) -> dict[tuple[str, str, int], Unknowns]:
    """Each attack's reconstruction, by the task's name. With one worker all attacks run in this process."""
    if workers == 1:
        found = {}
        for task in tasks:
            generator = torch.Generator().manual_seed(task.seed)
            found[task.name] = attacker.attack(task.budget).run(task.observation, generator).unknowns
            on_done(task)
        return found
    # A fork of a process whose OpenMP threads have run may hang; a new interpreter does not.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(attacker,)
    ) as pool:
        running = {pool.submit(_run, task): task for task in tasks}
        found = {}
        for future in as_completed(running):
            found[running[future].name] = future.result()
            on_done(running[future])
        return found
