"""The report of a sweep as data, with the schema of all that `fedblocks report --json` prints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from ...threat_model.report.document import CrossCheck, Digest, Ending, Frontier, Part, Printed

Standing = Literal["passes", "open", "ruled out"]


class Common(Part):
    """Something that all of the sweep's runs have in common."""

    what: str
    value: str


class CellVerdict(Part):
    """A cell, as its own files tell of it. `gate`: none for a baseline, of which nothing leaves a company, and for a
    cell that failed; `open_questions`: what its gate does not answer with yes, of which `failed_questions` with no;
    `cautions`: what it passes with a caution."""

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
    failed_questions: tuple[str, ...]
    cautions: tuple[str, ...]
    failure: str


class Candidate(Part):
    """A setting over its seeds. `standing`: `passes` where every run passes its gate, `ruled out` where one fails;
    `low`, `high`: of the mean quality, at 95%; `against`: what gates hold against it; `attacks`: in words."""

    setting: str
    epsilon_spent: float | None
    runs: int
    passed: int
    open: int
    failed: int
    standing: Standing
    quality: float | None
    low: float | None
    high: float | None
    attacks: tuple[str, ...]
    against: tuple[str, ...]


class Choice(Part):
    """`setting`: of the best mean quality among those of which every run passes its gate; none: there is none.
    `next_step`: the command that goes on where the best setting is open."""

    setting: str | None
    sentence: str
    next_step: str
    candidates: tuple[Candidate, ...]


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
