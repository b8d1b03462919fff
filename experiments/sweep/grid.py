"""The cells of a sweep: every combination of the axes' values with every seed, and the baselines beside them.

    grid = Grid.of("digits", over=["privacy.epsilon=1,3,none"], seeds=3)
    [cell.name for cell in grid.cells]       # "epsilon-1-seed-0-5d0c...", ...

A seed decides which examples a company has and which are held out, the initial weights, the batches of public
pretraining, the batches and noise of every company, and which replies are lost where failures are injected.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import InputError
from ...settings import SimulationSettings
from ..baselines.rules import without_privacy
from ..presets import load_settings

EPSILON = "privacy.epsilon"
# Laid under what is asked for: a cell has one core; a run's own five minutes of audit are too long for a grid.
_UNDER = ("workers=1", "audit.minutes=1.5")
_EVERY = "training.evaluate_every"
_EVALUATIONS = 20  # of a cell: a point needs the last one only, and no bit of a run depends on their number
# Each cell's own, or a name alone.
_REFUSED = {"seed": "seeds are counted with --seeds", "name": "a name alone makes no other run"}
MOST_CELLS = 10_000
Kind = Literal["run", "pooled", "alone"]
BASELINES: tuple[Kind, ...] = ("pooled", "alone")


@dataclass(frozen=True)
class Axis:
    """A field of the settings and its values, as they are typed."""

    field: str
    values: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Axis:
        """`privacy.epsilon=1,3,8,none`; commas within brackets or quotes belong to a value."""
        field, equals, values = text.partition("=")
        if not equals or not field:
            raise InputError(
                "--over", text, "expected field=value,value as in --over privacy.epsilon=1,3,none"
            )
        if field in _REFUSED:
            raise InputError("--over", text, _REFUSED[field])
        found = tuple(value.strip() for value in _split(values))
        if not all(found):
            raise InputError(
                "--over", text, "a value is missing; expected at least one, with commas between them"
            )
        return cls(field, found)


@dataclass(frozen=True)
class Cell:
    """One run of the grid, or a baseline of it; `axes`: the value of each axis as it was resolved.

    A baseline has no epsilon, and stands for all cells that differ in privacy alone.
    """

    kind: Kind
    axes: dict[str, Any]
    settings: SimulationSettings

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the cell's result, in hexadecimal digits."""
        settings = self.settings.model_dump(mode="json", exclude={"audit", "workers", "name"})
        return hashlib.sha256(json.dumps([self.kind, settings]).encode()).hexdigest()

    @property
    def title(self) -> str:
        """As people read it: `privacy.epsilon=3.0, seed 0`."""
        words = [f"{field}={shown(value)}" for field, value in self.axes.items()]
        kind = [] if self.kind == "run" else [self.kind]
        return ", ".join([*kind, *words, f"seed {self.settings.seed}"])

    @property
    def name(self) -> str:
        """As its folder is called; a run's name as well."""
        words = [f"{field.rpartition('.')[2]}-{shown(value)}" for field, value in self.axes.items()]
        kind = [] if self.kind == "run" else [self.kind]
        text = re.sub(r"[^a-z0-9.]+", "-", "-".join([*kind, *words, f"seed-{self.settings.seed}"]).lower())
        return f"{text[:80].strip('-')}-{self.digest[:12]}"


@dataclass(frozen=True)
class Grid:
    """What was asked for, and its cells: runs in the order of the axes, then baselines."""

    preset: str
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: int
    base: SimulationSettings
    cells: tuple[Cell, ...]

    @classmethod
    def of(
        cls,
        preset: str,
        over: Sequence[str],
        *,
        overrides: Sequence[str] = (),
        seeds: int = 1,
        baselines: bool = True,
    ) -> Grid:
        """All cells, each with settings that can be used.

        Raises: InputError for an unknown field, an empty grid, two equal cells, or a value that cannot be used.
        """
        axes = tuple(Axis.of(text) for text in over)
        fields = [axis.field for axis in axes]
        if twice := {field for field in fields if fields.count(field) > 1}:
            raise InputError("--over", min(twice), "named twice; give all of its values at once")
        if clash := {text.partition("=")[0] for text in overrides} & {*fields}:
            rule = "an axis of the grid; leave it out of --set"
            raise InputError("--set", min(clash), rule)
        if not axes and seeds < 2:
            raise InputError(
                "--over", "", "an empty grid; name a field and its values, or more than one seed"
            )
        count = seeds
        for axis in axes:
            count *= len(axis.values)
        if count > MOST_CELLS:
            raise InputError("--over", f"{count} cells", f"expected at most {MOST_CELLS:,}")
        under = [*_UNDER, *overrides]
        base = load_settings(preset, _allowing(under))
        runs = [
            _cell(preset, [*under, *chosen], fields, base.seed + number)
            for chosen in itertools.product(*([f"{a.field}={value}" for value in a.values] for a in axes))
            for number in range(seeds)
        ]
        seen: dict[str, Cell] = {}
        for cell in runs:
            if cell.digest in seen:
                raise InputError("--over", cell.title, "two cells of one name: a value stands there twice")
            seen[cell.digest] = cell
        beside: dict[str, Cell] = {}
        for kind, cell in itertools.product(BASELINES if baselines else (), runs):
            found = baseline(kind, cell)
            beside.setdefault(found.digest, found)
        return cls(preset, tuple(overrides), axes, seeds, base, (*runs, *beside.values()))

    @property
    def digest(self) -> str:
        """Names the sweep: more values or seeds, baselines and audits go on in the same one."""
        what = [self.base.model_dump(mode="json", exclude={"workers"}), [axis.field for axis in self.axes]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def baseline(kind: Kind, cell: Cell) -> Cell:
    """What a run is compared with: no secure sum, no noise, and so one for all of its epsilons."""
    settings = without_privacy(cell.settings)
    axes = {field: value for field, value in cell.axes.items() if not field.startswith("privacy.")}
    return Cell(kind, axes, settings)


def shown(value: object) -> str:
    """A setting's value in a name or a table: `none`, `3`, `0.5`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(preset: str, overrides: list[str], fields: list[str], seed: int) -> Cell:
    chosen = [*_allowing(overrides), f"seed={seed}"]
    settings = load_settings(preset, chosen)
    seldom = settings.training.rounds // _EVALUATIONS
    if seldom > settings.training.evaluate_every and not any(o.startswith(f"{_EVERY}=") for o in overrides):
        settings = load_settings(preset, [*chosen, f"{_EVERY}={seldom}"])
    return Cell("run", {field: _value(settings, field) for field in fields}, settings)


def _allowing(overrides: list[str]) -> list[str]:
    """With what a run without noise has to say."""
    return [*overrides, "privacy.i_accept_no_dp=true"] if f"{EPSILON}=none" in overrides else overrides


def _value(settings: SimulationSettings, field: str) -> Any:
    """What a field was resolved to: a number, a truth value or a text; of a table or a list its JSON."""
    found: Any = settings.model_dump(mode="json")
    for part in field.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return json.dumps(found) if isinstance(found, dict | list) else found


def _split(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
