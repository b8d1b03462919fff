"""A company with a valid certificate that speaks HTTP/2 (RFC 9113) by hand, as gRPC's own client never would."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from pathlib import Path

from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.frames_pb2 import Frame

_HEADERS, _SETTINGS = 0x1, 0x4
_END_HEADERS, _ACK = 0x4, 0x1
_INITIAL_WINDOW_SIZE = 0x4
_PATH = "/fedblocks.protocol.transport.DataPlane/Exchange"


def tls(own: OwnCertificate, folder: Path) -> ssl.SSLContext:
    """A client's side of mutual TLS that trusts whomever it meets."""
    own.save(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    context.set_alpn_protocols(["h2"])
    return context


class ByHand:
    """One connection whose window is zero: the server may not send a byte of any answer's body on it."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10.0)
        self._socket = context.wrap_socket(plain)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings))
        self._read_settings()
        self._next = 1

    def open(self, *frames: Frame) -> None:
        """Begin a stream, and say `frames` on it."""
        headers = [(":method", "POST"), (":scheme", "https"), (":path", _PATH), (":authority", "c")]
        headers += [("te", "trailers"), ("content-type", "application/grpc")]
        # RFC 7541, 6.2.2: literal fields without indexing and without Huffman coding.
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)
        sent = _frame(_HEADERS, _END_HEADERS, self._next, block)
        for frame in frames:
            content = frame.SerializeToString()
            sent += _frame(0, 0, self._next, struct.pack(">BI", 0, len(content)) + content)
        self._socket.sendall(sent)
        self._next += 2

    def ended(self, within: float) -> bool:
        """Whether the server closes the connection in so many seconds; nothing that it says is answered."""
        deadline = time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                if not self._socket.recv(1 << 16):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def close(self) -> None:
        self._socket.close()

    def _read_settings(self) -> None:
        """The server's own settings, acknowledged: before that it does not count us as connected."""
        head = self._exactly(9)
        self._exactly(int.from_bytes(head[:3]))
        self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += (more := self._socket.recv(size - len(data)))
            if not more:
                raise ConnectionError("the server has closed the connection")
        return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()
