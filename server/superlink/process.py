"""Flower's SuperLink in a process of its own:

    python -P -m fedblocks.server.superlink.process PLANE PARENT

Companies reach its fleet interface over TLS, on the port that their kits name. Everything else is on a Unix socket in
PLANE/superlink, a folder that its owner alone can enter. Runs are not started from here: a run's coordinator is a
process of its own, which asks for the run's task through the socket. It ends with the process PARENT.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import uvicorn

from ...errors import FedblocksError, RunError
from ...protocol.flower_parts import put_in_place
from ...protocol.log_text import escape_logs
from ..run_lock import exclusive
from .admission import FleetOnly
from .place import LinkPlace

_LARGE_DATABASE = 64 << 20
_GRACE = 2


class _Listener(uvicorn.Server):
    """Leaves the process's signals alone: there are two of them in it."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def main(plane: str, parent: str) -> None:
    """Serve until SIGTERM, or until the parent is gone. Raises: RunError where it cannot listen."""
    from flwr.supercore.app_utils import start_parent_process_monitor

    escape_logs()
    flower = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of that name
    place = LinkPlace.of(Path(plane))
    os.chdir(place.folder)  # a socket's path may have a hundred characters, a folder's more
    with exclusive(place.folder, "superlink.lock"):
        _shrink(place.database)
        start_parent_process_monitor(int(parent))
        put_in_place(flower, "_run_superlink_http_api", partial(_serve, place))
        sys.argv = [
            "flower-superlink",
            *("--host", place.host, "--port", str(place.port)),
            *("--ssl-certfile", str(place.certificate), "--ssl-keyfile", str(place.plane / "own.key")),
            *("--ssl-ca-certfile", str(place.certificate)),
            *("--database", place.database.name, "--isolation", "process"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        ]
        flower.flower_superlink()


def _serve(place: LinkPlace, lifespan_config: Any) -> None:
    """In place of Flower's own: it would serve all interfaces on one port."""
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app

    app = create_app(lifespan_config, SuperLinkLifespan)
    quiet: dict[str, Any] = {"access_log": False, "log_config": None, "timeout_graceful_shutdown": _GRACE}
    inside = _Listener(uvicorn.Config(app, lifespan="on", **quiet))
    outside = _Listener(
        uvicorn.Config(
            FleetOnly(app),
            lifespan="off",
            ssl_certfile=lifespan_config.ssl_certfile,
            ssl_keyfile=lifespan_config.ssl_keyfile,
            proxy_headers=False,
            server_header=False,
            **quiet,
        )
    )
    with _listening(place) as public, _local(place.socket.name) as private:
        asyncio.run(_both(outside, public, inside, private))


async def _both(outside: _Listener, public: socket.socket, inside: _Listener, private: socket.socket) -> None:
    def end() -> None:
        outside.should_exit = inside.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    tasks = [
        asyncio.create_task(inside.serve([private])),
        asyncio.create_task(outside.serve([public])),
    ]
    # One alone is of no use.
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    end()
    await asyncio.gather(*tasks)


def _listening(place: LinkPlace) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family, backlog=128)
    except OSError as error:
        raise RunError(f"cannot listen on {place.host}:{place.port} ({error.strerror})") from None


def _local(name: str) -> socket.socket:
    """A Unix socket in this folder, for this user alone; whoever held one of that name is gone, by the lock."""
    with suppress(FileNotFoundError):
        os.unlink(name)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        made.bind(name)
    finally:
        os.umask(before)
    made.listen(128)
    return made


def _shrink(database: Path) -> None:
    """Give back the space of messages that were delivered; SQLite would keep it."""
    if database.is_file() and database.stat().st_size > _LARGE_DATABASE:
        connection = sqlite3.connect(database)
        try:
            connection.execute("VACUUM")
        finally:
            connection.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (FedblocksError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
