"""Flower's SuperLink in a process of its own:

    python -P -m fedblocks.server.superlink.process PLANE HOST PORT PARENT

Companies reach its fleet interface over TLS, on the port that their kits name. Everything else is on a Unix socket in
PLANE/superlink, a folder that its owner alone can enter. Runs are not started from here: a run's coordinator is a
process of its own, which asks for the run's task through the socket. It ends with the process PARENT. Nothing here
needs torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import uvicorn

from ...errors import FedblocksError, RunError
from ...protocol.flower_parts import put_in_place
from ...protocol.log_text import escape_logs
from ..run_lock import exclusive
from . import DATABASE, FOLDER, LOG, SOCKET
from .admission import FleetOnly

_LARGE_DATABASE, _LARGE_LOG = 64 << 20, 10 << 20
_GRACE = 2


class _Listener(uvicorn.Server):
    """Leaves the process's signals alone: there are two of them in it."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def main(plane: str, host: str, port: str, parent: str) -> None:
    """Serve until SIGTERM, or until the parent is gone. Raises: RunError where it cannot listen."""
    from flwr.supercore.app_utils import start_parent_process_monitor

    escape_logs()
    os.umask(0o077)
    flower = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of that name
    own, folder = Path(plane, "own.pem"), Path(plane, FOLDER)
    os.chdir(folder)  # a socket's path may have a hundred characters, a folder's more
    with exclusive(folder, "superlink.lock"):
        _shrink(Path(DATABASE))
        _log()
        start_parent_process_monitor(int(parent))
        put_in_place(flower, "_run_superlink_http_api", _serve)
        sys.argv = [
            "flower-superlink",
            *("--host", host, "--port", port),
            *("--ssl-certfile", str(own), "--ssl-keyfile", str(own.with_suffix(".key"))),
            *("--ssl-ca-certfile", str(own), "--database", DATABASE, "--isolation", "process"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        ]
        flower.flower_superlink()


def _serve(lifespan_config: Any) -> None:
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
    with _listening(lifespan_config.host, lifespan_config.port) as public, _local(SOCKET) as private:
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


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise RunError(f"cannot listen on {host}:{port} ({error.strerror})") from None


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


def _log() -> None:
    """What Flower and its server say goes to a file that cannot fill the disk, whoever knocks at the port."""
    handler = RotatingFileHandler(LOG, maxBytes=_LARGE_LOG, backupCount=2, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("flwr", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


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
