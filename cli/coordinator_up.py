"""`fedblocks coordinator up` and `resume`: the coordinator as a service, which takes up whatever is planned."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RunError
from .coordinator import coordinator
from .coordinator_run import AsJson, Folder, Over, Run, say
from .options import Metrics
from .runs import RunsDir

if TYPE_CHECKING:
    from ..server.run_folder import RunFolder

_ITSELF = "from fedblocks.cli.main import main; main()"


@coordinator.command("up")
def up(
    folder: Folder,
    runs_dir: RunsDir = Path("runs"),
    over: Over = None,
    metrics: Metrics = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object a line on stdout")] = False,
) -> None:
    """Take up planned runs, one after another, until this process is told to end; keep the SuperLink they need."""
    from ..protocol.log_text import escape_logs
    from ..server.superlink.kept import KeptLink
    from ..server.superlink.place import LinkPlace
    from ..server.unattended import Service
    from .serving import chosen

    escape_logs()
    transport = chosen(folder, over)
    more = ["--metrics", metrics] if metrics else []
    more += ["--parent", str(os.getpid())]

    def command(run: RunFolder) -> list[str]:
        words = ["coordinator", "run", str(run.path), str(folder.resolve())]
        return [sys.executable, "-P", "-c", _ITSELF, *words, "--resume", "--over", transport, *more, "--json"]

    def tell(what: str, run: str, state: str, why: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        if as_json:
            print(json.dumps({"time": now, "what": what, "run": run, "state": state, "why": why}), flush=True)
        say(f"{run or what}: {state}{f' ({why})' if why else ''}")

    link = None
    if transport == "flower":
        link = KeptLink(LinkPlace.of(folder), lambda state, why: tell("superlink", "", state, why))
    Service(folder, runs_dir, command, link, tell).run()


@coordinator.command("resume")
def resume(run: Run, as_json: AsJson = False) -> None:
    """Let `coordinator up` go on with a run that failed, was stopped, or could not be used before it was mended."""
    from ..server.queue import held, release
    from ..server.run_folder import RunFolder

    folder = RunFolder.existing(run)
    why = held(folder)
    if not release(folder):
        raise RunError(f"{run}: does not wait for anybody")
    if as_json:
        print(json.dumps({"run": folder.plan().run, "waited": why}))
    else:
        say(f"{folder.plan().run} is taken up again by `coordinator up`.")
