"""What a coordinator may make up for one company alone, tried on the company's own code: each attempt ends in a code.

The companies of one of the run's sums are rebuilt in a folder of their own, with their policies and new keys and
ledgers: nothing of the run is touched, and their messages go through the ClientApp as in any run. The honest messages
that lead to an attempt have to be answered, so that a refusal is one of the attempt.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import RecordDict

from ..blocks import Denoiser, digest
from ..blocks.state import State
from ..client.app import app
from ..client.company import COMPANIES, Company, simulated_home
from ..client.policy import load_policy
from ..errors import ProtocolError
from ..privacy.secure_aggregation import Advert, ChannelKey, Identity, Session, lowest_threshold
from ..protocol import private_file
from ..protocol.identity import IDENTITY_FILE, ROSTER_FILE, save_identity, save_roster
from ..protocol.messages import (
    JOIN,
    KEYS,
    TRAIN,
    JoinReply,
    JoinRequest,
    KeysReply,
    KeysRequest,
    TrainRequest,
    refused,
)
from ..protocol.release import block_size, blocks_read
from ..server.assignment import assign
from ..server.checkpoint import Checkpoint
from ..server.grid import InProcessGrid
from ..server.run_folder import RunFolder
from ..settings import Plan
from .subject import cohort_of


@dataclass(frozen=True)
class Attempt:
    """`code`: with what the victim refused; none: it answered. `expected`: the code of the check that it is about."""

    name: str
    code: str | None
    expected: str


@dataclass
class MadeUp:
    """A coordinator of rebuilt companies which sends each company what it likes; the first one is the victim.

    `round`: in which these companies train the block.
    """

    grid: InProcessGrid
    nodes: dict[str, int]
    round: int
    plan: Plan
    model: Denoiser
    shared: State
    blocks: tuple[State, ...]
    block: int

    @property
    def victim(self) -> str:
        return next(iter(self.nodes))

    @property
    def states(self) -> dict[int, State]:
        return {b: self.blocks[b] for b in blocks_read(self.plan, self.block)}

    def ask(self, company: str, phase: str, record: RecordDict) -> RecordDict:
        message = self.grid.create_message(record, phase, self.nodes[company], "made-up")
        (reply,) = self.grid.send_and_receive([message])
        return reply.content

    def answered(self, company: str, phase: str, record: RecordDict) -> RecordDict:
        """An honest message's answer. Raises: ProtocolError where it is refused, as nothing can be shown then."""
        reply = self.ask(company, phase, record)
        if (code := refused(reply)) is not None:
            raise ProtocolError(code, f"{company} refused an honest message, {phase}")
        return reply

    def join(self, company: str, plan: Plan | None = None) -> ChannelKey:
        record = JoinRequest(plan or self.plan, self.shared).to_record()
        return JoinReply.from_record(self.answered(company, JOIN, record)).channel

    def session(self, **changes: Any) -> Session:
        cohort = tuple(sorted(self.nodes))
        lowest = lowest_threshold(len(cohort), self.plan.colluders)
        values: dict[str, Any] = {
            "run": self.plan.run, "round": self.round, "label": f"block-{self.block}", "cohort": cohort,
            "model_digest": digest(*self.states.values()), "bits": self.plan.bits,
            "settings_digest": JoinRequest(self.plan, self.shared).digest(),
            "threshold": max(self.plan.threshold(len(cohort)) or 0, lowest),
            "length": block_size(self.model, self.block, self.plan.training),
        }  # fmt: skip
        return Session(**(values | changes))

    def keys(self, session: Session, channels: dict[str, ChannelKey], *companies: str) -> dict[str, Advert]:
        record = KeysRequest(session, channels).to_record()
        return {c: KeysReply.from_record(self.answered(c, KEYS, record)).advert for c in companies}

    def another_model(self) -> dict[int, State]:
        """The states with one value of the block changed."""
        own = dict(self.blocks[self.block])
        name = min(own)
        own[name] = own[name].clone()
        own[name].view(-1)[0] += 1
        return self.states | {self.block: own}

    def other_plan(self) -> Plan:
        """A plan that the companies would accept as well: it costs them the same."""
        training = self.plan.training
        return self.plan.changed(
            training=training.model_dump() | {"evaluate_every": training.evaluate_every + 1}
        )

    def train(self, states: dict[int, State], adverts: dict[str, Advert]) -> str | None:
        """The victim's answer to an order to train, which it would pay for."""
        order = TrainRequest.for_each(self.block, states, adverts)[self.victim]
        return refused(self.ask(self.victim, TRAIN, order.to_record()))


