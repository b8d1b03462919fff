"""A SuperLink by hand: Flower's fleet interface (protobuf over HTTP) with whatever a test wants it to say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

NODE = 7


def said(record: RecordDict, kind: str, **changes: Any) -> tuple[PullMessagesResponse, dict[str, bytes]]:
    """A message as an honest SuperLink hands it out, and its objects; `changes` are of its metadata."""
    values: dict[str, Any] = {
        "run_id": 1, "message_id": "", "src_node_id": 1, "dst_node_id": NODE, "reply_to_message_id": "",
        "group_id": "1", "created_at": 1.8e9, "ttl": 3600.0, "message_type": kind,
    }  # fmt: skip
    message = make_message(Metadata(**(values | changes)), content=record)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    head = message_to_proto(remove_content_from_message(message))
    return PullMessagesResponse(messages_list=[head], message_object_trees=[tree]), objects


@dataclass
class SuperLink:
    """Hands out `script`, one entry a pull, each bytes or a message of protobuf's."""

    script: list[Any]
    objects: dict[str, bytes] = field(default_factory=dict)
    run: Callable[[int], Any] = lambda run_id: GetRunResponse(
        run=Run(run_id=run_id, primary_task_type="flwr-serverapp")
    )
    port: int = 0
    pulls: int = 0
    pushed: list[PushMessagesRequest] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> Any:
        match path.removeprefix("/v1/fleet/"):
            case "activate-node":
                return ActivateNodeResponse(node_id=NODE)
            case "send-node-heartbeat":
                return SendNodeHeartbeatResponse(success=True)
            case "pull-messages":
                self.pulls += 1
                return self.script.pop(0) if self.script else b""
            case "get-run":
                return self.run(GetRunRequest.FromString(body).run_id)
            case "pull-object":
                content = self.objects.get(PullObjectRequest.FromString(body).object_id)
                return PullObjectResponse(
                    object_found=content is not None, object_available=True, object_content=content or b""
                )
            case "push-messages":
                request = PushMessagesRequest.FromString(body)
                self.pushed.append(request)
                names = [request.message_object_trees[0].object_id]
                trees = list(request.message_object_trees)
                while trees:
                    trees += (tree := trees.pop()).children
                    names.append(tree.object_id)
                return PushMessagesResponse(objects_to_push=names, session_id="s")
            case "push-object":
                pushed = PushObjectRequest.FromString(body)
                self.contents[pushed.object_id] = pushed.object_content
                return PushObjectResponse(stored=True)
            case _:
                return b""

    def replies(self) -> list[Message]:
        return [message_from_proto(request.messages_list[0]) for request in self.pushed]


@contextmanager
def serving(link: SuperLink) -> Iterator[SuperLink]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found = link.answer(self.path, body)
            content = found if isinstance(found, bytes) else found.SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        link.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield link
        finally:
            server.shutdown()
