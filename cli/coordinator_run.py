"""`fedblocks coordinator plan`, `run`, `status`, `watch` and `stop`: a coordinator that runs unattended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, RunError
from .coordinator import coordinator
from .options import Metrics
from .runs import RunsDir

people = Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Run = Annotated[Path, typer.Argument(help="a run's folder")]
Folder = Annotated[Path, typer.Argument(help="the coordinator's own folder")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")]
_ENDS_WITHIN = 120.0


def say(text: str) -> None:
    """A line for people, with nothing in it taken for markup."""
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@coordinator.command("plan")
def plan(
    preset: Annotated[str, typer.Argument(help="a preset's name or a TOML file")],
    folder: Annotated[
        Path, typer.Option("--folder", help="the coordinator's own folder, with its roster.toml")
    ],
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Make a run for the companies of the roster: a public model and a plan, from public data alone."""
    from ..experiments.presets import load_settings
    from ..protocol.identity import ROSTER_FILE, load_roster

    if not (folder / ROSTER_FILE).is_file():
        install = f"fedblocks coordinator install KIT {shlex.quote(str(folder))}"
        rule = f"no such file; install the coordinator's kit first: {install}"
        raise InputError("roster", str(folder / ROSTER_FILE), rule)
    roster = load_roster(folder / ROSTER_FILE)
    chosen = load_settings(preset, overrides or [])
    from ..experiments.simulation.planning import for_companies, plan_run
    from ..experiments.simulation.preparation import new_run
    from ..experiments.simulation.threads import one_core
    from .progress import progress_on

    settings = for_companies(chosen, roster)
    with one_core(), progress_on(people) as progress:
        total = settings.pretraining.steps * settings.model.blocks
        task = progress.add_task("Public pretraining", total=total, note="")
        made = plan_run(
            settings,
            roster,
            new_run(runs_dir, settings),
            on_step=lambda s: progress.update(task, completed=s),
        )
    if as_json:
        print(json.dumps({"folder": str(made.path), "companies": sorted(roster.members)}))
        return
    say(f"Planned {made.path} for {', '.join(sorted(roster.members))}.")
    say(f"Next: fedblocks coordinator run {shlex.quote(str(made.path))} {shlex.quote(str(folder))}")


@coordinator.command("run")
def run(
    run: Run,
    folder: Folder,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a run that has begun")] = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Coordinate a run with the companies that dial in, to its end; waits for them as long as it takes."""
    from ..protocol.log_text import escape_logs
    from ..server.run_folder import RunFolder
    from .serving import serve_run

    escape_logs()
    prepared = RunFolder.deployable(run)
    if len(prepared.metrics()) > 1 and not resume:
        raise InputError("RUN", str(run), "has begun already; go on with it: --resume")
    result = serve_run(prepared, folder, say, metrics)
    if as_json:
        print(json.dumps(result))


@coordinator.command("status")
def status(run: Run, as_json: AsJson = False) -> None:
    """How a run stands: its round, its companies by name, who is missing since when."""
    from ..server.run_folder import RunFolder
    from ..server.standing import standing_of

    found = standing_of(RunFolder.existing(run))
    if as_json:
        print(json.dumps(found))
    else:
        people.print(_table(found))


@coordinator.command("watch")
def watch(run: Run, seconds: Annotated[float, typer.Option(min=0.1, help="between two looks")] = 1.0) -> None:
    """The same as a live table, until the run ends or Ctrl-C."""
    from ..server.run_folder import RunFolder
    from ..server.standing import standing_of

    folder = RunFolder.existing(run)
    with Live(_table(standing_of(folder)), console=people, auto_refresh=False) as live:
        while True:
            found = standing_of(folder)
            live.update(_table(found), refresh=True)
            if not found["running"]:
                return
            time.sleep(seconds)


@coordinator.command("stop")
def stop(run: Run, as_json: AsJson = False) -> None:
    """End the process that coordinates a run. Agents stay up and wait; `coordinator run --resume` goes on."""
    from ..server.run_folder import RunFolder
    from ..server.standing import standing_of

    folder = RunFolder.existing(run)
    found = standing_of(folder)
    if not found["running"]:
        raise RunError(f"{run}: no process coordinates it")
    if found["pid"] is None:
        raise RunError(f"{run}: the process that is at work here is no coordinator, or is only starting")
    os.kill(int(found["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + _ENDS_WITHIN
    while standing_of(folder)["running"]:
        if time.monotonic() > deadline:
            raise RunError(f"{run}: process {found['pid']} has not ended within {_ENDS_WITHIN:g} s")
        time.sleep(0.1)
    if as_json:
        print(json.dumps({"run": found["run"], "stopped": True, "rounds_done": found["rounds_done"]}))
    else:
        say(f"{found['run']} is stopped after {found['rounds_done']} of {found['rounds']} rounds.")


def _table(found: dict[str, Any]) -> Table:
    from ..server.reasons import in_words

    place = f"{found['state']}, round {found['round']} of {found['rounds']}"
    table = Table("company", "connected", "since", "last round", title=f"{escape(found['run'])}: {place}")
    for name, company in found["companies"].items():
        last = company["last"]
        told = "" if last is None else in_words(last) if last else "took part"
        table.add_row(escape(name), "yes" if company["connected"] else "no", company["since"], told)
    if found["why"]:
        table.caption = escape(found["why"])
    return table
