"""A company's home folder: its policy, its data, its ledger and its log.

company-0/
    policy.toml           the company's rules
    identity.key          its Ed25519 private key; readable by its owner alone
    roster.toml           names and public keys of the companies it will ever aggregate with
    data.npz              training examples, already at the model's size
    ledger.sqlite         every release, charged before it is made
    steps.sqlite          the steps of secure sums that have been taken, once each; how far the ledger has come
    shared-*.safetensors  the shared state of a run, as it was joined
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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path

from flwr.app import Context
from safetensors.torch import load_file, save

from ..blocks.examples import Examples
from ..blocks.state import State
from ..errors import InputError, LedgerError, PrivacyError
from ..privacy.accounting import Guarantee
from ..privacy.ledger import Ledger
from ..privacy.randomness import Randomness
from ..privacy.secure_aggregation import Member
from ..protocol import private_file
from ..protocol.identity import load_member
from ..protocol.log_text import entry
from ..settings import DataKind, Plan
from .policy import Policy, load_policy
from .replay_guard import STEPS_FILE, Steps

COMPANIES = "companies"
LEDGER_FILE = "ledger.sqlite"

# NumPy evaluates a file's header as Python, which simulated companies cannot do at once in CPython 3.11.
_reading = threading.Lock()


@dataclass(frozen=True)
class Company:
    """One company, as its own machine sees it."""

    home: Path
    policy: Policy
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, context: Context) -> Company:
        """Where this node's home lies: `company-home` in the node's own configuration, or, in a simulation,
        the folder of its partition in the run folder. Never anything a message says."""
        home = context.node_config.get("company-home")
        if home is not None:
            return cls.deployed(Path(str(home)))
        run_dir, partition = context.run_config.get("run-dir"), context.node_config.get("partition-id")
        if not run_dir or partition is None:
            raise InputError("company-home", home, "not set in this node's configuration")
        simulated = Path(str(run_dir)) / COMPANIES / f"company-{partition}"
        return cls(simulated, load_policy(simulated / "policy.toml"))

    @classmethod
    def deployed(cls, home: Path) -> Company:
        """The company at `home`, on its own machine: nothing of it may be guessed."""
        policy = load_policy(home / "policy.toml")
        if policy.simulation_seed is not None:
            raise PrivacyError("simulation_seed is set: whoever knows it can subtract this company's noise")
        return cls(home, policy)

    @property
    def name(self) -> str:
        return self.policy.company

    def check_files(self) -> None:
        """That nobody else may use the files of this home; PrivacyError."""
        private_file.check_home(self.home)

    def member(self) -> Member:
        """Who this company is to the others, and whom it has pinned: from its own files, never from a message."""
        return load_member(self.home, self.name)

    def data(self) -> Examples:
        """The training examples, checked against what the policy declares of them."""
        path = self.home / "data.npz"
        state = path.stat()
        return _data(path, state.st_mtime_ns, state.st_size, self.policy.data)

    def save_shared(self, joined: bytes, shared: State) -> None:
        """Under the digest of what was joined: the run's name, its plan and this state.

        Whoever joins under the same name with another plan or state has a file of its own.
        """
        # A training that reads the old file goes on reading that.
        private_file.write(self._shared(joined), save(shared))

    def load_shared(self, joined: bytes) -> State:
        return load_file(self._shared(joined))

    def _shared(self, joined: bytes) -> Path:
        return self.home / f"shared-{joined.hex()}.safetensors"

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, if it is the one that the record of steps knows; whatever it refuses is a LedgerError."""
        try:
            with self._ledger(self.steps) as ledger:
                yield ledger
        except InputError as error:
            # What does not compose with earlier releases tells which those were.
            raise LedgerError(str(error)) from error

    def create_ledger(self) -> None:
        """The first ledger of this company, or one in place of what is lost; InputError if there is one."""
        path = self.home / LEDGER_FILE
        if os.path.lexists(path):
            raise InputError("ledger", str(path), "exists already; it goes on being charged")
        self._begin()

    def accept_ledger(self) -> Guarantee:
        """Count from the ledger as it lies there, whatever was seen of it before; what that comes to."""
        if not os.path.lexists(self.home / LEDGER_FILE):
            raise InputError("ledger", str(self.home / LEDGER_FILE), "no such file")
        return self._begin()

    def _begin(self) -> Guarantee:
        with self._ledger(None) as ledger:
            rows = ledger.rows()
            self.steps.begin(len(rows), ledger.head(), {row.run for row in rows})
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
        )

    @property
    def steps(self) -> Steps:
        return Steps(self.home / STEPS_FILE)

    def count_join(self, plan: Plan) -> None:
        """Before a plan is looked at, refused or not; ProtocolError("too_many") past the policy's limits of a day.

        Yes or no to a plan tells whether what is left of the budget reaches for it. Asked often enough, with plans
        that differ a little, that is what was spent elsewhere.
        """
        day = datetime.fromtimestamp(self.clock(), UTC).date().isoformat()
        self.steps.count("joins", day, times=1, most=self.policy.most_joins)
        self.steps.count_new("plans", day, value=plan.digest(), most=self.policy.most_new_plans)

    def randomness(self, *labels: str | int) -> tuple[str, Randomness]:
        """A release's identity and its randomness.

        From the operating system, so that every release is new. In a simulation both follow from the seed
        and the labels: the same labels give the same bits, which is then one release and charged once.
        """
        seed = self.policy.simulation_seed
        if seed is None:
            return secrets.token_hex(16), Randomness.from_entropy()
        identity = Randomness.from_seed(seed, "release", self.name, *labels).bytes(16).hex()
        return identity, Randomness.from_seed(seed, "noise", self.name, *labels)

    def log(self, text: str, *, error: Exception | None = None) -> None:
        """Append to the company's own log."""
        logger = logging.getLogger(f"fedblocks.company.{self.home}")
        if not logger.handlers:
            logger.propagate = False
            logger.setLevel(logging.INFO)
            handler = _LogFile(self.home / "company.log", encoding="utf-8", delay=True)
            handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(handler)
        logger.log(logging.ERROR if error else logging.INFO, text, exc_info=error)


class _LogFile(logging.FileHandler):
    """A log that its owner alone may read, from the start."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=private_file.opener)


class _Lines(logging.Formatter):
    """A text that a message brought with it cannot look like an entry of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return entry(super().format(record))


@lru_cache(maxsize=128)
def _data(path: Path, modified: int, size: int, kind: DataKind) -> Examples:
    """Read and checked once for as long as the file stays as it is."""
    with _reading:
        return Examples.load(path).check("data.npz", kind)
