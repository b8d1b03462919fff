"""A company's SuperNode against a SuperLink that says what it should not, over Flower's own HTTP on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message
from support.deployed import without_seeds
from support.hostile_superlink import NODE, SuperLink, said, serving

from fedblocks.client.flower_process import CLIENT_APP, SUPEREXEC, FromHere
from fedblocks.client.supernode import installed_app_only
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings

HELLO = RecordDict({"message": ConfigRecord({"text": "hello"})})
ESCAPE = "\x1b[2J\x1b[31mINFO :      all is well\nINFO :      \x1b[0m\u202e"


def pull(head: Any) -> Callable[[], tuple[Any, Any]]:
    """An honest answer with a change."""

    def make() -> tuple[Any, Any]:
        response, objects = said(HELLO, "query.join")
        head(response)
        return response, objects

    return make


def tree(**changes: Any) -> Callable[[PullMessagesResponse], None]:
    def change(response: PullMessagesResponse) -> None:
        response.message_object_trees[0].CopyFrom(ObjectTree(**changes))

    return change


def metadata(**changes: Any) -> Callable[[PullMessagesResponse], None]:
    def change(response: PullMessagesResponse) -> None:
        for name, value in changes.items():
            setattr(response.messages_list[0].metadata, name, value)

    return change


MALFORMED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bytes": lambda: (b"\xff" * 40, {}),
    "no tree": pull(lambda response: response.ClearField("message_object_trees")),
    "an empty tree": pull(tree()),
    "an object that is no hash": pull(tree(object_id="../../etc/passwd")),
    "another object's tree": pull(tree(object_id="0" * 64)),
    "a child that is no hash": pull(tree(object_id="0" * 64, children=[ObjectTree(object_id=ESCAPE)])),
    "a message type that is none": pull(metadata(message_type=ESCAPE)),
    "no message id": pull(metadata(message_id="")),
    "an answer": pull(metadata(reply_to_message_id="0" * 64)),
    "another node's": pull(metadata(dst_node_id=NODE + 1)),
    "an error": pull(lambda response: response.messages_list[0].error.SetInParent()),
}


def turns(link: SuperLink, count: int, guard: Any, log: list[str]) -> list[int | None]:
    """What so many turns of a SuperNode give, a run's number or nothing, until it ends: Flower's own, with real state
    and a real connection."""
    stores, results = ObjectStoreFactory(), []
    state = NodeStateFactory(objectstore_factory=stores).state()
    connect = guard(http_request_response, log.append)
    # Flower's connection swallows what is raised within it, and so ends.
    with (
        serving(link),
        connect(f"127.0.0.1:{link.port}", True, None) as (node, receive, _, get_run, get_fab, *objects),
    ):
        state.set_node_id(node)
        for _ in range(count):
            turn = _pull_and_store_message(
                state=state, object_store=stores.store(), node_config={}, receive=receive, get_run=get_run,
                get_fab=get_fab, pull_object=objects[0], confirm_message_received=objects[2],
                trusted_entities=None,
            )  # fmt: skip
            results.append(turn)
    return results


@pytest.mark.parametrize("case", list(MALFORMED))
def test_a_malformed_message_is_dropped_and_the_next_one_is_taken(case: str) -> None:
    response, _ = MALFORMED[case]()
    good, objects = said(HELLO, "query.join")
    log: list[str] = []
    assert turns(SuperLink([response, good], objects), 2, installed_app_only, log) == [None, 1]
    assert len(log) == 1
    assert log[0].startswith("refused: a message of the wrong form")


@pytest.mark.slow
def test_flower_itself_fails_over_most_of_them() -> None:
    """The control: what is dropped above ends a SuperNode, or is taken up by it and never answered."""
    results = {}
    for case, make in MALFORMED.items():
        response, objects = make()
        results[case] = turns(SuperLink([response], objects), 1, lambda connect, log: connect, [])
    assert [case for case, result in results.items() if result == [None]] == []


@pytest.mark.parametrize("run_id", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "described",
    [
        b"\xff" * 9,
        GetRunResponse(run=Run(run_id=5, primary_task_type="flwr-agentapp")),
        GetRunResponse(run=Run(run_id=5, primary_task_type=ESCAPE, series_id=2**64 - 1)),
    ],
)
def test_a_run_that_is_none_is_dropped_whatever_its_number(run_id: int, described: Any) -> None:
    response, objects = said(HELLO, "query.join", run_id=run_id)
    runs = iter([described, GetRunResponse(run=Run(primary_task_type="flwr-serverapp", series_id=2**64 - 1))])
    link = SuperLink([response, response], objects, run=lambda number: next(runs))
    assert turns(link, 2, installed_app_only, []) == [None, run_id]


def test_objects_that_are_not_what_their_names_say_are_dropped() -> None:
    response, objects = said(HELLO, "query.join")
    good, more = said(HELLO, "query.keys")
    wrong = {name: content[:-1] + b"?" for name, content in objects.items() if name not in more}
    assert turns(SuperLink([response, good], more | wrong), 2, installed_app_only, []) == [None, 1]


@contextmanager
def supernode(home: Path, link: SuperLink, path: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`fedblocks supernode` as a service manager starts it: by its whole path, with next to no environment."""
    command = [Path(sys.executable).parent / "fedblocks", "supernode", home, "--insecure"]
    command += ["--superlink", f"127.0.0.1:{link.port}", "--port", str(free_port())]
    env = {"PATH": path} | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command], env=env, cwd=log.parent, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def first_on_path(folder: Path) -> str:
    """A search path whose commands of Flower's are somebody else's; they leave a file `ran`."""
    evil = folder / "evil"
    evil.mkdir()
    for name in ("flower-superexec", "flwr-clientapp", "python", "python3"):
        (evil / name).write_text(f"#!/bin/sh\n: > {folder}/ran\n")
        (evil / name).chmod(0o755)
    return str(evil)


