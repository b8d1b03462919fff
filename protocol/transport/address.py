"""Addresses as `host:port`; gRPC would take port 99999 for port 34463 without a word."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

_LARGEST_PORT = 65535


def split(address: str) -> tuple[str, int]:
    """Host and port; an IPv6 host without its brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _checked(address: str) -> str:
    port = split(address)[1]
    if port > _LARGEST_PORT:
        raise PydanticCustomError("port", f"port {port} is above {_LARGEST_PORT}, the largest there is")
    return address


Address = Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$"), AfterValidator(_checked)]
