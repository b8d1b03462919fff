"""Speaks with the SuperLink through its socket: which nodes it knows, and a run's task.

A Flower run is made here and coordinated by this very process, which asks for its task as one of Flower's executors
would. What Flower keeps of it is a number under which messages travel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import NodeStatus, TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient

from ...errors import RunError
from ...protocol.flower_parts import own_bundle

# Of a socket's path; the rest is for what a system adds.
_LONGEST_PATH = 100
_SECONDS, _HEALTH = 60.0, 10.0
Client = TypeVar("Client", bound=ProtobufClient)
# What a call may raise when the SuperLink is away, or has another opinion.
LINK_ERRORS = (httpx.HTTPError, OSError, ValueError)


@dataclass(frozen=True)
class Changes:
    """Companies by name; `refused`: whose key had been unregistered before, which Flower never takes again."""

    registered: tuple[str, ...]
    unregistered: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Control:
    """Control(place.socket).register(place.node_keys())"""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: int | None = None

    def answers(self) -> bool:
        """Whether a SuperLink is there."""
        try:
            with self._client(_HEALTH) as client:
                return client.get("http://superlink/health").status_code == httpx.codes.OK
        except LINK_ERRORS:
            return False

    def register(self, keys: Mapping[str, bytes]) -> Changes:
        """Make the registered nodes those of these companies, with these public keys, by name.

        Raises: one of LINK_ERRORS.
        """
        with self._control() as control:
            listed = control.ListNodes(ListNodesRequest()).nodes_info
            known = {n.node_id: n for n in listed if n.status != NodeStatus.UNREGISTERED}
            wanted = {key: name for name, key in keys.items()}
            stale = {n: node for n, node in known.items() if wanted.get(node.public_key) != node.name}
            for node in stale:
                control.UnregisterNode(UnregisterNodeRequest(node_id=node))
            there = {node.public_key for n, node in known.items() if n not in stale}
            fresh = [name for name, key in sorted(keys.items()) if key not in there]
            refused = [name for name in fresh if not _registered(control, name, keys[name])]
        registered = tuple(name for name in fresh if name not in refused)
        return Changes(registered, tuple(sorted(node.name for node in stale.values())), tuple(refused))

    def begin(self) -> Task:
        """A new Flower run and its task; those that an earlier process has left behind are ended.

        Raises: one of LINK_ERRORS, or RunError where Flower gives the task to nobody.
        """
        with self._control() as control:
            for number, run in control.ListRuns(ListRunsRequest(limit=1000)).run_dict.items():
                if run.status.status != Status.FINISHED:
                    control.StopRun(StopRunRequest(run_id=number))
            bundle = own_bundle()
            asked = StartRunRequest(fab=Fab(hash_str=bundle.hash_str, content=bundle.content))
            run_id = control.StartRun(asked).run_id
        with self._runtime() as runtime:
            # Only this process asks for tasks. What is older belonged to one that is gone.
            while token := (got := runtime.AcquireTask(_server_app())).token:
                if got.task.run_id == run_id:
                    client = self.runtime(token)
                    started = client.PullTaskInput(PullTaskInputRequest())
                    return Task(run_from_proto(started.run), started.task_id, token, client)
        raise RunError(f"{self._path}: the SuperLink has no task for the run that it has just started")

    def runtime(self, token: str) -> RuntimeHttpClient:
        """The runtime interface as the holder of a task."""
        versions = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        made = RuntimeHttpClient(
            "http://superlink", interceptors=[versions, RuntimeTokenHttpInterceptor(token=token)]
        )
        return self._through_socket(made)

    @contextmanager
    def _runtime(self) -> Iterator[RuntimeHttpClient]:
        versions = RuntimeVersionHttpInterceptor(component_name="flower-superexec")
        with self._through_socket(RuntimeHttpClient("http://superlink", interceptors=[versions])) as client:
            yield client

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        versions = RuntimeVersionHttpInterceptor(component_name="flwr-cli")
        with self._through_socket(ControlHttpClient("http://superlink", interceptors=[versions])) as client:
            yield client

    def _through_socket(self, client: Client) -> Client:
        client._client.close()
        client._client = self._client()
        return client

    def _client(self, seconds: float = _SECONDS) -> httpx.Client:
        # No proxy of the environment's, and no redirect.
        transport = httpx.HTTPTransport(uds=self._short_path())
        return httpx.Client(transport=transport, timeout=seconds, trust_env=False)

    def _short_path(self) -> str:
        """The socket's path, through a descriptor of its folder where it has more characters than sockets allow."""
        if len(str(self._path)) <= _LONGEST_PATH:
            return str(self._path)
        if self._folder is None:
            self._folder = os.open(self._path.parent, os.O_RDONLY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"


@dataclass
class Task:
    """A Flower run's task that this process holds; without a heartbeat for a minute Flower ends the run."""

    run: Run
    number: int
    token: str
    client: RuntimeHttpClient

    def beat(self) -> bool:
        """False where Flower has ended the task. Raises: one of LINK_ERRORS."""
        try:
            return bool(self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                return False
            raise

    def nodes(self) -> list[Any]:
        """Who is online, as Flower describes them. Raises: one of LINK_ERRORS."""
        return list(self.client.GetNodes(GetNodesRequest()).nodes)

    def end(self, *, done: bool) -> None:
        """Tell Flower how the run has ended. Raises: one of LINK_ERRORS."""
        status = SubStatus.COMPLETED if done else SubStatus.STOPPED
        self.client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))


def _registered(control: ControlHttpClient, name: str, key: bytes) -> bool:
    try:
        control.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
            raise
        return False
    return True


def _server_app() -> AcquireTaskRequest:
    return AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
