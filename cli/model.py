"""`fedblocks model`: the models that runs have made, how they differ, and one to take along."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Format(StrEnum):
    SAFETENSORS = "safetensors"
    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"


people = Console(stderr=True)
model = typer.Typer(no_args_is_help=True, help="List, compare and export the models that runs have made.")

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Run = Annotated[Path, typer.Argument(help="a run folder")]
_SHORT = 12  # of a digest's digits, for people


@model.command("list")
def list_(
    runs_dir: Annotated[Path, typer.Argument(help="where run folders live, or one run")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Runs and their checkpoints: round, digest and quality."""
    from ..server.models import saved_models

    found = saved_models(runs_dir)
    if as_json:
        print(json.dumps({"models": [asdict(each) for each in found]}))
        return
    table = Table()
    for column in ("run", "companies", "round", "digest", "quality"):
        table.add_column(column)
    for each in found:
        quality = "" if each.quality is None else f"{each.metric} {each.quality:.4g} ({each.measured_on})"
        table.add_row(
            escape(each.run),
            "simulated" if each.simulated else "real",
            "" if each.round is None else f"{each.round} of {each.rounds}",
            each.digest[:_SHORT],
            f"[red]{escape(each.problem)}[/]" if each.problem else quality,
        )
    people.print(table)
    if not found:
        people.print(f"No run in {escape(str(runs_dir))}.")


@model.command("diff")
def diff(
    run: Run,
    a: Annotated[int, typer.Argument(min=0, help="a round; 0 is the public model")],
    b: Annotated[int, typer.Argument(min=0, help="another round")],
    as_json: AsJson = False,
) -> None:
    """Compare the models of two rounds block by block: digest, norm of the change, and that by the norm before."""
    from ..server.models import differences
    from ..server.run_folder import RunFolder

    found = differences(RunFolder.existing(run), a, b)
    if as_json:
        print(json.dumps({"run": run.name, "from": a, "to": b, "parts": [asdict(each) for each in found]}))
        return
    table = Table(title=f"{escape(run.name)}: round {a} to round {b}")
    for column in ("part", "values", f"round {a}", f"round {b}", "change", "relative"):
        table.add_column(column)
    for each in found:
        table.add_row(
            each.part,
            f"{each.values:,}",
            each.before[:_SHORT],
            each.after[:_SHORT],
            "none" if each.before == each.after else f"{each.norm:.4g}",
            "" if each.relative is None else f"{each.relative:.2%}",
        )
    people.print(table)


@model.command("export")
def export(
    run: Run,
    to: Annotated[Path, typer.Option("--to", help="a new folder, or a new file NAME.safetensors")],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="safetensors, or of a pretrained model: a checkpoint of transformers (then the default), "
            "or an adapter of peft",
        ),
    ] = None,
    round_: Annotated[int | None, typer.Option("--round", min=0, help="none means the last")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's model with a card that says what it is; what exists already is left alone."""
    from ..server.models import export as written
    from ..server.models import format_of
    from ..server.run_folder import RunFolder

    folder = RunFolder.existing(run)
    form = format_of(folder, None if format_ is None else format_.value)
    card, (tensors, beside) = written(folder, to, round_, form)
    if as_json:
        said = {"model": str(tensors), "card": str(beside), "format": form}
        print(json.dumps(said | {"round": card.round, "digest": card.digest, "guarantee": card.guarantee}))
        return
    people.print(f"Round {card.round} of {card.run}: {tensors} and {beside}", markup=False, soft_wrap=True)
    people.print(f"Guarantee: {card.guarantee}", markup=False, highlight=False, soft_wrap=True)
    print(tensors)
