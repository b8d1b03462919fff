"""The address and certificates with which a company's agent connects: from its own files, never from a message.

HOME/transport/
    transport.toml     address = "host:port" of the coordinator's data plane
    own.key, own.pem   the company's key and certificate for it
    coordinator.pem    the coordinator's certificate, received out of band
    lock               held by the running agent
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError, ProtocolError
from ..protocol.expiry import Notice, of_company, refuse_ended
from ..protocol.transport.address import Address
from ..protocol.transport.certificates import OwnCertificate, certificate_of, read
from ..protocol.transport.handshake import fault
from ..settings import parsed_toml, read_text, validated

FOLDER = "transport"


class EndpointSettings(BaseModel):
    """`transport.toml` of a company."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: Address
    largest_message_mb: int = Field(1024, ge=1, le=16384)
    patience: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds without a coordinator after which the agent stops; none: it dials for ever",
    )


@dataclass(frozen=True)
class Endpoint:
    """The coordinator's address and pinned certificate, with the company's own certificate."""

    settings: EndpointSettings
    own: OwnCertificate
    coordinator: bytes
    home: Path | None = None  # whose files these are, to say what is wrong with them

    @classmethod
    def configured(cls, home: Path) -> bool:
        """Whether this company has set up the data plane."""
        return (home / FOLDER / "transport.toml").is_file()

    @classmethod
    def of(cls, home: Path) -> Endpoint:
        """Read and check the company's files; InputError for one that is missing, expired or not usable."""
        folder = home / FOLDER
        path = folder / "transport.toml"
        raw = parsed_toml("transport.toml", path, read_text("transport.toml", path))
        coordinator = read(folder / "coordinator.pem")
        certificate_of(coordinator, str(folder / "coordinator.pem"))
        found = cls(validated(EndpointSettings, raw), OwnCertificate.load(folder), coordinator, home)
        refuse_ended(found.notices())
        return found

    def current(self) -> Endpoint:
        """As the files are by now, so that a new kit counts at the next connection; itself if they are of no use."""
        try:
            return self if self.home is None else Endpoint.of(self.home)
        except InputError:
            return self

    def notices(self) -> list[Notice]:
        """What ends soon or has ended of this company's certificates and roster."""
        return [] if self.home is None else of_company(self.home)

    def fault(self) -> str | None:
        """Why no connection can be made, in words: an expired certificate, or what a handshake shows."""
        try:
            for notice in self.notices():
                if not notice.valid:
                    return notice.rule
            folder = None if self.home is None else self.home / FOLDER
            return fault(self.settings.address, self.coordinator, folder)
        except InputError as error:  # a file that was damaged, or is being replaced, must not end the agent
            return str(error)


@contextmanager
def exclusive_agent(home: Path) -> Iterator[None]:
    """Allow one agent of a home at a time, so that a coordinator that starts many agents keeps one process busy.

    Raises:
        ProtocolError: "busy", while another agent runs.
    """
    lock = FileLock(home / FOLDER / "lock", timeout=0, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ProtocolError("busy", "an agent of this home is running already") from None
    try:
        yield
    finally:
        lock.release()
