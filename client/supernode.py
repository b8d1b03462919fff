"""A company's Flower SuperNode that runs the installed ClientApp, whatever bundle the SuperLink offers.

Flower sends a company the bundle of the run's apps and runs its code with access to the company's data; anyone who
reaches the SuperLink's control port chooses that bundle. Here it is never fetched: the SuperNode gets this package's
own bundle, which has no code and names the installed app.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError, ProtocolError
from ..protocol.core_dumps import forbid_core_dumps
from ..protocol.expiry import of_company, refuse_ended
from ..protocol.federation.keys import NODE_KEY_FILE
from ..protocol.flower_parts import own_bundle, put_in_place
from ..protocol.identity import ROSTER_FILE, load_signed_roster
from ..protocol.log_text import escape_logs
from .company import Company
from .endpoint import FOLDER
from .flower_process import FromHere

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

_TASKS = {"", "flwr-serverapp"}
# The interface at `--host` gives a run's state, keys included, to any client: it stays on the loopback.
_OURS = (
    "--node-config", "--isolation", "--host", "--trusted-entities", "--allow-runtime-dependency-installation",
)  # fmt: skip

# Flower's connection to a SuperLink, and the indices of its callbacks: receive a message, send one, fetch a run and
# its bundle.
_CONNECT, _CLIENT = "http_request_response", "FleetHttpClient"
_CALLBACKS, _NODE, _RECEIVE, _SEND, _GET_RUN, _GET_FAB = 8, 0, 1, 2, 3, 4

# Flower names an object by the SHA-256 of its content. A message of a run has a few for every array.
_OBJECT = re.compile(r"[0-9a-f]{64}")
_MOST_OBJECTS = 1 << 16

# Seconds: Flower counts a node as online for a minute after its last sign of life.
_PREDECESSOR, _ASK_AGAIN = 75.0, 5.0
_NOT_ADMITTED = 412


def check_received(message: Message, tree: ObjectTree, node: int) -> None:
    """Check a received message: some malformed ones make Flower's SuperNode end or wait for ever.

    Raises:
        ProtocolError: "malformed".
    """
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    metadata = message.metadata
    for count, part in enumerate(iterate_object_tree(tree), start=1):
        if count > _MOST_OBJECTS or not _OBJECT.fullmatch(part.object_id):
            raise ProtocolError("malformed", "the message's tree of objects")
    if metadata.message_id != tree.object_id or message.has_error() or message.content:
        raise ProtocolError("malformed", "not a message whose content is in its tree of objects")
    if metadata.dst_node_id != node or metadata.reply_to_message_id:
        raise ProtocolError("malformed", "not a message to this node, or an answer")


def installed_app_only(connect: Callable[..., Any], log: Callable[[str], None]) -> Callable[..., Any]:
    """`connect` (Flower's connection to a SuperLink), with the installed app in place of every run's app.

    Malformed messages and runs of a SuperLink are dropped: they would end the SuperNode for all runs.
    """
    from flwr.supercore.run import RunNotRunningException
    from httpx import HTTPError

    own = own_bundle()

    @contextmanager
    def guarded(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as callbacks:
            if len(callbacks) != _CALLBACKS:
                raise RuntimeError("this version of Flower connects in a way that cannot be guarded")

            def dropped(what: str) -> None:
                with suppress(OSError):
                    log(f"refused: {what}")

            def receive() -> Any:
                try:
                    if (received := callbacks[_RECEIVE]()) is not None:
                        message, tree = received
                        check_received(message, tree, callbacks[_NODE])
                    return received
                except HTTPError:  # the SuperLink is unreachable, or does not know this node: Flower ends
                    raise
                except Exception as error:
                    return dropped(f"a message of the wrong form ({type(error).__name__})")

            def send(message: Message, tree: ObjectTree, seconds: float) -> Any:
                # Flower would send how long the app ran, which the SuperLink must not learn.
                return callbacks[_SEND](message, tree, 0.0)

            def get_run(run_id: int) -> Run:
                run: Run | None = None
                with suppress(Exception):  # a malformed answer, or there is no such run
                    run = callbacks[_GET_RUN](run_id)
                if run is None or run.primary_task_type not in _TASKS:
                    dropped(f"run {run_id} is not a run of a ServerApp")
                    # The SuperNode then drops the message, and keeps nothing of the run.
                    raise RunNotRunningException
                return replace(
                    run,
                    run_id=run_id,
                    series_id=run_id,  # runs of one series share their state in Flower
                    fab_id="fedblocks/fedblocks",
                    fab_version=__version__,
                    fab_hash=own.hash_str,
                    override_config={},
                )

            def get_fab(fab_hash: str, run_id: int) -> Fab:
                return own

            yield callbacks[_NODE], receive, send, get_run, get_fab, *callbacks[_GET_FAB + 1 :]

    return guarded


def no_redirects(client: type[Any]) -> type[Any]:
    """Flower's HTTP client without redirects, which could lead to an address inside the company's network."""

    class Direct(client):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if not self._client.follow_redirects:
                raise RuntimeError("this version of Flower connects in a way that cannot be guarded")
            self._client.follow_redirects = False

    return Direct


def waits_for_its_predecessor(client: type[Any], log: Callable[[str], None]) -> type[Any]:
    """Flower's HTTP client, which a SuperLink refuses while it counts an earlier process of this node as online.

    That takes it a minute to notice after a kill. A node whose key is not registered gets the same answer.
    """
    from httpx import HTTPStatusError

    class Patient(client):  # type: ignore[misc]
        def ActivateNode(self, request: Any) -> Any:
            deadline, told = time.monotonic() + _PREDECESSOR, False
            while True:
                try:
                    return super().ActivateNode(request)
                except HTTPStatusError as error:
                    if error.response.status_code != _NOT_ADMITTED or time.monotonic() > deadline:
                        raise
                if not told:
                    with suppress(OSError):
                        log(
                            "not admitted yet: the SuperLink counts an earlier process, or lacks this node's key"
                        )
                told = True
                time.sleep(_ASK_AGAIN)

    return Patient


def check_options(options: list[str]) -> None:
    """InputError for options that this command sets itself, also abbreviated as argparse allows."""
    for option in options:
        name = option.split("=")[0]
        if len(name) > 2 and any(own.startswith(name) for own in _OURS):
            raise InputError(option, None, "is set by this command, and may not be given")


def with_kit(home: Path, options: list[str]) -> list[str]:
    """The options, and what they lack of the installed kit: the SuperLink's address, its certificate, the node's key.

    Also a port of its own for what Flower's processes say to each other on this machine.

    Raises: InputError where no address is given and the kit has none, or a certificate has expired.
    """

    def given(name: str) -> bool:  # argparse takes beginnings, too
        return any(len(option) > 2 and name.startswith(option.split("=")[0]) for option in options)

    roster = home / ROSTER_FILE
    signed = load_signed_roster(roster) if roster.is_file() else None
    address = None if signed is None else signed.content.coordinator.superlink
    more: list[str] = []
    if not given("--superlink"):
        if address is None:
            rule = (
                f"{roster} tells of no SuperLink; give --superlink HOST:PORT, or install a kit of a federation whose "
                "federation.toml has superlink_port"
            )
            raise InputError("--superlink", None, rule)
        more += ["--superlink", address]
    if address is not None and not given("--insecure"):
        refuse_ended(of_company(home))
        if not given("--root-certificates"):
            more += ["--root-certificates", str(home / FOLDER / "coordinator.pem")]
        if not given("--auth-supernode-private-key"):
            more += ["--auth-supernode-private-key", str(home / FOLDER / NODE_KEY_FILE)]
    if not given("--port"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            more += ["--port", str(free.getsockname()[1])]
    return [*options, *more]


def serve(home: Path, options: list[str]) -> None:
    """Run Flower's SuperNode for the company at `home`; options of flower-supernode go before what its kit says.

    Raises:
        InputError: an option is set by this command, or the home's path, policy or kit cannot be used.
        PrivacyError: others have access to the home, or its policy has a simulation seed.
    """
    from flwr.supercore.exit import ExitCode, flwr_exit
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli import flower_supernode

    check_options(options)
    home = home.resolve()
    if '"' in str(home) or "\\" in str(home):
        raise InputError("HOME", str(home), "must not have a quote or a backslash in its path")
    company = Company.deployed(home)
    forbid_core_dumps()
    escape_logs()
    company.startable()
    options = with_kit(home, options)
    connect = installed_app_only(vars(start_client_internal)[_CONNECT], company.log)
    put_in_place(start_client_internal, _CONNECT, connect)
    put_in_place(start_client_internal, "subprocess", FromHere)
    client = no_redirects(vars(fleet_http_connection)[_CLIENT])
    client = waits_for_its_predecessor(client, company.log)
    put_in_place(fleet_http_connection, _CLIENT, client)
    sys.argv = ["flower-supernode", *options, "--node-config", f'company-home="{home}"']
    # Flower reuses a bundle that is unpacked under the same name already: a new folder has none.
    with tempfile.TemporaryDirectory(prefix=".flower-", dir=home) as folder:
        os.environ["FLWR_HOME"] = folder
        # Flower's telemetry reports when an app starts and ends.
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        try:
            flower_supernode()
        except Exception as error:
            company.log("the SuperNode has stopped", error=error)
        # Flower would leave a process that looks alive and does nothing: end it, so that it is started again.
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "the SuperNode has stopped")
