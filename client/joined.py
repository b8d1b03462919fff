"""What a company has joined, in its home, so that an agent that is killed at any point takes part again at once.

HOME/joined.json, of mode 600, is written at the end of a join and removed when the run is over. It holds the plan,
the digests of what was joined, the company's channel key for this run, and the ledger's length and head at that time:
a ledger that does not begin so is another one, and then nothing was joined. Which sessions were begun, trained and
answered is in `replay_guard`. Keys and seeds of a session are never written: a session that a crash has interrupted
is gone, and the coordinator begins another one.

The channel key lies there for the run's time. Who steals it, and has recorded the run's messages, can read the shares
that peers have sealed for this company; that opens no mask below the threshold of companies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..privacy.ledger import Ledger
from ..protocol import private_file

JOINED_FILE = "joined.json"
SECRETS_AND_DIGESTS = ("joined", "shared", "channel", "public")
_HEX = r"^([0-9a-f]{2})+$"


class JoinedRun(BaseModel):
    """`plan` in JSON; `joined`, `shared`, `channel` and `public` in hexadecimal digits, `channel` being secret; the
    roster under which it was joined, name -> public key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    company: str
    plan: str
    joined: str = Field(pattern=_HEX)
    shared: str = Field(pattern=_HEX)
    channel: str = Field(pattern=_HEX, repr=False)
    public: str = Field(pattern=_HEX)
    roster: dict[str, str]
    rows: int = Field(ge=0)
    head: str


@dataclass(frozen=True)
class JoinedFile:
    """The file of one home."""

    path: Path

    def save(self, run: JoinedRun) -> None:
        private_file.write(self.path, run.model_dump_json().encode())

    def load(self, company: str, ledger: Ledger) -> JoinedRun | None:
        """What was joined; none if nothing was, the file is damaged, or it is of another company or ledger."""
        found = self._read()
        if found is None or found.company != company or not ledger.begins(found.rows, found.head):
            return None
        return found

    def run(self) -> str:
        """The name of the joined run; empty if there is none, or the file is damaged."""
        found = self._read()
        try:
            return "" if found is None else str(json.loads(found.plan)["run"])
        except (ValueError, KeyError, TypeError):
            return ""

    def _read(self) -> JoinedRun | None:
        try:
            return JoinedRun.model_validate_json(self.path.read_bytes())
        except (OSError, ValidationError):
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
