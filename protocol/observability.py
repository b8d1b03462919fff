"""Figures for Prometheus and a health check, over plain HTTP on this machine; both sides use it.

    with observing("127.0.0.1:9464") as seen:   # None: off
        seen.gauge("coordinator_round", "the last round that is over").set(7)
        seen.health = lambda: None              # or one word that says what is wrong

GET /metrics gives the figures in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats),
GET /healthz "ok" with 200, or the word with 503. Nothing here is private: no loss, no epsilon, no size of anybody's
data and no time that depends on one. Whoever reaches the address may read it, and there is no password: it is of this
machine alone unless another address is given.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from ..errors import InputError, RunError

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

HERE = "127.0.0.1"
_PREFIX = "fedblocks_"
_SLOWEST = 5.0  # seconds that a request may take, from its first byte to the last one of the answer
_MOST_AT_ONCE = 16

Health = Callable[[], str | None]


class Observability:
    """A registry of figures of its own, and the server that shows it. `health`: none where all is well.

    Raises: InputError for an address that is none; ModuleNotFoundError where prometheus-client is not installed.
    """

    def __init__(self, listen: str) -> None:
        from prometheus_client import CollectorRegistry, disable_created_metrics

        disable_created_metrics()  # when something first happened is nobody's business
        self._host, self._port = _address(listen)
        self._registry = CollectorRegistry(auto_describe=True)
        self._server: ThreadingHTTPServer | None = None
        self.health: Health = lambda: None

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(_PREFIX + name, text, labels, registry=self._registry)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        from prometheus_client import Counter

        return Counter(_PREFIX + name, text, labels, registry=self._registry)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        from prometheus_client import generate_latest

        text: bytes = generate_latest(self._registry)
        return text

    def start(self) -> int:
        """Listen; returns the port, which the system chooses for port 0. Raises: RunError if it cannot listen."""
        try:
            server = _server(self._host)((self._host, self._port), _handler(self))
        except OSError as error:
            where = f"[{self._host}]" if ":" in self._host else self._host
            raise RunError(
                f"metrics: cannot listen on {where}:{self._port} ({error.strerror}); name another address"
            ) from None
        self._server = server
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        port: int = server.server_address[1]
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def observing(listen: str | None) -> Iterator[Observability | None]:
    """An `Observability` that listens, until the context is left; none where no address is given."""
    if listen is None:
        yield None
        return
    seen = Observability(listen)
    seen.start()
    try:
        yield seen
    finally:
        seen.close()


def _address(listen: str) -> tuple[str, int]:
    """HOST:PORT, or a port of this machine alone."""
    host, colon, port = listen.rpartition(":")
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535 or (colon and not host):
        raise InputError("--metrics", listen, f"expected HOST:PORT, as {HERE}:9464")
    return (host if colon else HERE).strip("[]"), int(port)


def _server(host: str) -> type[ThreadingHTTPServer]:
    """A server for which a few connections are enough: whoever opens many, or sends slowly, must not take the files
    that this process may open from its ledger."""
    room = threading.BoundedSemaphore(_MOST_AT_ONCE)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if room.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            late = threading.Timer(_SLOWEST, _cut, (request,))
            late.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                late.cancel()
                room.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing, as of whoever goes away before the answer."""

    return Server


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(seen: Observability) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SLOWEST
        server_version, sys_version = "fedblocks", ""

        def do_GET(self) -> None:
            if self.path == "/metrics":
                from prometheus_client import CONTENT_TYPE_LATEST

                self._answer(200, seen.text(), CONTENT_TYPE_LATEST)
            elif self.path == "/healthz":
                wrong = seen.health()
                self._answer(
                    503 if wrong else 200, f"{wrong or 'ok'}\n".encode(), "text/plain; charset=utf-8"
                )
            else:
                self._answer(404, b"/metrics or /healthz\n", "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: what a request holds is a stranger's text."""

    return Handler
