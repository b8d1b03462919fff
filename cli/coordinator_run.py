"""`fedblocks coordinator plan`, `run`, `status`, `watch` and `stop`: a coordinator that runs unattended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, RunError
from .coordinator import coordinator
from .options import Metrics
from .runs import RunsDir

if TYPE_CHECKING:
    from ..server.run_folder import RunFolder

people = Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Run = Annotated[Path, typer.Argument(help="a run's folder")]
Folder = Annotated[Path, typer.Argument(help="the coordinator's own folder")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")]
Over = Annotated[
    Literal["data-plane", "flower"] | None,
    typer.Option(help="how messages travel; none means Flower where the roster tells of a SuperLink"),
]
_ENDS_WITHIN = 120.0


def say(text: str) -> None:
    """A line for people, with nothing in it taken for markup."""
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@coordinator.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="a new folder, readable by its owner alone")],
    listen: Annotated[str, typer.Option(help="where the data plane listens")] = "0.0.0.0:9443",
    as_json: AsJson = False,
) -> None:
    """Make the coordinator's own folder with a commented transport.toml. Nothing that is there is overwritten."""
    from ..server.stream import ServiceSettings

    made = ServiceSettings.first(folder, listen)
    if as_json:
        print(json.dumps({"folder": str(folder), "settings": str(made), "listen": listen}))
        return
    quoted = shlex.quote(str(folder))
    say(f"Made {made}. Next:")
    steps = (
        f"fedblocks coordinator request {quoted} --host NAME, and send the request to the provisioner",
        f"fedblocks coordinator install KIT {quoted} --fingerprint FINGERPRINT",
        f"fedblocks coordinator plan PRESET --folder {quoted}",
        f"fedblocks coordinator run RUN {quoted}, or fedblocks coordinator up {quoted} as a service",
    )
    for number, step in enumerate(steps, start=1):
        say(f"  {number}. {step}")


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
        total = settings.pretraining.total_steps(settings.model.blocks)
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
    over: Over = None,
    metrics: Metrics = None,
    parent: Annotated[int | None, typer.Option(hidden=True, help="end with this process")] = None,
    as_json: AsJson = False,
) -> None:
    """Coordinate a run with the companies that dial in, to its end; waits for them as long as it takes."""
    from ..protocol.log_text import escape_logs
    from ..server.queue import release
    from ..server.run_folder import RunFolder
    from .serving import end_with, serve_run

    escape_logs()
    if parent is not None:
        end_with(parent)
    prepared = RunFolder.deployable(run)
    if len(prepared.metrics()) > 1 and not resume:
        raise InputError("RUN", str(run), "has begun already; go on with it: --resume")
    release(prepared)
    result = serve_run(prepared, folder, say, metrics, over=over)
    if as_json:
        print(json.dumps(result))


@coordinator.command("status")
def status(run: Run, as_json: AsJson = False) -> None:
    """How a run stands: its round, its companies by name, who is missing since when."""
    from ..server.run_folder import RunFolder

    found = _with_epsilon(RunFolder.existing(run))
    if as_json:
        print(json.dumps(found))
    else:
        people.print(_table(found))


@coordinator.command("watch")
def watch(run: Run, seconds: Annotated[float, typer.Option(min=0.1, help="between two looks")] = 1.0) -> None:
    """The same as a live table, until the run ends or Ctrl-C."""
    from ..server.run_folder import RunFolder

    folder = RunFolder.existing(run)
    found = _with_epsilon(folder)
    with Live(_table(found), console=people, auto_refresh=False) as live:
        while True:
            found = _with_epsilon(folder, found)
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


def _with_epsilon(run: RunFolder, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """How a run stands, with each company's epsilon by the coordinator's own account, an upper limit, and as its
    signed statement gives it. `before`: what was found last, whose account holds until another round is over."""
    from ..server.own_account import own_accounts
    from ..server.standing import standing_of

    found = standing_of(run)
    if before is not None and before["round"] == found["round"]:
        found["epsilon"] = before["epsilon"]
    elif run.plan().private:
        found["epsilon"] = {
            each.company: {
                "at_most": each.epsilon,
                "stated": None if each.statement is None or each.out_of_date else each.statement.epsilon,
            }
            for each in own_accounts(run)
        }
    else:
        found["epsilon"] = {}
    return found


def _table(found: dict[str, Any]) -> Table:
    from ..server.reasons import evaluation_in_words, in_words

    place = f"{found['state']}, round {found['round']} of {found['rounds']}"
    if found["blocks"]:
        place += f"; next block {', '.join(map(str, found['blocks']))}"
    if found["phase"]:
        place += f", phase {found['phase']}"
    table = Table(
        "company",
        "connected",
        "since",
        "last round",
        "epsilon so far",
        title=f"{escape(found['run'])}: {place}",
    )
    for name in sorted(found["companies"] | found["epsilon"]):
        company = found["companies"].get(name, {"connected": False, "since": "", "last": None})
        last, spent = company["last"], found["epsilon"].get(name)
        told = "" if last is None else in_words(last) if last else "took part"
        cost = "" if spent is None else f"at most {spent['at_most']:.3g}"
        if spent is not None and spent["stated"] is not None:
            cost = f"{spent['stated']:.3g}, signed"
        table.add_row(escape(name), "yes" if company["connected"] else "no", company["since"], told, cost)
    words = [f"{name} {value:.4g}" for name, value in (found["quality"] or {}).items()]
    if found["evaluation"]:
        words.append(f"at the companies: {evaluation_in_words(found['evaluation'])}")
    if found["waits"]:
        words.append(f"waits for a person: {found['waits']['why']}")
    elif found["why"]:
        words.append(found["why"])
    elif found["model_with"]:
        words.append(f"the final model is with {', '.join(found['model_with'])}")
    table.caption = escape("\n".join(words))
    return table
