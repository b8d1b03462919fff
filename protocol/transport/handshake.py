"""Why a TLS handshake with the coordinator fails: gRPC says "unavailable" whatever the reason.

A plain TLS connection, made after gRPC's has failed, shows which certificate the other side has, and whether it takes
ours. Nothing is sent over it, and nothing that it shows is trusted: what it finds is for the log alone.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ..names import COORDINATOR
from .address import split
from .certificates import CERTIFICATE_FILE, KEY_FILE, UNREADABLE, certificate_of, fingerprint, name_in

_SECONDS = 5.0
_REFUSED = (
    "ends the connection once it has this company's certificate: the company is revoked there, its newest roster is "
    "not installed there yet, or the clocks of the two machines differ; ask the coordinator"
)
_SOON = 1.0


def fault(address: str, pinned: bytes, folder: Path | None) -> str | None:
    """What is wrong with the connection to `address`, in words; None if nothing is found.

    `pinned`: the coordinator's certificate; `folder`: where own.pem and own.key lie, if they are to be tried too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is compared below, and nothing is sent
    context.set_alpn_protocols(["h2"])
    try:
        if folder is not None:
            context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
        with (
            closing(socket.create_connection(split(address), timeout=_SECONDS)) as plain,
            context.wrap_socket(plain, server_hostname=COORDINATOR) as connected,
        ):
            shown = connected.getpeercert(binary_form=True)
            wrong = _of_coordinator(shown or b"", pinned, address)
            if wrong is None and folder is not None and _is_refused(connected):
                return f"the coordinator at {address} {_REFUSED}"
            return wrong
    except ssl.SSLError as error:
        reason = (error.reason or "no reason").lower().replace("_", " ")
        return f"{address} does not speak TLS as a coordinator does ({reason})"
    except (socket.gaierror, UnicodeError):
        return f"the name in {address} cannot be resolved; check the address, and this machine's DNS"
    except ConnectionRefusedError:
        return f"nobody listens on {address}; the coordinator is not up, or the address is wrong"
    except TimeoutError:
        return f"no answer from {address} within {_SECONDS:g} s; a firewall may be in between"
    except OSError as error:
        return f"{address} cannot be reached ({type(error).__name__})"


def _of_coordinator(shown: bytes, pinned: bytes, address: str) -> str | None:
    expected = certificate_of(pinned, "coordinator.pem")
    try:
        found = x509.load_der_x509_certificate(shown)
        name, ends = name_in(found), found.not_valid_after_utc  # read on first use, which may fail too
    except UNREADABLE:
        return f"{address} shows no certificate that can be read; somebody else listens there"
    if fingerprint(found) != fingerprint(expected):
        return (
            f"{address} shows another certificate than the pinned one of the coordinator (made out to "
            f"{name!r}, until {ends:%Y-%m-%d}, SHA-256 {fingerprint(found).hex()[:16]}..., pinned "
            f"{fingerprint(expected).hex()[:16]}...): ask the provisioner for the newest roster and install it; if "
            "there is none, somebody may be in between"
        )
    if datetime.now(UTC) >= ends:
        return (
            f"the coordinator's certificate expired on {ends:%Y-%m-%d}; the coordinator has to make a new one"
        )
    return None


def _is_refused(connected: ssl.SSLSocket) -> bool:
    """In TLS 1.3 a server checks our certificate after the handshake, and gRPC ends the connection without a word."""
    connected.settimeout(_SOON)
    try:
        return not connected.recv(1)  # else the first byte of HTTP/2
    except TimeoutError:
        return False
    except OSError:  # an alert, or a reset
        return True
