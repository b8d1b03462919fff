"""The SuperLink that the coordinator keeps: what companies reach of it, who is registered, and that it comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import flwr
import pytest
import tomli_w
from flwr.superlink.main import create_app
from support.federation import COMPANIES
from support.flower_processes import until

from fedblocks.errors import InputError, RunError
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.protocol.federation.installing import install_coordinator
from fedblocks.protocol.federation.provisioner import provision
from fedblocks.protocol.federation.trial import Trial, set_up
from fedblocks.server.superlink.admission import ADMITTED, LARGEST_BODY, FleetOnly
from fedblocks.server.superlink.control import Changes, Control
from fedblocks.server.superlink.grid import SuperLinkGrid
from fedblocks.server.superlink.kept import KeptLink, check_installation
from fedblocks.server.superlink.place import LinkPlace


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = (
        tmp_path_factory.mktemp("link")
        / "a-folder-whose-path-is-longer-than-that-of-any-socket-may-be"
        / "trial"
    )
    return set_up(folder, COMPANIES, port=free_port(), superlink_port=free_port())


@pytest.fixture(scope="module")
def place(trial: Trial) -> LinkPlace:
    return LinkPlace.of(trial.coordinator)


@pytest.fixture(scope="module")
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="module")
def control(place: LinkPlace, told: list[tuple[str, str]]) -> Iterator[Control]:
    if " " in flwr.__file__:
        pytest.skip("Flower's SuperLink cannot run from a path with a blank")
    with KeptLink(place, lambda what, text: told.append((what, text))).running() as control:
        yield control


def status_of(place: LinkPlace, path: str, method: str = "POST", **headers: str) -> int:
    """What somebody who reaches the port is answered; no body is sent, whatever a header says."""
    context = ssl.create_default_context(cafile=str(place.certificate))
    connection = HTTPSConnection(place.host, place.port, context=context, timeout=30)
    try:
        connection.putrequest(method, path)
        for name, value in {"content_length": "0", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def pids(control: Control, told: list[tuple[str, str]]) -> list[int]:
    return [int(text.rpartition(" ")[2]) for what, text in told if what == "up"]


def test_companies_reach_what_a_node_needs_and_nothing_else(control: Control, place: LinkPlace) -> None:
    """Oracle: Flower's own list of its routes. Would catch control or runtime, with which anybody starts runs, and
    routes that another version adds."""
    routes = {*create_app().openapi()["paths"], "/openapi.json", "/docs"}
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/register-node"} <= routes
    assert routes >= ADMITTED
    refused = [*(routes - ADMITTED), "/v1/fleet/../control/start-run", "//v1/control/start-run", "/"]
    assert {path: status_of(place, path) for path in refused} == dict.fromkeys(refused, 404)
    assert 404 not in {status_of(place, path) for path in ADMITTED}
    assert status_of(place, "/v1/fleet/pull-messages", "GET") == 404
    assert status_of(place, "/v1/fleet/pull-messages", content_length=str(LARGEST_BODY + 1)) == 413


def test_a_body_that_says_two_sizes_is_not_read(control: Control, place: LinkPlace) -> None:
    """Would catch a body in chunks beside a small content-length, which is read to its end before anybody asks for a
    key: some HTTP servers take the one for the size, and this would look at the other."""
    for said in ("chunked", "identity", "gzip, chunked"):
        assert status_of(place, "/v1/fleet/pull-messages", transfer_encoding=said) in (400, 413)


async def whole(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body to its end, as Flower does."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})


class Knocks:
    """A request with a body of so many parts of 1 kB; `waits`: before the last one, for ever."""

    def __init__(self, parts: int, waits: bool = False, **headers: str) -> None:
        self.left, self.waits, self.status = parts, waits, 0
        told = {"content-length": str(parts << 10), **headers}
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/fleet/pull-messages"}
        self.scope["headers"] = [(name.encode(), value.encode()) for name, value in told.items()]

    async def receive(self) -> dict[str, Any]:
        self.left -= 1
        if self.waits and not self.left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": bytes(1024), "more_body": self.left > 0}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


def test_bodies_together_have_a_limit_and_a_time() -> None:
    """Would catch a port at which many without a key fill the memory, each with a body that alone is small enough,
    and bodies that stay counted once they are gone."""

    async def knocking() -> list[int]:
        only = FleetOnly(whole, most_held=64 << 10, body_seconds=1.0)
        chunked = Knocks(1, **{"transfer-encoding": "chunked"})
        slow = [Knocks(17, waits=True) for _ in range(3)]
        tasks = [asyncio.create_task(only(each.scope, each.receive, each.send)) for each in slow]
        await asyncio.sleep(0)
        full, small = Knocks(17), Knocks(16)
        for each in (full, small, chunked):
            await only(each.scope, each.receive, each.send)
        await asyncio.gather(*tasks)
        after = [Knocks(64), Knocks(64)]
        for each in after:
            await only(each.scope, each.receive, each.send)
        return [each.status for each in (*slow, full, small, chunked, *after)]

    assert asyncio.run(knocking()) == [408, 408, 408, 503, 200, 413, 200, 200]


def test_the_control_socket_is_its_owners_alone(control: Control, place: LinkPlace) -> None:
    """Would catch a umask that opens it, and control on the loopback, which every user of a machine can reach."""
    assert stat.S_ISSOCK(place.socket.stat().st_mode)
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert len(str(place.socket)) > 108
    assert control.answers()


def test_registered_nodes_are_those_of_the_roster(
    control: Control, place: LinkPlace, trial: Trial, told: list[tuple[str, str]]
) -> None:
    """By name, as soon as a roster is installed; would catch a revoked company that stays registered until somebody
    remembers, and others that lose their nodes over it."""
    assert ("nodes", "registered: acme, bravo, charlie") in told
    charlie = place.node_keys()["charlie"]
    tables = tomllib.loads(trial.federation.read_text()) | {"companies": ["acme", "bravo"]}
    trial.federation.write_text(tomli_w.dumps(tables))
    install_coordinator(provision(trial.federation, trial=True).path, trial.coordinator)
    until(lambda: ("nodes", "no longer registered: charlie") in told, "charlie's node is gone", 60)
    assert sorted(place.node_keys()) == ["acme", "bravo"]
    assert control.register(place.node_keys()) == Changes(())
    again = control.register(place.node_keys() | {"charlie": charlie})
    assert again == Changes((), refused=("charlie",))


def test_a_run_begins_and_ends_without_anybody_elses_help(control: Control, place: LinkPlace) -> None:
    """Two after one another, and one that was left behind; would catch a task that a dead process still holds."""
    left = control.begin()
    grid = SuperLinkGrid(control, place.node_keys)
    with grid.running():
        assert not left.beat()
        assert grid.connected == ()
        assert list(grid.get_node_ids()) == []
    with grid.running():
        assert grid.connected == ()


_SECOND = """
import sys
from pathlib import Path
from fedblocks.server.superlink.kept import KeptLink, superlink
from fedblocks.server.superlink.place import LinkPlace
place = LinkPlace.of(Path(sys.argv[1]))
with superlink(place, print) as other:
    assert other.answers()