def _other_model(c: MadeUp) -> str | None:
    """All have begun one session; the victim is sent another model than the session is for."""
    adverts = c.keys(c.session(), {name: c.join(name) for name in c.nodes}, *c.nodes)
    return c.train(c.another_model(), adverts)


def _other_session(c: MadeUp) -> str | None:
    """The victim begins a session for a model of its own, the others theirs: their adverts do not go together."""
    channels = {name: c.join(name) for name in c.nodes}
    states = c.another_model()
    adverts = c.keys(c.session(model_digest=digest(*states.values())), channels, c.victim)
    adverts |= c.keys(c.session(), channels, *(name for name in c.nodes if name != c.victim))
    return c.train(states, adverts)


def _small_cohort(c: MadeUp) -> str | None:
    """A sum of the victim and one other: whoever knows the other's vector has the victim's."""
    channels = {name: c.join(name) for name in c.nodes}
    two = tuple(sorted(list(c.nodes)[:2]))
    session = c.session(cohort=two, threshold=2)
    return refused(c.ask(c.victim, KEYS, KeysRequest(session, channels).to_record()))


def _other_cohort(c: MadeUp) -> str | None:
    """A later sum without one of the companies: the difference of the two would be that company's."""
    channels = {name: c.join(name) for name in c.nodes}
    c.keys(c.session(), channels, *c.nodes)
    fewer = tuple(sorted(c.nodes))[:-1]
    lowest = max(lowest_threshold(len(fewer), c.plan.colluders), c.plan.threshold(len(fewer)) or 0)
    later = min(c.round + 1, c.plan.training.rounds)
    session = c.session(round=later, cohort=fewer, threshold=min(lowest, len(fewer)))
    return refused(c.ask(c.victim, KEYS, KeysRequest(session, channels).to_record()))


def _low_threshold(c: MadeUp) -> str | None:
    """A set of two may be opened, whatever the cohort."""
    channels = {name: c.join(name) for name in c.nodes}
    return refused(c.ask(c.victim, KEYS, KeysRequest(c.session(threshold=2), channels).to_record()))


def _other_plan(c: MadeUp) -> str | None:
    """The victim joins under another plan than the others, whose keys are signed for theirs."""
    other = c.other_plan()
    channels = {name: c.join(name, other if name == c.victim else None) for name in c.nodes}
    session = c.session(settings_digest=JoinRequest(other, c.shared).digest())
    return refused(c.ask(c.victim, KEYS, KeysRequest(session, channels).to_record()))


def _changed_plan(c: MadeUp) -> str | None:
    """The session is for another plan than the victim has joined."""
    channels = {name: c.join(name) for name in c.nodes}
    other = c.other_plan()
    session = c.session(settings_digest=JoinRequest(other, c.shared).digest())
    return refused(c.ask(c.victim, KEYS, KeysRequest(session, channels).to_record()))


def _no_noise(c: MadeUp) -> str | None:
    """A plan like the run's own, without noise."""
    bare = c.plan.changed(noise_multiplier=0.0)
    return refused(c.ask(c.victim, JOIN, JoinRequest(bare, c.shared).to_record()))


