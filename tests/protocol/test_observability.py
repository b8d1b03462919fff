"""Figures and the health check over real HTTP: what is asked for is answered, for this machine alone."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from fedblocks.errors import InputError, RunError
from fedblocks.protocol import observability
from fedblocks.protocol.observability import Observability, observing


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    reply = connection.getresponse()
    found = reply.status, reply.read().decode()
    connection.close()
    return found


def test_figures_and_health_are_answered() -> None:
    """By the format's own parser; the health check follows what it is given, with the status that says so."""
    seen = Observability("0")
    seen.gauge("round", "the round").set(7)
    seen.counter("messages", "by code", ["code"]).labels("privacy").inc(2)
    port = seen.start()
    try:
        status, text = get(port, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert status == 200
        assert families["fedblocks_round"].samples[0].value == 7
        totals = [s for s in families["fedblocks_messages"].samples if s.name == "fedblocks_messages_total"]
        assert [(s.labels, s.value) for s in totals] == [({"code": "privacy"}, 2)]
        assert all(name.startswith("fedblocks_") for name in families)
        assert get(port, "/healthz") == (200, "ok\n")
        seen.health = lambda: "rounds_fail"
        assert get(port, "/healthz") == (503, "rounds_fail\n")
        assert get(port, "/etc/passwd")[0] == 404
        assert get(port, "/metrics", "POST")[0] == 501
    finally:
        seen.close()
    with pytest.raises(OSError, match="refused"):
        get(port, "/metrics")


def test_a_client_that_says_nothing_keeps_no_other_waiting() -> None:
    seen = Observability("0")
    port = seen.start()
    try:
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET /met")
            assert get(port, "/healthz")[0] == 200
    finally:
        seen.close()


def test_who_opens_many_connections_or_sends_slowly_takes_no_more_than_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a stranger that takes all files that the agent may open: it could then not open its ledger."""
    monkeypatch.setattr(observability, "_SLOWEST", 1.0)
    seen = Observability("0")
    port, before = seen.start(), threading.active_count()
    with ExitStack() as held:
        held.callback(seen.close)
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        most, until = 0, time.monotonic() + 60
        for each in slow:
            held.enter_context(each)
            each.sendall(b"GET /metrics HTTP/1.1\r\nX-A: ")
        while time.monotonic() < until:
            for each in slow:
                with suppress(OSError):
                    each.sendall(b"b")
            most = max(most, threading.active_count() - before)
            time.sleep(0.1)
            if most and threading.active_count() <= before:
                break
        assert threading.active_count() <= before  # each was cut, though it never paused for long
        # A thread a connection, one for its time, and one that takes connections on.
        assert 0 < most <= 2 * observability._MOST_AT_ONCE + 1
        assert get(port, "/healthz")[0] == 200


def test_an_address_of_ipv6_is_one_too() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with observing("[::1]:0") as seen:
        assert seen is not None
        assert seen._server is not None
        assert seen._server.server_address[0] == "::1"


def test_a_port_alone_is_of_this_machine_alone() -> None:
    """Would catch figures that the network can read without anybody having asked for it."""
    seen = Observability("0")
    port = seen.start()
    try:
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.2", port))  # free, unless the server listens on every address
    finally:
        seen.close()


def test_nothing_listens_unless_asked() -> None:
    with observing(None) as seen:
        assert seen is None


def test_bad_addresses_are_refused_by_name() -> None:
    for listen in ("nowhere", "127.0.0.1:", ":9464", "127.0.0.1:99999", "127.0.0.1:x", ""):
        with pytest.raises(InputError, match="expected HOST:PORT"):
            Observability(listen)
    with observing("127.0.0.1:0") as first:
        assert first is not None
        assert first._server is not None
        taken = first._server.server_address[1]
        with (
            pytest.raises(RunError, match=f"cannot listen on 127.0.0.1:{taken}"),
            observing(f"127.0.0.1:{taken}"),
        ):
            pass
