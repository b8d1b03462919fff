"""What companies reach of a SuperLink: Flower's fleet interface, and nothing else.

Flower serves its interfaces on one port. Control has no authentication in its open-source build, so who reaches that
port can start runs, and the runtime interface hands out their messages. Here the port admits the calls that a
registered node makes, by their exact paths; control and runtime are on a socket in the coordinator's own folder.
"""

from __future__ import annotations

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


class FleetOnly:
    """An ASGI application in front of Flower's: 404 for whatever is not admitted, 413 for what is too large.

    Flower reads a body before it looks at who sends it, so a body without a size, or of too large a one, is not read.
    """

    def __init__(self, app: App) -> None:
        self._app = app

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
            await self._app(scope, receive, send)


def _size(scope: Scope) -> int:
    """The body's size as its one header says; -1 where it says none, or something else."""
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
