"""The command line, `fedblocks simulate`, `audit`, `report` and the others that `fedblocks --help` lists.

People read stderr (progress, hints), machines read stdout: with `--json` it ends with one JSON object.
Exit codes: 0 done, 2 input that cannot be used (nothing was written), 3 a privacy or protocol rule
stopped the run, or an audit exceeded its gate, 4 an audit was inconclusive, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..glibc_malloc import keep_freed_memory
from ..protocol.log_text import entry
from . import agent_run, coordinator_run, coordinator_up, kits, unit  # noqa: F401  # they add their commands to those of agent, company and coordinator
from .agent import agent
from .audit import audit
from .bench import bench
from .company import company
from .convert import convert
from .coordinator import coordinator
from .data import data
from .failures import failure_of
from .identity import identity
from .ledger import account, ledger
from .model import model
from .predict import predict
from .provision import provision
from .report import report
from .runs import RunsDir
from .simulate import readable, simulate
from .supernode import supernode
from .sweep import sweep
from .transport import transport
from .trial import trial

# Heavy imports (torch, flwr, settings) wait until a command needs them, so that --help and bad input answer at once.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Companies train side by side, a core each; a second thread for one small operation only gets in their way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

keep_freed_memory()

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(agent, name="agent")
app.add_typer(bench, name="bench")
app.add_typer(company, name="company")
app.add_typer(coordinator, name="coordinator")
app.add_typer(data, name="data")
app.add_typer(ledger, name="ledger")
app.add_typer(model, name="model")
app.add_typer(sweep, name="sweep")
app.add_typer(transport, name="transport")
app.command("account")(account)
app.command("audit")(audit)
app.command("convert")(convert)
app.command("identity")(identity)
app.command("predict")(predict)
app.command("provision")(provision)
app.command("report")(report)
app.command("simulate")(simulate)
app.command("trial")(trial)
app.command("supernode", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    supernode
)
people = Console(stderr=True)
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedblocks {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Federated, company-local adaptation of DiffusionBlocks, with a leakage audit."""


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets that come with fedblocks."""
    from ..experiments.presets import preset_names

    if as_json:
        print(json.dumps({"presets": preset_names()}))
    else:
        print("\n".join(preset_names()))


@app.command()
def prepare(
    preset: Annotated[str, typer.Argument(help="a preset's name or a TOML file")],
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Make a run folder (public model, companies' homes) without running it, for `flwr run`."""
    from ..experiments.presets import load_settings
    from .progress import prepare_with_progress

    run = prepare_with_progress(load_settings(preset, overrides or []), runs_dir, people)
    if as_json:
        print(json.dumps({"folder": str(run.path)}))
    else:
        people.print(f"Prepared [bold]{escape(str(run.path))}[/]. Run it on Flower's simulation engine:")
        nodes = run.settings().companies.count
        if " " in sys.prefix:
            people.print(
                f"[yellow]Flower's SuperLink cannot start from {escape(sys.prefix)}[/]: its database library "
                "splits paths at spaces. Install fedblocks into an environment without one for this command."
            )
        print(
            f"flwr run . --stream --run-config 'run-dir=\"{run.path}\"' "
            f"--federation-config 'num-supernodes={nodes}'"
        )


@app.command()
def pretrain(
    preset: Annotated[str, typer.Argument(help="a preset's name or a TOML file")],
    folder: Annotated[Path, typer.Option("--folder", help="where the model's blocks are kept, a file each")],
    block: Annotated[int | None, typer.Option(help="train this block alone; none means all")] = None,
    processes: Annotated[int, typer.Option(min=1, help="blocks trained at once, a process each")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the public model block by block, never more than one block in a process's memory."""
    from ..experiments.presets import load_settings

    settings = load_settings(preset, overrides or [])
    from .progress import pretrain_with_progress

    result = pretrain_with_progress(settings, folder, people, block=block, processes=processes)
    if as_json:
        print(json.dumps(result))
        return
    for key, value in readable(result):
        people.print(f"{key}: {escape(value)}")
    if not result["untrained"]:
        next_ = (
            f"fedblocks simulate {shlex.quote(preset)} --set {shlex.quote(f'pretraining.folder={folder}')}"
        )
        people.print(f"Next: {escape(next_)}")


def main() -> None:
    """Entry point: errors become one line, and with `--json` one object on stdout; never a traceback of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII alone
    try:
        app(standalone_mode=True)
    except (Exception, KeyboardInterrupt) as error:
        found = failure_of(error)
        if found is None:
            raise
        colour = "" if found.kind == "interrupted" else "[red]"
        # Names in the text may have come with a message.
        people.print(
            f"{colour}{found.kind}:[/] {escape(entry(found.text))}" if colour else found.kind,
            soft_wrap=True,
            highlight=False,
        )
        if "--json" in sys.argv:
            print(json.dumps(found.to_json()))
        sys.exit(found.exit_code)
