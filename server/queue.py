"""Which runs of a folder wait to be coordinated, and which wait for a person.

A run that failed, cannot be used or was stopped has `held.json` in its folder, with the reason. It is left alone
until somebody starts it, or takes the mark away with `fedblocks coordinator resume`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import FedblocksError
from ..settings import is_simulation
from .run_folder import RunFolder

_HELD = "held.json"


def held(run: RunFolder) -> dict[str, Any] | None:
    """Why and since when a run waits for a person; none if it does not."""
    return run.read_json(_HELD)


def hold(run: RunFolder, why: str) -> None:
    run.write_json(_HELD, {"why": why, "since": datetime.now().astimezone().isoformat(timespec="seconds")})


def release(run: RunFolder) -> bool:
    """Take the mark away; False if there was none."""
    path = run.path / _HELD
    found = path.is_file()
    path.unlink(missing_ok=True)
    return found


def planned(runs_dir: Path) -> list[RunFolder]:
    """Runs with real companies that are neither finished nor held, in the order in which they were planned."""
    return [run for _, _, run in sorted(_open(runs_dir), key=lambda each: each[:2])]


def _open(runs_dir: Path) -> Iterator[tuple[float, str, RunFolder]]:
    for path in runs_dir.glob("[!.]*/plan.json"):
        try:
            run = RunFolder.deployable(path.parent)
            if is_simulation(run.path) or held(run) is not None or finished(run):
                continue
        except FedblocksError:  # a folder that is no run, or is damaged; `coordinator status` says more
            continue
        yield path.stat().st_mtime, run.path.name, run


def finished(run: RunFolder) -> bool:
    """Whether its last round is over. Raises: RunError where its metrics are damaged."""
    rows = run.metrics()
    return bool(rows) and int(rows[-1]["round"]) >= run.plan().training.rounds
