"""The data plane's wire, the same for company and coordinator: gRPC streams under mutual TLS.

`frames` splits messages into frames and joins them within limits, `records` turns Flower's records into bytes,
`certificates` makes and reads keys and certificates, `pinned` maps pinned certificates to companies.
`frames_pb2*` are generated from `frames.proto` by `make proto`.
"""

from .certificates import OwnCertificate
from .frames import VERSION, Closed, Incoming, frames_of, incoming
from .pinned import PinnedCertificates
from .records import decode, encode

__all__ = [
    "VERSION",
    "Closed",
    "Incoming",
    "OwnCertificate",
    "PinnedCertificates",
    "decode",
    "encode",
    "frames_of",
    "incoming",
]
