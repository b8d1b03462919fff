"""The coordinator's Flower ServerApp, for Flower's simulation engine and for a SuperLink.

`run-dir` names a prepared run (`fedblocks prepare PRESET`), as an absolute path. `data-plane`, if given, names the
folder of the coordinator's data plane: one Flower message then starts the run, all others use the stream.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..errors import InputError
from ..protocol.log_text import escape_logs
from .attendance import Patience
from .coordinator import coordinate
from .run_folder import RunFolder
from .stream.flower_fallback import data_plane

app = ServerApp()

# Seconds without enough companies after which the run ends: Flower keeps what it is told of a run that has failed.
_GATHER = 600.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the prepared run that the configuration names."""
    escape_logs()
    run_dir = str(context.run_config.get("run-dir", ""))
    if not run_dir:
        rule = "name a folder made by `fedblocks prepare`, as in --run-config 'run-dir=\"/path\"'"
        raise InputError("run-dir", run_dir, rule)
    run = RunFolder.deployable(Path(run_dir))
    folder = str(context.run_config.get("data-plane", ""))
    with data_plane(grid, Path(folder) if folder else None, run) as chosen:
        coordinate(chosen, run, patience=Patience.of(run.settings(), gather=_GATHER))
