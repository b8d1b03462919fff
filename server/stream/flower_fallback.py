"""Starts a run over Flower and moves it to the data plane; if that cannot be used, the run stays on Flower."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from ...errors import RunError
from ...protocol.messages import STREAM, StreamRequest
from ..cohort import wait_for_nodes
from ..run_folder import RunFolder
from .grid import StreamGrid
from .service import AggregationService
from .settings import ServiceSettings

log = logging.getLogger("fedblocks.transport")

# A node works on this message until the run is over.
_LONGEST_RUN = 30 * 86400.0
_POLL, _GATHER = 0.25, 60.0


@contextmanager
def data_plane(
    grid: Grid, folder: Path | None, run: RunFolder, *, nodes_wait: float = 60.0
) -> Iterator[Grid]:
    """The grid of the run: the data plane of `folder` once every company has connected, else `grid` itself.

    Raises:
        InputError: the folder's files cannot be used; that is no reason to fall back.
        RunError: too few nodes are online.
    """
    if folder is None:
        yield grid
        return
    settings, expected = ServiceSettings.load(folder), run.settings().companies.count
    gather = settings.gather or _GATHER
    settings.check_roster(folder, run.roster())
    service = settings.service(folder, run.plan().run)
    nodes = wait_for_nodes(grid, expected, nodes_wait)
    try:
        service.start(settings.listen)
    except RunError as error:
        log.warning("no data plane, continuing over Flower: %s", error)
        yield grid
        return
    request = StreamRequest(run.plan().run, gather).to_record()
    waiting = set(
        grid.push_messages(
            [Message(request, node, STREAM, group_id="stream", ttl=_LONGEST_RUN) for node in nodes]
        )
    )
    ended = "later"  # unless the run comes to its end here
    try:
        up = _gathered(grid, service, waiting, expected, gather)
        if up == expected:
            yield StreamGrid(service)
            ended = "done"
    finally:
        service.close(ended)
        # A node takes its next message only after it has answered this one.
        _collect(grid, waiting, 2 * gather)
    if up < expected:
        log.warning("%d of %d companies connected to the data plane, continuing over Flower", up, expected)
        yield grid


def _gathered(
    grid: Grid, service: AggregationService, waiting: set[str], expected: int, seconds: float
) -> int:
    """How many companies are connected: once all are, one has answered and so will not connect, or time is up."""
    deadline = time.monotonic() + seconds
    while (up := len(service.connected)) < expected and time.monotonic() < deadline:
        if _replied(grid, waiting):  # a company that has answered will not connect
            break
        time.sleep(_POLL)
    return up


def _collect(grid: Grid, waiting: set[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        _replied(grid, waiting)
        time.sleep(_POLL)


def _replied(grid: Grid, waiting: set[str]) -> int:
    replies = list(grid.pull_messages(set(waiting)))
    waiting.difference_update(reply.metadata.reply_to_message_id for reply in replies)
    return len(replies)
