"""What one dialling side may take of the coordinator: streams, threads, connections, descriptors.

gRPC for Python sees a connection only once it carries a request of a company: whom it comes from cannot be counted
before. So connections that say nothing are cut after a while, and their number is bounded below what the process can
open; who fills that bound from one address is a firewall's to stop.
"""

from __future__ import annotations

import sys

from ...protocol.transport.frames import OPTIONS

# Of one company: one in use, one that took over, one that is being refused.
STREAMS = 3

# A connection that does not finish its handshake takes a descriptor and about 21 kB: this many seconds of it.
_HANDSHAKE = 10
# A connection without a stream is of no use to a company.
_IDLE = 30
# More would be taken up by strangers; what the process needs besides are its checkpoints, metrics and libraries.
_MOST_FILES, _OWN_FILES = 1 << 16, 512


def threads(companies: int) -> int:
    """A stream holds a thread. Refusals, which wait for nobody, have a few of their own."""
    return STREAMS * companies + 4


def server_options() -> list[tuple[str, int]]:
    """gRPC's options of the server; raises this process's limit of open files on the way."""
    files = _raised_open_files()
    return [
        *OPTIONS,
        ("grpc.max_concurrent_streams", STREAMS),  # of a connection
        ("grpc.max_allowed_incoming_connections", max(files - _OWN_FILES, files // 2)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE * 1000),
        ("grpc.max_connection_idle_ms", _IDLE * 1000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # a second coordinator on the port is a mistake, not a helper
    ]


def _raised_open_files() -> int:
    """The most files this process may have open, after raising it as far as the system lets it."""
    if sys.platform == "win32":
        return _MOST_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
        except (OSError, ValueError):  # some systems say infinity and mean less
            return soft
    return most if soft == resource.RLIM_INFINITY else soft
