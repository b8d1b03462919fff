"""The frontier of a sweep, as pages of a run and of the sweep show it; who sweeps hands it over."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from .document import Frontier


@dataclass(frozen=True)
class Drawn:
    """`columns`, `lines`: the table in texts; `compared`: what each line's kind of model is."""

    data: Frontier
    figure: Markup
    columns: list[str]
    lines: list[list[str]]
