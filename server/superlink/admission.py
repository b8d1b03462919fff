"""What companies reach of a SuperLink: Flower's fleet interface, and nothing else.

Flower serves its interfaces on one port. Control has no authentication in its open-source build, so who reaches that
port can start runs, and the runtime interface hands out their messages. Here the port admits the calls that a
registered node makes, by their exact paths; control and runtime are on a socket in the coordinator's own folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# All that a SuperNode calls whose key is registered; Flower sends arrays in pieces of 5 MB.
ADMITTED = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
LARGEST_BODY = 64 << 20
# Of all bodies that have come and are not dealt with: who knocks without a key must not fill the memory.
MOST_HELD = 1 << 30
_BODY_SECONDS = 300.0


class FleetOnly:
    """An ASGI application in front of Flower's: 404 for whatever is not admitted, 413 for what is too large, 503 for
    what there is no room for, 408 for what takes too long.

    Flower reads a body before it looks at who sends it, so a body without a size, or of too large a one, is not read;
    nor is one that comes in chunks, whose size no header tells.
    """

    def __init__(self, app: App, most_held: int = MOST_HELD, body_seconds: float = _BODY_SECONDS) -> None:
        self._app, self._most, self._seconds = app, most_held, body_seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        if scope["method"] != "POST" or scope["path"] not in ADMITTED:
            await _refuse(send, 404)
        elif not 0 <= _size(scope) <= LARGEST_BODY:
            await _refuse(send, 413)
        else:
            await self._passed_on(scope, receive, send)

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Flower gets the request once all of its body is here."""
        parts: list[MutableMapping[str, Any]] = []
        try:
            if status := await self._read(receive, parts):
                await _refuse(send, status)
                return
            left = iter(parts)

            async def again() -> MutableMapping[str, Any]:
                return next(left, None) or await receive()

            await self._app(scope, again, send)
        finally:
            self._held -= sum(_length(part) for part in parts)

    async def _read(self, receive: Receive, parts: list[MutableMapping[str, Any]]) -> int:
        """Collect a body's parts; the status of a refusal, or 0."""
        try:
            async with asyncio.timeout(self._seconds):
                while not parts or parts[-1].get("more_body"):
                    parts.append(await receive())
                    self._held += _length(parts[-1])
                    if self._held > self._most:
                        return 503
        except TimeoutError:
            return 408
        return 0


def _length(part: MutableMapping[str, Any]) -> int:
    return len(part.get("body", b""))


def _size(scope: Scope) -> int:
    """The body's size as its one header says; -1 where it says none, or something else, or the body has another."""
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        return -1  # of both headers this one counts
    sizes = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(sizes[0]) if len(sizes) == 1 and sizes[0].isdigit() else -1


async def _refuse(send: Send, status: int) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", b"0"), (b"connection", b"close")],
        }
    )
    await send({"type": "http.response.body", "body": b""})
