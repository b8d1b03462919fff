"""All cells of a grid, a process each, so many at a time; what is done is kept, what failed is told.

    sweep = Sweep.of(grid, Path("runs"))
    rows = sweep.run(processes=2, audit=True, on_news=print)

runs/sweep-digits-5d0c3a1b/
    sweep.json       what was asked for, last
    table.parquet    a row for each cell that has ended
    shared/          what cells start from, by digest: run folders without any round
    cells/           the run folder of each cell, which the other commands take as any other
    failures/        the traceback of a cell that failed

Started again it goes on: a cell that is done is skipped, one that was interrupted goes on from its checkpoint, one
that failed begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__, atomic_file
from ...errors import InputError
from ...server.run_lock import exclusive
from ..simulation.machine import check_writable
from ..simulation.preparation import read_inputs
from .grid import Cell, Grid
from .pool import Ended, Job, Pool
from .shared import digest_of
from .table import FORMAT, TABLE, Row, read_table, write_table

ASKED = "sweep.json"


@dataclass(frozen=True)
class News:
    """How the grid stands. `ended`: the row of a cell that has just ended; `left`: seconds, once they can be told."""

    done: int
    cells: int
    share: float
    left: float | None
    ended: Row | None = None


@dataclass
class Sweep:
    """A grid and its folder."""

    grid: Grid
    folder: Path
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: Grid, runs: Path) -> Sweep:
        """The sweep of this grid; nothing is written. Raises: InputError where its table cannot be gone on with."""
        if runs.exists() and not runs.is_dir():
            raise InputError("--runs-dir", str(runs), "is a file, expected a folder")
        folder = runs / f"sweep-{grid.base.name}-{grid.digest[:8]}"
        asked_of(folder, missing={})
        return cls(grid, folder, _rows_in(folder))

    def run(
        self,
        *,
        processes: int = 2,
        audit: bool = False,
        track: Sequence[str] = (),
        on_news: Callable[[News], None] = lambda news: None,
    ) -> list[Row]:
        """The rows of the grid's cells, in its order, once all have ended.

        Raises: InputError, RunError, OSError for a folder that cannot be used; KeyboardInterrupt, with what has ended
        in the table.
        """
        todo = self._todo(audit)
        if todo and not (self._shared(digest_of(todo[0].settings)) / "plan.json").is_file():
            read_inputs(todo[0].settings)  # what is wrong with the data is wrong in all cells
        check_writable(self.folder)
        with exclusive(self.folder, "sweep.lock"):
            atomic_file.write(self.folder / ASKED, json.dumps(self._asked(audit), indent=2).encode())
            self.rows = _rows_in(self.folder)  # another process may have been at work until now
            todo = self._todo(audit)
            for cell in todo:
                if cell.digest in self.rows and self.rows[cell.digest].status == "failed":
                    shutil.rmtree(self._run_of(cell), ignore_errors=True)
            self._run(todo, processes, audit, tuple(track), on_news)
        return [self.rows[cell.digest] for cell in self.grid.cells]

    def _run(
        self,
        todo: Sequence[Cell],
        processes: int,
        audit: bool,
        track: tuple[str, ...],
        on_news: Callable[[News], None],
    ) -> None:
        cells, over = len(self.grid.cells), 0
        done = cells - len(todo)
        on_news(News(done, cells, done / cells, None))
        first: dict[str, Cell] = {}
        for cell in todo:
            first.setdefault(digest_of(cell.settings), cell)
        jobs = [
            Job(f"shared {digest}", cell, self._shared(digest), None, audit)
            for digest, cell in first.items()
            if not (self._shared(digest) / "plan.json").is_file()
        ]
        waits = {job.name for job in jobs}
        for cell in todo:
            digest = digest_of(cell.settings)
            after = f"shared {digest}" if f"shared {digest}" in waits else None
            jobs.append(Job(cell.name, cell, self._shared(digest), self._run_of(cell), audit, after, track))
        pool = Pool(jobs, processes)
        with closing(pool.run()) as events:
            for ended in events:
                row = None if ended is None else self._keep(ended)
                over += row is not None
                on_news(News(done + over, cells, pool.share(done / cells), pool.seconds_left(), row))

    def _keep(self, ended: Ended) -> Row | None:
        """Put what has ended into the table; nothing of what was prepared for others."""
        if ended.job.run is None:
            return None
        row = ended.row
        if row is None:
            cell = ended.job.cell
            row = Row(
                cell=cell.name, kind=cell.kind, seed=cell.settings.seed, axes=cell.axes, status="failed",
                reason=ended.reason, epsilon=cell.settings.privacy.epsilon, digest=cell.digest, version=__version__,
                seconds=round(ended.seconds, 2),
            )  # fmt: skip
            if ended.trace:
                folder = self.folder / "failures"
                folder.mkdir(exist_ok=True)
                atomic_file.write(folder / f"{cell.name}.txt", ended.trace.encode())
        self.rows[row.digest] = row
        write_table(self.folder / TABLE, self._in_order())
        return row

    def _in_order(self) -> list[Row]:
        """The grid's own first; then what an earlier call of this sweep has left."""
        own = {cell.digest: self.rows[cell.digest] for cell in self.grid.cells if cell.digest in self.rows}
        return [*own.values(), *(row for row in self.rows.values() if row.digest not in own)]

    def _todo(self, audit: bool) -> list[Cell]:
        return [cell for cell in self.grid.cells if not self._is_done(cell, audit)]

    def _is_done(self, cell: Cell, audit: bool) -> bool:
        row = self.rows.get(cell.digest)
        if row is None or row.status == "failed":
            return False
        return bool(row.audit) or not audit or cell.kind != "run"

    def _shared(self, digest: str) -> Path:
        return self.folder / "shared" / digest[:16]

    def _run_of(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def _asked(self, audit: bool) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": __version__,
            "preset": self.grid.preset,
            "name": self.grid.base.name,
            "set": list(self.grid.overrides),
            "over": [f"{axis.field}={','.join(axis.values)}" for axis in self.grid.axes],
            "seeds": self.grid.seeds,
            "audit": audit,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def _rows_in(folder: Path) -> dict[str, Row]:
    return {row.digest: row for row in read_table(folder / TABLE)}


def asked_of(folder: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """What was asked for of a sweep.

    Raises: InputError where the folder has none, unless `missing` stands for that, or one of another version.
    """
    path = folder / ASKED
    if not path.is_file():
        if missing is None:
            rule = "no sweep here; make one with `fedblocks sweep digits --over privacy.epsilon=1,3,8,none`"
            raise InputError("sweep", str(folder), rule)
        return missing
    try:
        found = json.loads(path.read_text("utf-8"))
        told = found["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("sweep", str(folder), f"{ASKED} is not whole; move the folder away") from None
    if told != FORMAT:
        rule = f"of format {told}, expected {FORMAT}: made by another version of fedblocks; move it away"
        raise InputError("sweep", str(folder), rule)
    assert isinstance(found, dict)
    return found
