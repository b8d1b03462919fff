"""`fedblocks audit`: attack what a run released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .runs import RunArgument, RunsDir, existing_run, shortest

if TYPE_CHECKING:
    from ..threat_model.audit_file import Audit
    from ..threat_model.sentences import Group

people = Console(stderr=True)


def audit(
    run: RunArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="for all attacks together; else the run's setting")
    ] = None,
    adversary: Annotated[
        list[str] | None,
        typer.Option("--adversary", help="one of those that --list names; repeatable; none means all"),
    ] = None,
    block: Annotated[int | None, typer.Option(help="block to attack; none means all")] = None,
    gate: Annotated[
        Path | None, typer.Option(help="a TOML file of limits; none: nothing protected may be found")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the experiments; the same seed gives the same ones")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="attacks at once, a core each")] = 2,
    list_: Annotated[
        bool, typer.Option("--list", help="list attacks and adversaries, and attack nothing")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of audit.json")] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Attack what a run released, test its claims, and measure what comes back.

    Exit codes: 0 passed, 2 bad input, 3 something was found or a claim is refuted, 4 inconclusive.
    """
    if schema:
        from ..threat_model.audit_file import schema as schema_of_audits

        print(json.dumps(schema_of_audits(), indent=2))
        return
    if list_:
        _list(as_json)
        return
    from ..experiments.interface import audit_design
    from ..threat_model.gate import Gate
    from .progress import audit_with_progress

    limits = Gate() if gate is None else Gate.load(gate)
    folder = existing_run(run, runs_dir)
    design = audit_design(
        folder,
        minutes=minutes,
        adversaries=adversary or (),
        block=block,
        gate=limits,
        seed=seed,
        workers=workers,
    )
    found = audit_with_progress(folder, design, people)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), allow_nan=False))
    else:
        _show(found)
        people.print(f"Next: fedblocks report {escape(shortest(folder.path))}")
    raise typer.Exit(found.verdict.exit_code)


def _list(as_json: bool) -> None:
    from ..threat_model.adversaries import ADVERSARIES
    from ..threat_model.auditing import listed

    if as_json:
        adversaries: list[dict[str, Any]] = [
            {
                "name": each.name,
                "title": each.title,
                "sees": sorted(each.sees),
                "controls": sorted(each.controls),
                "colluders": "all but the victim" if each.colluders is None else each.colluders,
                "protected": each.protected,
            }
            for each in ADVERSARIES.values()
        ]
        print(json.dumps({"adversaries": adversaries, "attacks": listed()}))
        return
    table = Table(title="Adversaries", show_lines=True)
    for column in ("adversary", "who", "sees", "controls"):
        table.add_column(column, overflow="fold")
    for each in ADVERSARIES.values():
        table.add_row(each.name, each.title, ", ".join(sorted(each.sees)), ", ".join(sorted(each.controls)))
    _console().print(table)
    table = Table(title="Attacks and tests", show_lines=True)
    for column in ("attack", "what it does", "sees", "needs", "costs", "adversaries"):
        table.add_column(column, overflow="fold")
    for row in listed():
        names = row["adversaries"]
        assert isinstance(names, tuple)
        table.add_row(
            *(str(row[key]) for key in ("name", "title", "sees", "needs", "cost")), ", ".join(names)
        )
    _console().print(table)


def _console() -> Console:
    """Tables on stdout, no narrower than they can be read."""
    console = Console()
    return console if console.width >= 100 else Console(width=120)


def _show(found: Audit) -> None:
    from ..threat_model.sentences import count_words, grouped, sentence

    for statement, title in _TITLES.items():
        groups = [g for g in grouped(found.results) if g.worst.statement == statement]
        if groups:
            people.print(f"\n[bold]{title}[/]")
        for group in groups:
            people.print(
                f"  {_mark(group, found)}{escape(sentence(group.worst))}{_where(group)}", highlight=False
            )
    verdict = found.verdict
    colour = {"passed": "green", "failed": "red", "inconclusive": "yellow"}[verdict.ending]
    people.print(
        f"\n[bold {colour}]Audit {verdict.ending}[/]: {count_words(found.results)} ({found.seconds:.0f} s)"
    )
    for key, reasons in verdict.failures.items():
        people.print(
            f"  [red]{escape(key)}[/]: {escape('; '.join(reasons))}", highlight=False, soft_wrap=True
        )
    for key, reason in verdict.inconclusive.items():
        people.print(f"  [yellow]{escape(key)}[/]: {escape(reason)}", highlight=False, soft_wrap=True)


_TITLES = {
    "reconstruction": "Reconstruction of examples",
    "membership": "Membership of examples",
    "property": "Properties of a company's data",
    "extraction": "Extraction from the model",
    "certificate": "Certificate: lower bounds on epsilon that hold for any mechanism of the claim",
    "conformance": "Conformance: does the company's own step do what its account assumes?",
    "estimate": "Estimates, conditional on their model",
    "prediction": "Predictions before anything is released",
}


def _mark(group: Group, found: Audit) -> str:
    if not group.worst.protected:
        return "[dim](nothing is promised of this view)[/] "
    if any(result.key in found.verdict.failures for result in group.results):
        return "[red]![/] "
    return "[yellow]?[/] " if group.worst.outcome == "inconclusive" else ""


def _where(group: Group) -> str:
    return f" [dim]({group.where})[/]" if group.where and group.worst.outcome != "not applicable" else ""
