"""`fedblocks sweep`: one preset over a grid of settings and seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

from .options import Track
from .runs import RunsDir, shortest

if TYPE_CHECKING:
    from ..experiments.sweep.scheduler import News, Sweep
    from ..experiments.sweep.table import Row

_RUN = "run"
FAILED = 3
_MINUTES = 100  # seconds from which on minutes are told
_WIDE = 130


class _Sweeps(TyperGroup):
    """`sweep PRESET ...` is `sweep run PRESET ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] != "--help":
            args = [_RUN, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else [_RUN, *args])


people = Console(stderr=True)
sweep = typer.Typer(
    cls=_Sweeps,
    no_args_is_help=True,
    help="One preset over a grid of settings and seeds: sweep PRESET, sweep show. A page: `fedblocks report SWEEP`.",
)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Folder = Annotated[Path, typer.Argument(metavar="SWEEP", help="a sweep's folder")]


@sweep.command(_RUN)
def run(
    preset: Annotated[str, typer.Argument(help="a preset's name or a TOML file")],
    over: Annotated[
        list[str] | None,
        typer.Option("--over", help="an axis: field=value,value as in privacy.epsilon=1,3,none; repeatable"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="of each cell, counted from the preset's")] = 1,
    audit: Annotated[
        bool, typer.Option("--audit", help="attack every run as well, two minutes each")
    ] = False,
    baselines: Annotated[
        bool, typer.Option(help="also one pooled data set, and each company alone, without noise")
    ] = True,
    processes: Annotated[int, typer.Option(min=1, max=256, help="cells at once, a core each")] = 2,
    track: Track = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run every cell of the grid; the same command again goes on, and tries again what failed.

    Exit codes: 0 all cells are done, 2 bad input, 3 some failed, 130 interrupted.
    """
    from ..experiments.sweep.grid import Grid

    grid = Grid.of(preset, over or [], overrides=overrides or [], seeds=seeds, baselines=baselines)
    from ..experiments.sweep.scheduler import Sweep
    from ..experiments.tracking import check_trackers

    check_trackers(track or ())
    found = Sweep.of(grid, runs_dir)
    rows = _with_progress(found, processes, audit, track or [])
    failed = [row for row in rows if row.status == "failed"]
    if as_json:
        said = {"sweep": str(found.folder), "cells": len(rows), "failed": len(failed)}
        print(json.dumps(said | {"rows": [asdict(row) for row in rows]}))
    else:
        people.print(f"Next: fedblocks sweep show {escape(shortest(found.folder))}", soft_wrap=True)
        print(found.folder)
    if failed:
        people.print(f"[red]{len(failed)} of {len(rows)} cells failed[/]; the same command tries them again")
        raise typer.Exit(FAILED)


def _with_progress(found: Sweep, processes: int, audit: bool, track: list[str]) -> list[Row]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=people) as progress:
            task = progress.add_task("Sweep", total=1000, note="")

            def tell(news: News) -> None:
                if news.ended is not None:
                    text = f"{news.done} of {news.cells}: {_line(news.ended)}{_left(news)}"
                    progress.console.print(text, highlight=False, soft_wrap=True)
                note = f"{news.done} of {news.cells} cells{_left(news)}"
                progress.update(task, completed=round(1000 * news.share), note=note)

            return found.run(processes=processes, audit=audit, track=track, on_news=tell)
    except KeyboardInterrupt:
        people.print("Interrupted; what is done is kept: the same command goes on.")
        raise


def _line(row: Row) -> str:
    if row.status == "failed":
        return f"[red]failed[/] {escape(row.cell)}: {escape(row.reason)}"
    quality = "" if row.quality is None else f": {row.metric} {row.quality:.4g}"
    spent = "" if row.epsilon_spent is None else f", epsilon {row.epsilon_spent:.3g}"
    return f"{escape(row.cell)}{quality}{spent}, {row.seconds:.0f} s"


def _left(news: News) -> str:
    if news.left is None:
        return ""
    return f", {news.left / 60:.0f} min left" if news.left >= _MINUTES else f", {news.left:.0f} s left"


@sweep.command("show")
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Print the frontier as a table, and draw it: SWEEP/frontier.svg."""
    from .. import atomic_file
    from ..experiments.sweep.frontier import Frontier
    from ..experiments.sweep.page import figure_file, table_of

    found = Frontier.of(folder)
    drawn = folder / "frontier.svg"
    atomic_file.write(drawn, figure_file(found).encode())
    if as_json:
        said = {"sweep": str(folder), "metric": found.measure.metric.name, "figure": str(drawn)}
        points, rows = [point.to_json() for point in found.rows], [asdict(row) for row in found.cells]
        print(json.dumps(said | {"frontier": points, "rows": rows}))
        return
    columns, lines = table_of(found)
    table = Table(title=f"{found.asked['name']}: {found.measure.words} ({found.measure.direction})")
    for name in columns:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    out = Console()
    (out if out.width >= _WIDE else Console(width=_WIDE)).print(table)
    for row in found.failed:
        people.print(f"[red]failed[/] {escape(row.cell)}: {escape(row.reason)}", soft_wrap=True)
    people.print(f"Figure: {escape(str(drawn))}", soft_wrap=True)