@pytest.mark.parametrize("anything", [True, False])
@pytest.mark.parametrize("name", [SUPEREXEC, CLIENT_APP])
def test_the_processes_of_this_installation_are_started_whatever_path_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, anything: bool
) -> None:
    """With another's commands first, and with no path at all, as a service manager may have it."""
    monkeypatch.setenv("PATH", first_on_path(tmp_path) if anything else "")
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)  # what lies in the folder where it is started is not imported either
    process = FromHere.Popen([name, "--help"], stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"usage: {name}" in out.decode()
    assert not (tmp_path / "ran").exists()


def test_nothing_else_is_started() -> None:
    with pytest.raises(RuntimeError, match="not started here"):
        FromHere.Popen(["flwr-agentapp"])


@pytest.mark.slow
@pytest.mark.parametrize("path", ["evil", ""])
def test_a_supernode_runs_its_own_processes_and_tells_codes_only(
    small: SimulationSettings, tmp_path: Path, path: str
) -> None:
    """A whole one; to a message that nobody handles, with texts for the terminal in it."""
    home = without_seeds(prepare(small, tmp_path / "run"))[0]
    evil = first_on_path(tmp_path)
    strange, _ = said(HELLO, "query.join", group_id=ESCAPE)
    strange.message_object_trees[0].object_id = ESCAPE
    unknown, objects = said(HELLO, "evaluate.nothing", group_id=ESCAPE)
    log = tmp_path / "log"
    with (
        serving(SuperLink([strange, unknown], objects)) as link,
        supernode(home, link, evil if path else "", log) as process,
    ):
        deadline = time.monotonic() + 90.0
        while len(link.contents) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        assert len(link.contents) >= 3, log.read_text()
        (reply,) = link.replies()
        assert not reply.has_error()
        assert any(b"unknown_message" in content for content in link.contents.values())
        assert not any(b"No evaluate function" in content for content in link.contents.values())
        assert list(link.pushed[0].clientapp_runtime_list) == [0.0]
    assert not (tmp_path / "ran").exists()
    printed = log.read_text()
    assert "\\x1b[2J\\x1b[31mINFO" in printed
    assert "\x1b[2J" not in printed
    assert "\u202e" not in printed
    assert "\nINFO :      \\x1b" not in printed
    assert "refused: a message of the wrong form" in (home / "company.log").read_text()


def not_a_message() -> tuple[PullMessagesResponse, dict[str, bytes]]:
    """Its object is a record, by its right name."""
    response, _ = said(HELLO, "query.join")
    record = HELLO["message"]
    response.messages_list[0].metadata.message_id = record.object_id
    response.message_object_trees[0].CopyFrom(ObjectTree(object_id=record.object_id))
    return response, {record.object_id: record.deflate()}


def of_another_run() -> tuple[PullMessagesResponse, dict[str, bytes]]:
    """Its object says so, its head does not."""
    response, objects = said(HELLO, "query.join", run_id=2)
    response.messages_list[0].metadata.run_id = 1
    return response, objects


@pytest.mark.slow
@pytest.mark.parametrize("make", [not_a_message, of_another_run])
def test_a_message_whose_objects_are_of_the_wrong_form_does_not_stop_the_node(
    small: SimulationSettings,
    tmp_path: Path,
    make: Callable[[], tuple[PullMessagesResponse, dict[str, bytes]]],
) -> None:
    """Would catch a SuperNode that waits for ever for the answer to it: the minute that Flower gives its apps."""
    home = without_seeds(prepare(small, tmp_path / "run"))[0]
    (bad, objects), (good, more) = make(), said(HELLO, "evaluate.nothing")
    log = tmp_path / "log"
    with (
        serving(SuperLink([bad, good], objects | more)) as link,
        supernode(home, link, "", log) as process,
    ):
        deadline = time.monotonic() + 240.0
        while len(link.pushed) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        dropped, answered = link.replies()
        assert dropped.error.reason == "ClientApp stopped responding."
        assert not answered.has_error()
        assert "dropped a message of the wrong form" in log.read_text()
