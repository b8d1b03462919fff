"""Which run a command is about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RunError

if TYPE_CHECKING:
    from ..server.run_folder import RunFolder

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where run folders live")]
RunArgument = Annotated[Path | None, typer.Argument(help="a run folder; none means the newest")]


def existing_run(run: Path | None, runs_dir: Path) -> RunFolder:
    """The run of this folder, or the newest. Raises: RunError where there is none."""
    from ..server.run_folder import RunFolder

    if run is not None:
        return RunFolder.existing(run)
    found = sorted(p.parent for p in runs_dir.glob("[!.]*/plan.json"))
    if not found:
        raise RunError(f"{runs_dir}: no run here yet; make one with `fedblocks simulate digits`")
    return RunFolder.existing(max(found, key=lambda p: (p / "plan.json").stat().st_mtime))


def shortest(path: Path) -> str:
    """For a command line, quoted where a shell needs it; relative to here where that is shorter to type."""
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(path))
