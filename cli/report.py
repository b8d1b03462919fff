"""`fedblocks report`: the page of a run or a sweep, the same as data, and whether it is still what its files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError
from .runs import RunsDir, existing_run

if TYPE_CHECKING:
    from ..threat_model.report.check import Checked
    from ..threat_model.report.compare import Compared

people = Console(stderr=True)
ReportArgument = Annotated[
    Path | None, typer.Argument(help="the folder of a run or of a sweep; none means the newest run")
]
_FILE_WIDTH = 160  # characters


def report(
    run: ReportArgument = None,
    check: Annotated[
        bool, typer.Option("--check", help="compare the written page with its files; writes nothing")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="two runs side by side; writes nothing")
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="print the JSON schema of what --json prints")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Write one self-contained HTML report of a run and its audit, or of a whole sweep.

    Exit code 3 of --check: the page, or the run's own files among each other, do not agree.
    """
    if json_schema:
        from ..experiments.sweep.report_data import schema

        print(json.dumps(schema(), indent=2))
        return
    if compare is not None:
        if run is not None or check:
            raise InputError("--compare", str(compare[0]), "takes the two runs, and nothing beside them")
        _compare(compare, as_json)
        return
    from ..experiments.sweep.report import is_sweep

    if run is not None and is_sweep(run):
        _of_sweep(run, check, as_json)
        return
    folder = existing_run(run, runs_dir)
    from ..experiments.sweep.page import frontier_beside

    frontier = frontier_beside(folder, figure=not check)
    if check:
        from ..threat_model.report.check import check_report

        _tell(check_report(folder, frontier), "run", as_json)
        return
    from ..threat_model.report.document import Printed
    from ..threat_model.report.write import write_both

    path, written = write_both(folder, frontier)
    _print(path, Printed(**dict(written), report=str(path)).model_dump_json() if as_json else None)


def _of_sweep(folder: Path, check: bool, as_json: bool) -> None:
    from ..experiments.sweep.report import check_sweep_report, write_sweep_report
    from ..experiments.sweep.report_data import PrintedSweep

    if check:
        _tell(check_sweep_report(folder), "sweep", as_json)
        return
    path, written = write_sweep_report(folder)
    _print(path, PrintedSweep(**dict(written), report=str(path)).model_dump_json() if as_json else None)


def _print(path: Path, data: str | None) -> None:
    if data is not None:
        print(data)
        return
    people.print("Report: ", end="")
    print(path)


def _tell(found: Checked, what: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": found.ok, "differences": list(found.differences)}))
    for difference in found.differences:
        people.print(f"[red]differs:[/] {escape(difference)}", soft_wrap=True, highlight=False)
    if not found.ok:
        raise typer.Exit(3)
    people.print(f"[green]agrees:[/] {found.comparisons} texts of the page are what the {what}'s files give")


def _compare(runs: tuple[Path, Path], as_json: bool) -> None:
    from ..server.run_folder import RunFolder
    from ..threat_model.report.compare import compare
    from ..threat_model.report.write import render

    one, other = (render(RunFolder.existing(path), drawn=False).report for path in runs)
    rows = compare(one, other)
    if as_json:
        print(json.dumps({"runs": [one.run, other.run], "rows": [row.model_dump() for row in rows]}))
        return
    _show(one.run, other.run, rows)


def _show(one: str, other: str, rows: tuple[Compared, ...]) -> None:
    table = Table(title="Two runs; what differs is bold")
    for column in ("", one, other):
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        style = "bold" if row.differs else ""
        table.add_row(row.what, escape(row.one), escape(row.other), style=style)
    out = Console()
    (out if out.is_terminal else Console(width=_FILE_WIDTH)).print(table)
