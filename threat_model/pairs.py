"""What was measured of each pair of adversary and attack: a table for the threat model, from an audit's results."""

from __future__ import annotations

from collections.abc import Sequence

from .adversaries import ADVERSARIES
from .attacks import attacks
from .results import Result
from .sentences import grouped, sentence

HEAD = "| adversary | attack or test | measured |\n|---|---|---|\n"


def pairs(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """(adversary, attack, what was measured) of every pair; what gives most away stands for the rest."""
    found = []
    for name in ADVERSARIES:
        for attack in attacks():
            if name not in attack.adversaries:
                continue
            own = [r for r in results if r.attack == attack.name and r.adversary == name]
            applied = [r for r in own if r.outcome != "not applicable"]
            if applied:
                text = sentence(grouped(applied)[0].worst)
            elif own:
                text = sentence(own[0])
            else:
                text = "not measured"
            found.append((name, attack.name, text))
    return found


def markdown(results: Sequence[Result]) -> str:
    """The table as it stands in THREAT_MODEL.md."""
    rows = "".join(f"| {adversary} | {attack} | {text} |\n" for adversary, attack, text in pairs(results))
    return HEAD + rows
