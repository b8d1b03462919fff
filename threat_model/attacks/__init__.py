"""The attacks, a file each: what one sees, needs and costs stands in its file, and nothing else is to be edited.

`my_attack.py` in this folder defines

    ATTACK = Attack(name="my-attack", ..., applies=..., run=...)

`run` draws its cases, lets the attack see the view alone, and scores what comes back: only scoring reads the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ...errors import InputError
from ..exhibits import Kept
from ..results import Result, Statement

if TYPE_CHECKING:
    from ..subject import Subject


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack, or one test of a claim.

    `adversaries`: who can mount it, by name. `sees`, `needs`, `cost`: in words, for `fedblocks audit --list`.
    `applies`: why it cannot be mounted on this run, none where it can. `run`: yields each result as soon as it is
    there; it spends at most `subject.clock`, and what the clock cut short is inconclusive. `by_block`: it is run on
    one block at a time, else once on all of the subject's. `weight`: its share of the time, beside the others'.
    `open_ended`: it has use for more time than its share; it is run after those that leave some of theirs.
    """

    name: str
    title: str
    statement: Statement
    adversaries: tuple[str, ...]
    sees: str
    needs: str
    cost: str
    applies: Callable[[Subject], str | None]
    run: Callable[[Subject], Iterator[Result | Kept]]
    by_block: bool = True
    weight: float = 1.0
    open_ended: bool = False


@cache
def attacks() -> tuple[Attack, ...]:
    """All attacks, by name. Raises: TypeError where a file is incomplete."""
    found = []
    for module in iter_modules(__path__):
        if module.name.startswith("_") or module.ispkg:
            continue
        attack = getattr(import_module(f".{module.name}", __name__), "ATTACK", None)
        if not isinstance(attack, Attack):
            raise TypeError(f"threat_model/attacks/{module.name}.py must define ATTACK, an Attack")
        found.append(attack)
    return tuple(sorted(found, key=lambda attack: attack.name))


def attack(name: str) -> Attack:
    """The attack of this name. Raises: InputError if there is none."""
    for each in attacks():
        if each.name == name:
            return each
    raise InputError("attack", name, f"expected one of {', '.join(each.name for each in attacks())}")