with KeptLink(place, print).running():
    pass
"""


@pytest.mark.slow
def test_a_second_process_uses_the_first_ones_superlink(control: Control, place: LinkPlace) -> None:
    """Would catch two SuperLinks of one database, and a run that starts one beside the service's."""
    words = [sys.executable, "-P", "-c", _SECOND, str(place.plane)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"RunError: {place.folder}: process {os.getpid()} is at work here" in done.stderr
    assert done.stdout == ""
    assert control.answers()


@pytest.mark.slow
def test_a_killed_superlink_comes_back_with_its_registry(
    control: Control, place: LinkPlace, told: list[tuple[str, str]]
) -> None:
    """A run's task outlives it; would catch a database in memory, and a keeper that gives up."""
    grid = SuperLinkGrid(control, place.node_keys)
    with grid.running():
        before = len(told)
        os.kill(pids(control, told)[-1], signal.SIGKILL)
        until(lambda: "down" in [what for what, _ in told[before:]], "it is noticed", 60)
        until(control.answers, "it is back", 120)
        until(lambda: "up" in [what for what, _ in told[before:]], "and said so", 60)
        assert control.register(place.node_keys()).registered == ()
        held = grid._task
        assert held is not None
        assert held.beat()


def test_a_folder_without_a_superlink_is_named(tmp_path: Path) -> None:
    made = set_up(tmp_path / "trial", COMPANIES, port=free_port())
    assert not LinkPlace.configured(made.coordinator)
    with pytest.raises(InputError, match="superlink_port"):
        LinkPlace.of(made.coordinator)


@pytest.mark.slow
def test_a_port_in_use_is_said_in_one_line(trial: Trial, tmp_path: Path) -> None:
    """Would catch a SuperLink that dies again and again without a reason for people."""
    plane = tmp_path / "plane"
    shutil.copytree(trial.coordinator, plane, ignore=shutil.ignore_patterns("superlink"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (plane / "transport.toml").open("a") as file:
            file.write(f'superlink_listen = "127.0.0.1:{port}"\n')
        link = KeptLink(LinkPlace.of(plane), lambda *said: None)
        with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1:{port}"), link.running():
            pass


def test_an_installation_in_which_flower_cannot_make_its_database_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a SuperLink that comes up and answers everything with an error of its server."""
    with monkeypatch.context() as patched:
        patched.setattr(flwr.__spec__, "origin", "/opt/my venv/flwr/__init__.py")
        with pytest.raises(RunError, match="a path with a blank"):
            check_installation()
    if " " not in flwr.__file__:
        check_installation()
