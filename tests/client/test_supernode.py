"""What a company lets a SuperLink make it run: the installed app, and nothing that a bundle brings along."""

from __future__ import annotations

import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.install import install_from_fab
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.config import get_fused_config_from_fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient
from httpx import HTTPStatusError
from support import takes_all
from support.deployed import guarded, project_of, unguarded, without_seeds
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.app import app
from fedblocks.client.supernode import (
    check_options,
    installed_app_only,
    no_redirects,
    waits_for_its_predecessor,
    with_kit,
)
from fedblocks.errors import InputError, PrivacyError
from fedblocks.experiments.bench.transport_flower import flower_run, free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.federation.trial import set_up
from fedblocks.protocol.flower_parts import own_bundle
from fedblocks.settings import SimulationSettings

HOSTILE = {
    "run_id": 2,
    "fab_id": "fedblocks/other",
    "fab_version": "1/../../../tmp/x",
    "fab_hash": "e35bb486" + "0" * 56,
    "override_config": {"nosuch": 1, "run-dir": "/"},
}


def connection(run: Run, asked: list[str]) -> Any:
    """A SuperLink that says `run`, and has code in its bundle."""

    def get_fab(fab_hash: str, run_id: int) -> Fab:
        asked.append(fab_hash)
        return Fab(fab_hash, b"code", {})

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield 7, *([None] * 2), lambda run_id: run, get_fab, *([None] * 3)

    return connect


def given(run: Run, asked: list[str], log: list[str]) -> tuple[Run, Fab]:
    """As the SuperNode asks: for the run, then for its bundle."""
    with installed_app_only(connection(run, asked), log.append)() as (_, _, _, get_run, get_fab, *_):
        answer = get_run(1)
        return answer, get_fab(answer.fab_hash, 1)


def test_whatever_a_run_says_its_app_is_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Flower's installer and loader; would catch a bundle or a name of the SuperLink's that gets through."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    asked: list[str] = []
    run, fab = given(replace(Run.create_empty(1), primary_task_type="flwr-serverapp", **HOSTILE), asked, [])
    assert not asked
    assert run.run_id == 1
    assert run.fab_hash == fab.hash_str == hashlib.sha256(fab.content).hexdigest()
    assert get_fused_config_from_fab(fab.content, run) == {}
    folder = install_from_fab(fab.content, skip_prompt=True)
    assert folder.parent == tmp_path / "apps"
    assert get_load_client_app_fn("", None, True)(run.fab_id, run.fab_version, fab.hash_str) is app


def test_the_bundle_has_no_code_and_is_always_the_same() -> None:
    with zipfile.ZipFile(io.BytesIO(own_bundle().content)) as files:
        assert sorted(files.namelist()) == [".info/CONTENT", "pyproject.toml"]
    own_bundle.cache_clear()
    again = own_bundle()
    own_bundle.cache_clear()
    assert again == own_bundle()


@pytest.mark.parametrize("task", ["flwr-agentapp", "flwr-simulation", "other"])
def test_a_run_of_another_kind_of_app_is_dropped(task: str) -> None:
    """Would catch an AgentApp, which Flower starts with an interface of its own."""
    log: list[str] = []
    with pytest.raises(RunNotRunningException):
        given(replace(Run.create_empty(1), primary_task_type=task), [], log)
    assert log == ["refused: run 1 is not a run of a ServerApp"]


def test_answers_of_the_wrong_form_are_dropped_and_the_node_goes_on() -> None:
    """Would catch one malformed answer that ends the SuperNode for all runs."""

    def raising(error: Exception) -> Any:
        def call(*arguments: Any) -> Any:
            raise error

        return call

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield 7, raising(IndexError()), None, raising(TypeError()), *([None] * 4)

    log: list[str] = []
    with installed_app_only(connect, log.append)() as (_, receive, _, get_run, *_):
        assert receive() is None
        with pytest.raises(RunNotRunningException):
            get_run(5)
    assert log == [
        "refused: a message of the wrong form (IndexError)",
        "refused: run 5 is not a run of a ServerApp",
    ]


@pytest.mark.parametrize("code", [302, 307])
@pytest.mark.parametrize("guard", [no_redirects, lambda client: client])
def test_a_superlink_cannot_send_requests_elsewhere(code: int, guard: Any) -> None:
    """Flower's own client follows, to any address that the company's machine can reach."""
    met: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            met.append(self.path)
            self.send_response(200 if self.path == "/inside" else code)
            self.send_header("location", "/inside")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = guard(FleetHttpClient).from_server_address(
            f"127.0.0.1:{server.server_address[1]}", True, None, interceptors=[]
        )
        with client, suppress(Exception):
            client.GetRun(GetRunRequest(run_id=1))
        server.shutdown()
    assert ("/inside" in met) == (guard is not no_redirects)
    assert met


