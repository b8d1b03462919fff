"""A coordinator that sends single messages to five real companies, so that a test can bend any of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from flwr.app import RecordDict

from fedblocks.blocks import digest
from fedblocks.client.app import app
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.privacy.secure_aggregation import ChannelKey, Confirmations, Session, Survivors
from fedblocks.protocol.messages import (
    CONFIRM,
    JOIN,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmReply,
    ConfirmRequest,
    JoinReply,
    JoinRequest,
    KeysReply,
    KeysRequest,
    TrainRequest,
    UnmaskRequest,
    refused,
)
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan

NODES = range(1, 6)


class Coordinator:
    """Every method is one phase; replies are records, as they come, by node."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.plan = run, run.plan()
        self.model = Checkpoint.load(run.checkpoints).model
        self.grid = InProcessGrid(app, 5, {"run-dir": str(run.path)})

    def ask(self, node: int, phase: str, record: RecordDict) -> RecordDict:
        message = self.grid.create_message(record, phase, node, "test")
        (reply,) = self.grid.send_and_receive([message])
        assert not reply.has_error()
        return reply.content

    def join(self, plan: Plan | None = None) -> dict[int, RecordDict]:
        record = JoinRequest(plan or self.plan, self.model.shared).to_record()
        return {node: self.ask(node, JOIN, record) for node in NODES}

    def state(self, node: int) -> RecordDict:
        """What a message to the node would start from."""
        return deepcopy(self.grid._contexts[node].state)

    def put_back(self, node: int, state: RecordDict) -> None:
        """As for a message that was sent at the time of `state`, and is taken up by a process of its own."""
        self.grid._contexts[node].state = deepcopy(state)

    def session(self, **changes: Any) -> Session:
        values: dict[str, Any] = {
            "run": self.plan.run,
            "round": 1,
            "label": "block-0",
            "model_digest": digest(self.model.blocks[0]),
            "settings_digest": JoinRequest(self.plan, self.model.shared).digest(),
            "cohort": tuple(f"company-{i}" for i in range(5)),
            "threshold": 4,
            "length": sum(v.numel() for name, v in self.model.blocks[0].items() if ".layers." in name),
            "bits": self.plan.bits,
        }
        return Session(**(values | changes))

    def channels(self) -> dict[str, ChannelKey]:
        replies = map(JoinReply.from_record, self.join().values())
        return {reply.company: reply.channel for reply in replies}

    def keys(self, session: Session, **told: Session) -> dict[int, RecordDict]:
        """`told`: another session for some of the companies, as in node_1=..."""
        channels = self.channels()
        requests = {n: KeysRequest(told.get(f"node_{n}", session), channels) for n in NODES}
        return {n: self.ask(n, KEYS, request.to_record()) for n, request in requests.items()}

    def train_requests(self, session: Session, **told: Session) -> dict[int, TrainRequest]:
        replies = self.keys(session, **told)
        adverts = {f"company-{n - 1}": KeysReply.from_record(r).advert for n, r in replies.items()}
        requests = TrainRequest.for_each(0, {0: self.model.blocks[0]}, adverts)
        return {n: requests[f"company-{n - 1}"] for n in NODES}

    def train_request(self, session: Session) -> TrainRequest:
        return self.train_requests(session)[1]

    def trained(self, session: Session) -> None:
        """All companies up to their masked vectors."""
        for node, request in self.train_requests(session).items():
            assert refused(self.ask(node, TRAIN, request.to_record())) is None

    def confirm(self, node: int, session: bytes, names: tuple[str, ...]) -> RecordDict:
        return self.ask(node, CONFIRM, ConfirmRequest(Survivors(session=session, names=names)).to_record())

    def signatures(self, session: Session, told: dict[int, tuple[str, ...]]) -> dict[str, bytes]:
        """Confirmations of the sets that each node is told."""
        replies = {n: self.confirm(n, session.digest(), names) for n, names in told.items()}
        signed = {n: ConfirmReply.from_record(reply).confirmation for n, reply in replies.items()}
        return {f"company-{n - 1}": confirmation.signature for n, confirmation in signed.items()}

    def unmask(self, node: int, session: bytes, signatures: dict[str, bytes]) -> RecordDict:
        confirmations = Confirmations(session=session, signatures=signatures)
        return self.ask(node, UNMASK, UnmaskRequest(confirmations).to_record())

    def charges(self, company: int = 0) -> int:
        home = self.run.companies / f"company-{company}"
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            return len(ledger.rows())
