"""A coordinator's run as its people see it: one line an event, and an end that the exit code tells truly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from ..errors import ProtocolError, RunError
from ..server.events import CompaniesAwaited, Event, RoundFailed, RoundFinished
from ..server.reasons import absences_in_words, in_words, named
from ..server.run_folder import RunFolder
from .failures import is_full


def lines(say: Callable[[str], None]) -> Callable[[Event], None]:
    """A subscriber that says what happens, a line an event."""

    def tell(event: Event) -> None:
        if isinstance(event, RoundFinished):
            status = in_words(event.row.get("status", "public model"))
            say(f"round {event.round}: {status}{_without(event.row)}")
        if isinstance(event, CompaniesAwaited):
            say(f"waiting for {named(event.missing)}" if event.missing else "waiting for companies")
        if (
            isinstance(event, RoundFailed) and event.status == "too_few"
        ):  # others are lost, and told as finished
            why = absences_in_words(event.absent) or "too few companies"
            say(f"round {event.round} failed and is begun anew: {why}")

    return tell


def _without(row: Any) -> str:
    absent = row.get("absent")
    return f", without {absences_in_words(absent)}" if absent else ""


def outcome(run: RunFolder) -> dict[str, Any]:
    """What a run has come to. Raises: ProtocolError where a round of it was not done."""
    rows = run.metrics()
    rounds = rows[1:]
    done = sum(row["status"] == "done" for row in rounds)
    if not done:
        why = absences_in_words(rounds[-1]["absent"]) if rounds else "none was begun"
        raise ProtocolError("no_round_done", f"no round was done: {why}")
    if done < len(rounds):
        lost = [
            f"round {row['round']}: {in_words(row['status'])}" for row in rounds if row["status"] != "done"
        ]
        text = f"{done} of {len(rounds)} rounds were done, and the model is that of these; {'; '.join(lost)}"
        raise ProtocolError("rounds_lost", text)
    return {"folder": str(run.path), "rounds": rows[-1]["round"], "rounds_done": done}


def serve_run(
    run: RunFolder, folder: Path, say: Callable[[str], None], metrics: str | None = None
) -> dict[str, Any]:
    """Coordinate a run over the data plane of `folder` to its end; what it has come to.

    Whatever interrupts, connected companies are told that it will go on. `metrics`: where Prometheus reads figures.

    Raises: what `coordinate` raises; InputError where the folder's files cannot be used.
    """
    from ..protocol.observability import observing
    from ..server.attendance import Patience
    from ..server.coordinator import coordinate
    from ..server.run_lock import exclusive
    from ..server.run_metrics import RunMetrics
    from ..server.standing import Standing
    from ..server.stream import ServiceSettings, StreamGrid

    settings = ServiceSettings.load(folder)
    settings.check_roster(folder, run.roster())
    again = f"fedblocks coordinator run {run.path} {folder} --resume"
    with exclusive(run.path):  # before the port is taken
        service = settings.service(folder, run.plan().run)
        service.start(settings.listen)
        companies = service.pinned.companies
        say(f"Listening on {settings.listen} for {named(companies)}")
        standing, ended = Standing(run, companies, lambda: service.connected), "later"
        try:
            with terminated_as_interrupted(), standing.written(), observing(metrics) as seen:
                patience = Patience.of(run.settings(), gather=settings.gather)
                grid, subscribers = StreamGrid(service), [lines(say), standing.tell]
                if seen is None:
                    coordinate(grid, run, subscribers, patience=patience)
                else:
                    told = RunMetrics.of(seen, run.plan(), service)
                    coordinate(told.timed(grid), run, [*subscribers, told], patience=patience)
                ended = "done"
        except KeyboardInterrupt:
            say(f"interrupted; nothing is lost, agents wait; go on: {again}")
            raise
        except (OSError, SafetensorError) as error:
            if not is_full(error):
                raise
            raise RunError(f"{run.path}: no space left; nothing is lost: make room, then {again}") from None
        finally:
            service.close(ended)
    return outcome(run)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which a service manager sends, ends the run as Ctrl-C does: companies are told that it will go on."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
