"""How an agent and its worker talk: a line of JSON, then the bytes whose sizes it declares.

Both ends are of one installation on one machine, over pipes that nobody else has.
"""

from __future__ import annotations

import json
from typing import IO, Any

_SIZES = "sizes"


def send(pipe: IO[bytes], told: dict[str, Any], *parts: bytes) -> None:
    pipe.write(json.dumps(told | {_SIZES: [len(part) for part in parts]}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """What was sent; None where the other end is gone, whatever it had begun to send."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    told: dict[str, Any] = json.loads(line)
    sizes = told.pop(_SIZES)
    parts = [pipe.read(size) for size in sizes]
    return (told, parts) if [len(part) for part in parts] == sizes else None
