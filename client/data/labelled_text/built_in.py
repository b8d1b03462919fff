"""Labelled texts that packages ship, so that nothing is downloaded; a set is an entry of `BUILT_IN`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelledTexts:
    """`labels`: the class of each text, by its name; `names`: the classes in order; `groups`: whose each text is."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...] | None = None


BUILT_IN: dict[str, Callable[[], LabelledTexts]] = {}