def test_another_version_of_flower_is_not_taken_for_this_one() -> None:
    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield 7, *([None] * 8)

    with pytest.raises(RuntimeError, match="version of Flower"), installed_app_only(connect, print)():
        pass


@pytest.mark.parametrize(
    "options",
    [
        ["--node-config", 'company-home="/"'],
        ["--node-config=x"],
        ["--insecure", "--allow-runtime-dependency-installation"],
        ["--allow-runtime-dep"],
        ["--isolation", "process"],
        ["--iso=process"],
        ["--al"],
        ["--host", "0.0.0.0"],
        ["--ho=0.0.0.0"],
        ["--trusted-entities", "x.yaml"],
    ],
)
def test_what_the_command_sets_itself_may_not_be_given(options: list[str]) -> None:
    """Shortened, too, as argparse understands it."""
    with pytest.raises(InputError, match="set by this command"):
        check_options(options)
    check_options(["--insecure", "--superlink", "host:9092", "--root-certificates", "a.crt", "--port", "1"])


def value_of(options: list[str], name: str) -> str:
    return options[options.index(name) + 1]


def test_the_kit_says_what_a_node_needs_and_options_go_before_it(tmp_path: Path) -> None:
    """Would catch an option that people have to look up in a roster, one of theirs that is overridden, also where it
    is shortened, and two nodes of one machine on one port."""
    made = set_up(tmp_path / "trial", ["acme", "bravo", "charlie"], port=free_port(), superlink_port=18000)
    acme, bravo = made.homes["acme"], made.homes["bravo"]
    options = with_kit(acme, [])
    assert value_of(options, "--superlink") == "127.0.0.1:18000"
    assert value_of(options, "--root-certificates") == str(acme / "transport" / "coordinator.pem")
    assert value_of(options, "--auth-supernode-private-key") == str(acme / "transport" / "node.key")
    check_options(options)
    assert value_of(options, "--port") != value_of(with_kit(bravo, []), "--port")
    own = ["--superl", "other:1", "--root-cert=ca.pem", "--auth-supernode-p", "a.key", "--port=7"]
    assert with_kit(acme, own) == own
    assert with_kit(acme, ["--insecure", "--port", "7"])[3:] == ["--superlink", "127.0.0.1:18000"]
    without = set_up(tmp_path / "other", ["acme", "bravo", "charlie"], port=free_port()).homes["acme"]
    with pytest.raises(InputError, match="tells of no SuperLink"):
        with_kit(without, [])
    assert with_kit(without, ["--superlink", "here:1", "--port", "7"]) == [
        "--superlink",
        "here:1",
        "--port",
        "7",
    ]


def test_a_node_waits_until_its_predecessor_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, with Flower's own client. Would catch a restarted node that ends while it is counted as online, and
    one that asks for ever though its key is not registered."""
    codes = iter([412, 412, 200, 412])
    monkeypatch.setattr("fedblocks.client.supernode._ASK_AGAIN", 0.0)

    class Link(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            code = next(codes)
            content = ActivateNodeResponse(node_id=7).SerializeToString() if code == 200 else b"{}"
            self.send_response(code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    log: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Link) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = waits_for_its_predecessor(FleetHttpClient, log.append).from_server_address(
            f"127.0.0.1:{server.server_address[1]}", True, None, interceptors=[]
        )
        with client:
            assert client.ActivateNode(ActivateNodeRequest()).node_id == 7
            assert len(log) == 1
            monkeypatch.setattr("fedblocks.client.supernode._PREDECESSOR", -1.0)
            with pytest.raises(HTTPStatusError):
                client.ActivateNode(ActivateNodeRequest())
        server.shutdown()


def test_a_home_made_for_a_simulation_is_refused(small: SimulationSettings, tmp_path: Path) -> None:
    home = prepare(small, tmp_path / "run").companies / "company-0"
    assert isinstance(CliRunner().invoke(cli, ["supernode", str(home), "--insecure"]).exception, PrivacyError)


@pytest.mark.slow
@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
@pytest.mark.parametrize("node", [guarded, unguarded])
def test_code_in_a_bundle_does_not_get_at_a_company(
    small: SimulationSettings, tmp_path: Path, node: Any
) -> None:
    """Flower's own SuperNode runs it, which shows that the attack is one."""
    run = prepare(small, tmp_path / "run")
    home = without_seeds(run)[0]
    project = project_of(takes_all.__file__, tmp_path / "app", companies="takes_all:companies")
    printed = flower_run(project, [node(home)], 'out=""', tmp_path)
    if node is unguarded:
        assert (home / "taken").is_file(), printed
    else:
        assert not (home / "taken").exists()
        # The installed app was asked instead, and did not like the message.
        assert "refused query.join" in (home / "company.log").read_text()
