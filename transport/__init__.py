"""The data plane's wire, the same for company and coordinator: gRPC streams under mutual TLS.

`frames` cuts messages into frames and puts them together again within limits, `records` turns Flower's records
into bytes, `identity` makes and reads keys and certificates, `roster` says whose certificate is whose.
`frames_pb2*` are generated from `frames.proto` by `make proto`.
"""

from .frames import VERSION, Closed, Incoming, frames_of, incoming
from .identity import Identity
from .records import decode, encode
from .roster import Roster

__all__ = ["VERSION", "Closed", "Identity", "Incoming", "Roster", "decode", "encode", "frames_of", "incoming"]
