"""A company's home folder: its policy, its data, its ledger and its log.

company-0/
    policy.toml           the company's rules
    identity.key          its Ed25519 private key; readable by its owner alone
    roster.toml           names and public keys of the companies that it may aggregate with
    data.npz              training examples, already at the model's size; data.json says what was read into it
    held_out.npz          examples that are never trained on, and held_out.key, which decides; see `held_out`
    ledger.sqlite         every release, charged before it is made
    steps.sqlite          the steps of secure sums that have been taken, once each; the ledger's length and head
    decisions.jsonl       what was asked, allowed, refused, charged and sent, a chained line each
    shared-*.safetensors  the shared state of a joined run
    requests/             what coordinators have asked for, and what people have decided; see `approvals`
    joined.json           what was joined, until the run is over; see `joined`
    models/               the final models of joined runs; see `delivery`, `models` and `awaited`
    release-*.bin         releases of a round that may be begun anew; see `kept_releases`
    prefix.bin            what blocks that a run leaves as they are make of the examples; see `kept_prefix`
    company.log           what happened and why; texts of errors stay here

The folder is of mode 700 and its files of mode 600 (`private_file`).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context
from safetensors.torch import load_file, save

from ..blocks.examples import Examples
from ..blocks.state import State
from ..errors import InputError, LedgerError, PolicyRefusal, PrivacyError, ProtocolError
from ..privacy.accounting import Guarantee
from ..privacy.ledger import Ledger
from ..privacy.randomness import Randomness
from ..privacy.secure_aggregation import Member
from ..protocol import private_file
from ..protocol.evaluation import training_run
from ..protocol.identity import load_member
from ..settings import DataKind, Plan
from .approvals import Requests
from .awaited import AwaitedModels
from .company_log import close_log, company_logger
from .decisions import LEDGER_FILE, Decisions
from .held_out import HELD_OUT_FILE
from .joined import JOINED_FILE, JoinedFile
from .kept_prefix import KeptPrefix
from .kept_releases import KeptReleases
from .policy import Policy, load_policy
from .readiness import ready, startable
from .replay_guard import STEPS_FILE, Steps

COMPANIES = "companies"
# Of one run a day that a company takes part in, however few releases its plan has.
LEAST_SESSIONS = 1000

# The rules that each home's record of decisions was last told of, by this process.
_policies: dict[Path, bytes] = {}
# NumPy evaluates a file's header as Python, which is not safe in several threads in CPython 3.11.
_reading = threading.Lock()


@dataclass(frozen=True)
class Company:
    """One company, on its own machine."""

    home: Path
    policy: Policy
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, context: Context) -> Company:
        """The company of this node: at `company-home` in the node's own configuration, or, in a simulation, in the
        folder of its partition in the run folder. Never at a path from a message.

        Raises:
            InputError: no home is set, or its policy cannot be read.
            PrivacyError: a deployed company has a simulation seed.
        """
        home = context.node_config.get("company-home")
        if home is not None:
            return cls.deployed(Path(str(home)))
        run_dir, partition = context.run_config.get("run-dir"), context.node_config.get("partition-id")
        if not run_dir or partition is None:
            raise InputError("company-home", home, "not set in this node's configuration")
        simulated = simulated_home(Path(str(run_dir)) / COMPANIES, int(partition))
        return cls(simulated, load_policy(simulated / "policy.toml"))

    @classmethod
    def deployed(cls, home: Path) -> Company:
        """The company at `home`, outside of a simulation: PrivacyError if its noise has a seed."""
        policy = load_policy(home / "policy.toml")
        if policy.simulation_seed is not None:
            raise PrivacyError("simulation_seed is set: whoever knows it can subtract this company's noise")
        return cls(home, policy)

    @property
    def name(self) -> str:
        return self.policy.company

    def check_files(self) -> None:
        """Check modes and owners of this home's files; PrivacyError if others have access."""
        private_file.check_home(self.home)

    def member(self) -> Member:
        """Its identity and pinned roster, from its own files, never from a message; raises as `load_member`."""
        return load_member(self.home, self.name)

    def data(self) -> Examples:
        """The training examples, checked against the policy's declaration; InputError if they do not fit."""
        return self._read(self.home / "data.npz")

    def held_out(self) -> Examples | None:
        """The examples that are never trained on; none where the home holds nothing out. Raises as `data`."""
        try:
            return self._read(self.home / HELD_OUT_FILE)
        except FileNotFoundError:
            return None

    def _read(self, path: Path) -> Examples:
        state = path.stat()
        seen = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        return _data(path, seen, self.policy.data)

    def ready(self, plan: Plan, *, joining: bool = False) -> Examples:
        """The examples, if this company could train a round of the plan now; see `readiness`."""
        return ready(self, plan, joining=joining)

    def startable(self) -> None:
        """Check what an agent needs before it connects, so that a fault is found before any run; see `readiness`."""
        startable(self)

    def limit_threads(self) -> None:
        """Train with no more cores than the policy allows; without a rule the process's own number stays."""
        if self.policy.threads is not None:
            torch.set_num_threads(self.policy.threads)

    def count_round(self) -> None:
        """Count a training of today; ProtocolError("too_many") past the policy's limit."""
        if self.policy.most_rounds_a_day is not None:
            self.steps.count("rounds", self.day(), times=1, most=self.policy.most_rounds_a_day)

    def day(self) -> str:
        """Today's date, in UTC."""
        return datetime.fromtimestamp(self.clock(), UTC).date().isoformat()

    def check_steps(self, plan: Plan) -> None:
        """Check that a release's local steps fit under the policy's limit; PolicyRefusal if not.

        Not a code that says to wait, as `count_steps` has: no day brings the steps of a run back.
        """
        steps, most = plan.training.local_steps, self.policy.most_steps
        try:
            self.steps.check_count(*_local_steps(plan), times=steps, most=most)
        except ProtocolError as error:
            raise PolicyRefusal("most_steps", str(error)) from None

    def count_steps(self, plan: Plan) -> None:
        """Count a release's local steps, as `check_steps`."""
        self.steps.count(*_local_steps(plan), times=plan.training.local_steps, most=self.policy.most_steps)

    def save_shared(self, joined: bytes, shared: State) -> None:
        """Store a run's shared state, in a file named by the digest of plan and state.

        So a run of the same name with another plan or state has another file.
        """
        if (
            self.simulated
        ):  # no sync to disk: each of thousands would wait for one, and who reads checks the digest
            with open(self._shared(joined), "wb", opener=private_file.opener) as file:
                file.write(save(shared))
            return
        # Replaced atomically: a training that is reading the old file is not disturbed.
        private_file.write(self._shared(joined), save(shared))

    def load_shared(self, joined: bytes) -> State:
        return load_file(self._shared(joined))

    def _shared(self, joined: bytes) -> Path:
        return self.home / f"shared-{joined.hex()}.safetensors"

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, if it agrees with the record of steps.

        Raises:
            LedgerError: it does not; also in place of any InputError, whose text may tell of earlier releases.
        """
        try:
            with self._ledger(self.steps) as ledger:
                yield ledger
        except InputError as error:
            # Which event does not compose with the earlier ones reveals of which kind those are.
            raise LedgerError(str(error)) from error

    def create_ledger(self) -> None:
        """Create the company's first ledger, or one in place of a lost one; InputError if there is one."""
        path = self.home / LEDGER_FILE
        if os.path.lexists(path):
            raise InputError("ledger", str(path), "exists already; it stays in use")
        self._begin()

    def accept_ledger(self) -> Guarantee:
        """Accept the ledger as it is, whatever was seen of it before; returns what it has spent."""
        if not os.path.lexists(self.home / LEDGER_FILE):
            raise InputError("ledger", str(self.home / LEDGER_FILE), "no such file")
        return self._begin()

    def _begin(self) -> Guarantee:
        with self._ledger(None) as ledger:
            rows = ledger.rows()
            self.steps.begin(len(rows), ledger.head(), {training_run(row.run) for row in rows})
            self.decisions.begin(len(rows), ledger.head())
            return ledger.spent()

    def _ledger(self, witness: Steps | None) -> Ledger:
        policy = self.policy
        return Ledger.open(
            self.home / LEDGER_FILE,
            self.name,
            policy.epsilon_ceiling,
            policy.delta,
            self.clock,
            rule=policy.composition,
            witness=witness,
            durable=not self.simulated,
        )

    @property
    def simulated(self) -> bool:
        """Whether its noise follows from a seed, so that nothing of a run needs to outlive the process."""
        return self.policy.simulation_seed is not None

    @property
    def joined(self) -> JoinedFile:
        return JoinedFile(self.home / JOINED_FILE)

    @property
    def awaited(self) -> AwaitedModels:
        """The runs whose final model this company takes."""
        return AwaitedModels(self.home, self.name)

    @property
    def releases(self) -> KeptReleases:
        return KeptReleases(self.home)

    @property
    def prefix(self) -> KeptPrefix:
        return KeptPrefix(self.home, self.policy.prefix_cache_mb, self.log)

    @property
    def requests(self) -> Requests:
        """What coordinators have asked for, and what people of the company have decided."""
        return Requests(self.home, self.clock)

    def leave(self, run: str, channel: bytes | None = None) -> bool:
        """The run is over: what was kept to go on with it, joined with this public channel key, is removed; False,
        and nothing is, where another one has been joined since, as of a coordinator that looks after an old run."""
        if self.joined.run() not in ("", run):
            return False
        self.joined.remove()
        self.releases.forget()
        self.prefix.forget()
        if channel is not None:
            with suppress(LedgerError):  # a full disk: the steps stay, and the agent goes on
                self.steps.forget_sessions(channel)
        return True

    @property
    def steps(self) -> Steps:
        return Steps(self.home / STEPS_FILE, durable=not self.simulated)

    @property
    def decisions(self) -> Decisions:
        return Decisions(self.home, self.steps, self.clock, kept=self.policy.simulation_seed is None)

    def see_policy(self) -> None:
        """Put a policy that has changed on record."""
        text = (self.home / "policy.toml").read_bytes()
        if _policies.get(self.home) != text:
            self.decisions.see_policy(text)
            _policies[self.home] = text

    def count_join(self, plan: Plan) -> None:
        """Count a join before its plan is checked, whether or not it will be refused.

        The answer to a plan reveals whether it fits into the remaining budget. Many slightly different plans would
        reveal what was spent elsewhere.

        Raises:
            ProtocolError: "too_many", past one of the policy's limits for a day.
        """
        day = self.day()
        self.steps.count("joins", day, times=1, most=self.policy.most_joins)
        self.steps.count_new("plans", day, value=plan.digest(), most=self.policy.most_new_plans)

    def count_session(self, plan: Plan) -> None:
        """Count a session of today before it begins, since each leaves a row on disk for as long as its run goes on.

        Raises:
            ProtocolError: "too_many", past what a run with failed rounds needs.
        """
        if self.simulated:
            return
        most = max(LEAST_SESSIONS, self.policy.most_attempts * plan.most_releases)
        self.steps.count("sessions", plan.run.encode(), self.day(), times=1, most=most)

    def randomness(self, *labels: str | int) -> tuple[str, Randomness]:
        """A release's id and its randomness.

        From the operating system, so that every release is new. In a simulation both follow from the seed
        and the labels: the same labels give the same bits, so the same release, which is charged once.
        """
        seed = self.policy.simulation_seed
        if seed is None:
            return secrets.token_hex(16), Randomness.from_entropy()
        identity = Randomness.from_seed(seed, "release", self.name, *labels).bytes(16).hex()
        return identity, Randomness.from_seed(seed, "noise", self.name, *labels)

    def log(self, text: str, *, error: Exception | None = None) -> None:
        """Append to the company's own log."""
        logger = company_logger(self.home)
        logger.log(logging.ERROR if error else logging.INFO, text, exc_info=error)
        if self.simulated:  # thousands of them would keep as many files open
            close_log(self.home)


def _local_steps(plan: Plan) -> tuple[str, bytes]:
    return "local steps", plan.run.encode()


def simulated_home(companies: Path, partition: int) -> Path:
    """The home of a simulated company: `company-<partition>`, or where companies have names, by their order."""
    numbered = companies / f"company-{partition}"
    if numbered.is_dir():  # asked with every message: no look at thousands of others
        return numbered
    named = sorted(home for home in companies.glob("*") if (home / "policy.toml").is_file())
    return numbered if partition >= len(named) else named[partition]


@lru_cache(maxsize=128)
def _data(path: Path, seen: tuple[int, ...], kind: DataKind) -> Examples:
    """Cached until the file changes."""
    with _reading:
        return Examples.load(path).check(path.name, kind)
