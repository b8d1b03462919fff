"""The report of a sweep as data, with the schema of all that `fedblocks report --json` prints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from ...threat_model.report.document import CrossCheck, Digest, Ending, Frontier, Part, Printed


class Common(Part):
    """Something that all of the sweep's runs have in common."""

    what: str
    value: str


class CellVerdict(Part):
    """A cell, as its own files tell of it. `gate`: none for a baseline, of which nothing leaves a company, and for a
    cell that failed; `open_questions`: what its gate does not answer with yes."""

    cell: str
    kind: Literal["run", "pooled", "alone"]
    setting: str
    seed: int
    epsilon: float | None
    epsilon_spent: float | None
    quality: float | None
    quality_public_model: float | None
    audit: str
    gate: Ending | None
    open_questions: tuple[str, ...]
    failure: str


class Choice(Part):
    """The setting of the best mean quality among those of which every run passes its gate; none: there is none."""

    setting: str | None
    sentence: str


class SweepReport(Part):
    """The whole report of one sweep."""

    kind: Literal["sweep"] = "sweep"
    format: Literal[1] = 1
    version: str
    sweep: str
    name: str
    preset: str
    over: tuple[str, ...]
    seeds: int
    common: tuple[Common, ...]
    choice: Choice
    cells: tuple[CellVerdict, ...]
    frontier: Frontier
    checks: tuple[CrossCheck, ...]
    digests: tuple[Digest, ...]
    commands: tuple[str, ...]


class PrintedSweep(SweepReport):
    """As the command prints it: with the file that it has written."""

    report: str


def schema() -> dict[str, Any]:
    """The JSON schema of what `fedblocks report --json` prints, of a run or of a sweep."""
    either: TypeAdapter[Printed | PrintedSweep] = TypeAdapter(Printed | PrintedSweep)
    return either.json_schema(mode="serialization") | {"title": "fedblocks report --json"}
