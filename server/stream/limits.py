"""Limits on what a client may use of the coordinator: streams, threads, connections, file descriptors.

gRPC for Python shows a connection only once it carries a request, so connections cannot be counted by company before.
So idle connections are closed after a while, and their number is limited below what the process can open; a client
that fills this limit from one address must be stopped by a firewall.
"""

from __future__ import annotations

import sys

from ...protocol.transport.frames import OPTIONS

# Streams of one company: one in use, one that takes over, one that is being refused.
STREAMS = 3

# Seconds to finish the handshake; until then a connection takes a descriptor and about 21 kB.
_HANDSHAKE = 10
# Seconds that a connection may have no stream; a company needs none without.
_IDLE = 30
# The largest number of open files, and those kept for the process itself: checkpoints, metrics and libraries.
_MOST_FILES, _OWN_FILES = 1 << 16, 512


def threads(companies: int) -> int:
    """The number of threads: a stream takes one, and refusals, which never wait, have a few more."""
    return STREAMS * companies + 4


def server_options() -> list[tuple[str, int]]:
    """The gRPC server's options; also raises this process's limit of open files."""
    files = _raised_open_files()
    return [
        *OPTIONS,
        ("grpc.max_concurrent_streams", STREAMS),  # for each connection
        ("grpc.max_allowed_incoming_connections", max(files - _OWN_FILES, files // 2)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE * 1000),
        ("grpc.max_connection_idle_ms", _IDLE * 1000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # a second coordinator on the port is a mistake
    ]


def _raised_open_files() -> int:
    """This process's limit of open files, after raising it as far as the system allows."""
    if sys.platform == "win32":
        return _MOST_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
        except (OSError, ValueError):  # some systems report infinity and allow less
            return soft
    return most if soft == resource.RLIM_INFINITY else soft