# With the code of the check that each is about: a refusal for another reason is none of the attempt.
ATTEMPTS: dict[str, tuple[Callable[[MadeUp], str | None], str]] = {
    "another model than the session's": (_other_model, "wrong_session"),
    "a session for a model of its own": (_other_session, "wrong_session"),
    "a cohort below the minimum": (_small_cohort, "small_cohort"),
    "another cohort in a later round": (_other_cohort, "bad_session"),
    "a threshold of two": (_low_threshold, "low_threshold"),
    "a plan of its own": (_other_plan, "bad_signature"),
    "a session for another plan": (_changed_plan, "bad_session"),
    "a plan without noise": (_no_noise, "privacy"),
}


def attempts(run: RunFolder, model: Denoiser, block: int) -> Iterator[Attempt]:
    """Try everything, one after the other; each begins with joining anew.

    Raises: ProtocolError where even an honest round is refused.
    """
    with rebuilt(run, model, block) as coordinator:
        _honest(coordinator)
    with rebuilt(run, model, block) as coordinator:
        for name, (attempt, code) in ATTEMPTS.items():
            if attempt is _no_noise and not coordinator.plan.private:
                continue  # the run's companies accept that already
            yield Attempt(name, attempt(coordinator), code)


def _honest(c: MadeUp) -> None:
    """The victim trains in a round in which nothing is made up. Raises: ProtocolError where it does not."""
    adverts = c.keys(c.session(), {name: c.join(name) for name in c.nodes}, *c.nodes)
    if (code := c.train(c.states, adverts)) is not None:
        raise ProtocolError(code, f"{c.victim} refused to train in an honest round")


@contextmanager
def rebuilt(run: RunFolder, model: Denoiser, block: int) -> Iterator[MadeUp]:
    """The companies of the first sum of this block as they were before the run's first round, in a folder that is
    removed afterwards; in their rosters are all companies of the run."""
    public, plan, homes = Checkpoint.load(run.checkpoints, 0).model, run.plan(), run.homes()
    round_, cohort = _first_sum(plan, tuple(home.name for home in homes), block)
    with tempfile.TemporaryDirectory(prefix="fedblocks-") as folder:
        companies, members = Path(folder) / COMPANIES, {}
        companies.mkdir(mode=0o700)
        for home in homes:
            own, identity = companies / home.name, Identity.generate()
            own.mkdir(mode=0o700)
            # The limits of joins in a day are for one coordinator; here are as many as there are attempts.
            policy = load_policy(home / "policy.toml").model_copy(
                update={"most_joins": 2 * len(ATTEMPTS), "most_new_plans": len(ATTEMPTS)}
            )
            rules = tomli_w.dumps(policy.model_dump(exclude_none=True))
            private_file.write(own / "policy.toml", rules.encode())
            members[policy.company] = identity.public
            if home.name in cohort:
                shutil.copy(home / "data.npz", own / "data.npz")
                save_identity(own / IDENTITY_FILE, identity)
                Company(own, policy).create_ledger()
        for name in cohort:
            save_roster(companies / name / ROSTER_FILE, members)
        grid = InProcessGrid(app, len(homes), {"run-dir": folder})
        try:
            names = _names(companies, len(homes), cohort)
            yield MadeUp(grid, names, round_, plan, model, public.shared, public.blocks, block)
        finally:
            grid.close()


def _first_sum(plan: Plan, names: tuple[str, ...], block: int) -> tuple[int, tuple[str, ...]]:
    """The first round in which this block is trained, and by whom; the first of all where none trains it."""
    for round_ in range(1, plan.training.rounds + 1):
        for task in assign(round_, cohort_of(plan, round_, names), plan):
            if task.block == block:
                return round_, task.companies
    return 1, cohort_of(plan, 1, names)


def _names(companies: Path, count: int, cohort: Collection[str]) -> dict[str, int]:
    """The node of each company of the cohort: a company finds its home by its node's number."""
    homes = {simulated_home(companies, partition): partition + 1 for partition in range(count)}
    return {load_policy(h / "policy.toml").company: node for h, node in homes.items() if h.name in cohort}
