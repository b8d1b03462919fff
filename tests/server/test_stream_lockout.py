"""One company, or nobody at all, tries to keep the others out of the data plane."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from support.flooding import ByHand, tls
from support.streaming import CERTIFICATES, RUN, Plane, asked, echo, listening, until

from fedblocks.client.agent import Agent
from fedblocks.client.endpoint import Endpoint, EndpointSettings
from fedblocks.protocol.transport.frames import hello
from fedblocks.protocol.transport.frames_pb2 import Frame
from fedblocks.server.stream import limits


@pytest.fixture
def plane() -> Iterator[Plane]:
    with listening() as plane:
        yield plane


@pytest.mark.parametrize("greeting", [[], [hello(RUN, "0")], [hello("another", "0")]])
def test_a_company_that_lets_nothing_be_sent_holds_its_own_threads_only(
    plane: Plane, tmp_path: Path, greeting: list[Frame]
) -> None:
    """40 connections of three streams each under a zero window: an answer in a frame would hold a thread for ever."""
    context = tls(CERTIFICATES["company-0"], tmp_path)
    with ExitStack() as held:
        for _ in range(40):
            connection = ByHand(plane.port, context)
            held.callback(connection.close)
            for _ in range(3):
                connection.open(*greeting)
        started = time.monotonic()
        plane.agent("company-1")
        plane.agent("company-2")
        plane.up("company-1", "company-2")
        assert asked(plane, "company-1", "company-2") == {"company-1": "hello", "company-2": "hello"}
        assert time.monotonic() - started < 5.0


def test_an_agent_is_told_in_trailers_that_its_company_has_enough_streams(
    plane: Plane, tmp_path: Path
) -> None:
    """Would catch a code that is lost on the way: the company's log has to name the reason."""
    connection = ByHand(plane.port, tls(CERTIFICATES["company-0"], tmp_path))
    for _ in range(limits.STREAMS):
        connection.open(hello(RUN, "0"))
    plane.up("company-0")
    time.sleep(0.2)
    settings = EndpointSettings(address=f"127.0.0.1:{plane.port}", patience=0.1)
    endpoint = Endpoint(settings, plane.companies["company-0"], plane.coordinator.certificate)
    lines: list[str] = []
    Agent(endpoint, echo, Context(1, 1, {}, RecordDict(), {}), RUN, log=lines.append).serve()
    assert set(lines) == {"data plane: busy"}
    connection.close()


@contextmanager
def silent(port: int, count: int) -> Iterator[None]:
    """Another process holds `count` connections and says nothing on them."""
    text = f"""
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, ({count} + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [socket.create_connection(("127.0.0.1", {port})) for _ in range({count})]
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.kill()


def test_silent_connections_do_not_use_up_what_the_coordinator_may_open(tmp_path: Path) -> None:
    """As under a service manager, which gives 1024 open files and lets a program have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        with listening() as plane, silent(plane.port, 400):
            started = time.monotonic()
            plane.agent("company-1")
            plane.up("company-1")
            assert asked(plane, "company-1") == {"company-1": "hello"}
            assert time.monotonic() - started < 5.0
            (tmp_path / "checkpoint").write_bytes(b"the process itself can still open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_connections_are_bounded_and_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fills the bound has it for the time of a handshake and no longer."""
    monkeypatch.setattr(limits, "_raised_open_files", lambda: 40)
    monkeypatch.setattr(limits, "_HANDSHAKE", 2)
    before = len(os.listdir("/proc/self/fd"))
    with listening() as plane, silent(plane.port, 60):
        time.sleep(0.5)
        assert len(os.listdir("/proc/self/fd")) - before < 40
        plane.agent("company-1", patience=20.0)
        until(lambda: plane.service.connected == ("company-1",), seconds=15.0)
        until(lambda: len(os.listdir("/proc/self/fd")) - before < 20)


def test_a_connection_without_a_stream_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch one company's certificate that holds all the connections there may be."""
    monkeypatch.setattr(limits, "_IDLE", 1)
    with listening() as plane:
        plane.agent("company-1")
        plane.up("company-1")
        connection = ByHand(plane.port, tls(CERTIFICATES["company-0"], tmp_path))
        assert connection.ended(within=30.0)
        assert plane.service.connected == ("company-1",)  # a stream in use is left alone
        connection.close()
