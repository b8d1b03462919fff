"""The cohort of a run: maps Flower nodes to companies, and collects each phase's replies by company."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ..blocks.state import State
from ..errors import FedblocksError, ProtocolError, RunError
from ..privacy.secure_aggregation import ChannelKey, Roster
from ..protocol.messages import JOIN, JoinReply, JoinRequest, refused
from ..protocol.roster import difference
from ..settings import Plan
from .grid import names_of

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Cohort:
    """The companies of a run, which stay the same: the difference of two cohorts' sums could isolate one company.

    Or those of one round, where a simulation's plan draws each round's (`drawn_cohort`).

    `nodes`: where those are that are known to be somewhere. `back`: waits for companies whose answers were lost, and
    says which of them can be asked again; without it, none.
    """

    grid: Grid
    nodes: dict[str, int]
    channels: dict[str, ChannelKey]
    roster: Roster
    settings_digest: bytes
    timeout: float
    back: Callable[[Collection[str]], list[str]] | None = None

    @property
    def companies(self) -> tuple[str, ...]:
        return tuple(sorted(self.channels))

    def ask(
        self,
        phase: str,
        group: str,
        requests: Mapping[str, RecordDict],
        parse: Callable[[RecordDict], Reply],
    ) -> tuple[dict[str, Reply], dict[str, str]]:
        """One phase: a message to each named company. The well-formed answers, and the failures' codes, by company.

        A code is the refusal's own, that of a malformed answer, or `no_reply` where nothing came.
        """
        names = {self.nodes[company]: company for company in requests if company in self.nodes}
        messages = [
            Message(requests[company], node, phase, group_id=group, ttl=self.timeout)
            for node, company in names.items()
        ]
        answers: dict[str, Reply] = {}
        failures: dict[str, str] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            company = names.get(reply.metadata.src_node_id)
            if company is None or company in answers:
                continue
            try:
                answers[company] = parse(_answer(reply))
            except FedblocksError as error:
                failures.setdefault(company, error.code)
        for company in requests:
            if company not in answers:
                failures.setdefault(company, "no_reply")
        return answers, failures


@dataclass(frozen=True)
class Joined:
    """A company that has accepted the plan, and its signed channel key."""

    company: str
    channel: ChannelKey


def join(
    grid: Grid, plan: Plan, shared: State, roster: Roster, expected: int, *, wait: float = 60.0
) -> Cohort:
    """Offer the plan to every node; all must accept before anything is trained.

    Waits up to `wait` seconds for `expected` nodes.

    Raises:
        ProtocolError: a node refuses the plan, has another roster or claims another company's name, or its channel
            key is not signed by a member.
        RunError: too few nodes or replies, or two nodes claim one company's name.
    """
    nodes = wait_for_nodes(grid, expected, wait)
    request, timeout = JoinRequest(plan, shared), plan.training.message_timeout
    found, channels = joined_of(grid, offer(grid, request, nodes, roster, timeout))
    if len(found) < expected:
        raise RunError(f"{len(found)} of {expected} companies answered within {timeout:g} s")
    return Cohort(grid, found, channels, roster, request.digest(), timeout)


def offer(
    grid: Grid, request: JoinRequest, nodes: Iterable[int], roster: Roster, timeout: float
) -> dict[int, Joined | FedblocksError]:
    """Offer the plan to these nodes; who has joined, or why not, by node; nothing of who did not answer.

    Raises: RunError where two nodes claim one company's name.
    """
    record, settings = request.to_record(), request.digest()
    messages = [Message(record, node, JOIN, group_id="join", ttl=timeout) for node in nodes]
    # Where the transport authenticates companies, a reply must name the authenticated one.
    authenticated = names_of(grid)
    answers: dict[int, Joined | FedblocksError] = {}
    claimed: set[str] = set()
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        try:
            answer = JoinReply.from_record(_answer(reply))
            if authenticated.get(node, answer.company) != answer.company:
                text = f"{authenticated[node]} says it is {answer.company}: it has the certificate of another"
                raise ProtocolError("wrong_name", text)
            if answer.company in claimed:
                raise RunError(f"two nodes say they are {answer.company}")
            _check_same_roster(answer, roster)
            answer.channel.check(roster, answer.company, request.plan.run, settings)
            answer.channel.check_usable()
        except RunError:
            raise
        except FedblocksError as error:
            answers[node] = error
            continue
        claimed.add(answer.company)
        answers[node] = Joined(answer.company, answer.channel)
    return answers


def joined_of(
    grid: Grid, answers: Mapping[int, Joined | FedblocksError]
) -> tuple[dict[str, int], dict[str, ChannelKey]]:
    """Nodes and channel keys by company. Raises: ProtocolError of the first company that has not joined."""
    nodes: dict[str, int] = {}
    channels: dict[str, ChannelKey] = {}
    for node, answer in answers.items():
        if not isinstance(answer, Joined):
            raise refusal_of(names_of(grid).get(node, f"node {node}"), answer)
        nodes[answer.company], channels[answer.company] = node, answer.channel
    return nodes, channels


def refusal_of(name: str, error: FedblocksError) -> ProtocolError:
    """That a company does not join, in words."""
    if isinstance(error, ProtocolError) and error.code in ("roster_differs", "wrong_name"):
        return error
    return ProtocolError(error.code, f"{name} refused the plan; the reason is in that company's own log")


def wait_for_nodes(grid: Grid, expected: int, wait: float) -> list[int]:
    """The nodes that are online, once there are `expected` of them; RunError after `wait` seconds."""
    deadline = time.monotonic() + wait
    while len(nodes := sorted(grid.get_node_ids())) < expected:
        if time.monotonic() > deadline:
            names = names_of(grid)
            missing = ", ".join(name for node, name in names.items() if node not in nodes)
            text = f"{len(nodes)} of {expected} nodes are online after {wait:g} s"
            raise RunError(f"{text}; missing: {missing}" if missing else text)
        time.sleep(0.5)
    return nodes


def _check_same_roster(answer: JoinReply, roster: Roster) -> None:
    """ProtocolError that names the companies in which the two rosters differ: no signature is valid in both."""
    theirs = f"that of {answer.company}"
    text = difference(dict(roster.members), answer.roster, of_own="that of the coordinator", of_other=theirs)
    if answer.roster and text:
        rule = "both sides install the newest roster of the provisioner, and the run is prepared with it"
        raise ProtocolError("roster_differs", f"{theirs} and that of the coordinator differ: {text}; {rule}")


def _answer(reply: Message) -> RecordDict:
    if reply.has_error():
        raise ProtocolError("failed", "the node could not run the app")
    code = refused(reply.content)
    if code is not None:
        raise ProtocolError(code, "the company refused")
    return reply.content
