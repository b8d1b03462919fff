"""A coordinator's run as its people see it: one line an event, and an end that the exit code tells truly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from ..errors import ProtocolError, RunError
from ..server.events import CompaniesAwaited, Event, ModelDelivered, RoundFailed, RoundFinished
from ..server.reasons import absences_in_words, evaluation_in_words, in_words, named
from ..server.run_folder import RunFolder
from .failures import is_full

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from ..server.attendance import Patience
    from ..server.stream import ServiceSettings

Over = Literal["data-plane", "flower"]
_WATCH = 0.5
_LOOKS_EVERY = 1.0  # seconds between two looks at who is there, each a question to the SuperLink


def lines(say: Callable[[str], None]) -> Callable[[Event], None]:
    """A subscriber that says what happens, a line an event."""

    def tell(event: Event) -> None:
        if isinstance(event, RoundFinished):
            status = in_words(event.row.get("status", "public model"))
            say(f"round {event.round}: {status}{_without(event.row)}")
            if (found := event.row.get("evaluation")) is not None:
                say(f"round {event.round}, at the companies: {evaluation_in_words(found)}")
        if isinstance(event, CompaniesAwaited):
            say(f"waiting for {named(event.missing)}" if event.missing else "waiting for companies")
        if (
            isinstance(event, RoundFailed) and event.status == "too_few"
        ):  # others are lost, and told as finished
            why = absences_in_words(event.absent) or "too few companies"
            say(f"round {event.round} failed and is begun anew: {why}")
        if isinstance(event, ModelDelivered):
            why = "; ".join(f"{name}: {in_words(code)}" for name, code in sorted(event.missing.items()))
            say(
                f"the final model is with {named(event.has) or 'no company'}"
                + (f", not with {why}" if why else "")
            )
            if why:
                say("fedblocks coordinator run --resume sends it to those that were away")

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


@dataclass(frozen=True)
class Reached:
    """The companies of a run through one of the two transports."""

    grid: Grid
    companies: Sequence[str]
    connected: Callable[[], Sequence[str]]
    patience: Patience


def serve_run(
    run: RunFolder,
    folder: Path,
    say: Callable[[str], None],
    metrics: str | None = None,
    *,
    over: Over | None = None,
) -> dict[str, Any]:
    """Coordinate a run with the companies of `folder` to its end; what it has come to.

    Whatever interrupts, connected companies are told that it will go on. `metrics`: where Prometheus reads figures.
    `over`: none means Flower where the installed roster tells of a SuperLink, else the data plane.

    Raises: what `coordinate` raises; InputError where the folder's files cannot be used; RunError where another
    process coordinates a run with these companies.
    """
    from ..protocol.observability import observing
    from ..server.coordinator import coordinate
    from ..server.run_lock import SERVING, exclusive
    from ..server.run_metrics import RunMetrics
    from ..server.standing import Standing
    from ..server.stream import ServiceSettings

    settings = ServiceSettings.load(folder)
    settings.check_roster(folder, run.roster())
    again = f"fedblocks coordinator run {run.path} {folder} --resume"
    reach = _over_flower if chosen(folder, over) == "flower" else _over_data_plane
    try:
        with (
            terminated_as_interrupted(),
            exclusive(run.path),
            exclusive(folder, SERVING),
            reach(run, folder, settings, say) as reached,
        ):
            standing = Standing(run, reached.companies, reached.connected)
            with standing.written(), observing(metrics) as seen:
                grid, subscribers = standing.watching(reached.grid), [lines(say), standing.tell]
                if seen is not None:
                    least = run.plan().secure_aggregation.minimum_cohort
                    told = RunMetrics(
                        seen, expected=reached.companies, connected=reached.connected, least=least
                    )
                    grid, subscribers = told.timed(grid), [*subscribers, told]
                coordinate(grid, run, subscribers, patience=reached.patience)
    except KeyboardInterrupt:
        say(f"interrupted; nothing is lost, agents wait; go on: {again}")
        raise
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise RunError(f"{run.path}: no space left; nothing is lost: make room, then {again}") from None
    return outcome(run)


def chosen(folder: Path, over: Over | None) -> Over:
    """The transport of a run. Raises: InputError for Flower where the folder has no SuperLink."""
    from ..server.superlink.place import LinkPlace

    if over == "flower":
        LinkPlace.of(folder)
    return over or ("flower" if LinkPlace.configured(folder) else "data-plane")


@contextmanager
def _over_data_plane(
    run: RunFolder, folder: Path, settings: ServiceSettings, say: Callable[[str], None]
) -> Iterator[Reached]:
    from ..server.attendance import Patience
    from ..server.stream import StreamGrid

    service = settings.service(folder, run.plan().run)
    service.start(settings.listen)
    companies, ended = service.pinned.companies, "later"
    say(f"Listening on {settings.listen} for {named(companies)}")
    patience = Patience.of(run.settings(), gather=settings.gather)
    try:
        yield Reached(StreamGrid(service), companies, lambda: service.connected, patience)
        ended = "done"
    finally:
        service.close(ended)


@contextmanager
def _over_flower(
    run: RunFolder, folder: Path, settings: ServiceSettings, say: Callable[[str], None]
) -> Iterator[Reached]:
    from ..server.attendance import Patience
    from ..server.stream.settings import look_at_ends
    from ..server.superlink.grid import SuperLinkGrid
    from ..server.superlink.kept import superlink
    from ..server.superlink.place import LinkPlace

    look_at_ends(folder)
    place = LinkPlace.of(folder)
    companies = sorted(place.node_keys())
    patience = replace(Patience.of(run.settings(), gather=settings.gather), poll=_LOOKS_EVERY)
    with superlink(place, lambda what, text: say(f"SuperLink {what}: {text}")) as control:
        grid = SuperLinkGrid(control, place.node_keys)
        with grid.running():
            say(f"SuperNodes are awaited on {place.host}:{place.port}: {named(companies)}")
            yield Reached(grid, companies, lambda: grid.connected, patience)


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


def end_with(parent: int) -> None:
    """End this process as SIGTERM does once the process that has started it is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
