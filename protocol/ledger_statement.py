"""What a company says of a run's cost by its own ledger, signed with its identity key: its to make, and to hand over.

    STATEMENTS/acme.json in the coordinator's run folder

It tells of one run alone; what else the ledger holds is nobody's business. The signature covers the pinned roster, as
all of a company's do. It also notes, away from the company's machine, the last hash of its record of decisions: with
it `fedblocks agent log --verify --seen` shows that nothing before was made up anew. It tells nothing of the lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ..blocks.settings import Part
from ..errors import FedblocksError, InputError, ProtocolError, RunError
from ..privacy.secure_aggregation import Member, Roster

STATEMENTS = "statements"
_PURPOSE = "ledger statement"


class LedgerStatement(Part):
    """`epsilon`: what the run has added to the ledger so far, at the ledger's `delta`; none where no figure holds.

    `releases`: as many as were charged. `account`: accountant and rule of composition. `record`: the hash of the last
    line of the record of decisions, empty where none is kept. `signature`: Ed25519, in hexadecimal digits.
    """

    company: str
    run: str
    releases: int = Field(ge=0)
    epsilon: float | None = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    account: str
    record: str = Field(pattern=r"^([0-9a-f]{64})?$")
    signature: str = ""

    def body(self) -> bytes:
        """What is signed."""
        return self.model_dump_json(exclude={"signature"}).encode()


def signed(member: Member, **said: Any) -> LedgerStatement:
    """A statement of the member's own."""
    draft = LedgerStatement(company=member.name, **said)
    return draft.model_copy(update={"signature": member.sign(_PURPOSE, draft.body()).hex()})


def read_statements(folder: Path, run: str, roster: Roster) -> dict[str, LedgerStatement]:
    """The statements of a run's companies by name, each signed by the identity in the roster.

    Raises: RunError naming the file that is none, or of another run or company, or not signed by it.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            said = LedgerStatement.model_validate_json(path.read_bytes())
            for name, value, expected in (("company", said.company, path.stem), ("run", said.run, run)):
                if value != expected:
                    raise InputError(name, value, f"expected {expected}")
            roster.check(_bytes(said.signature), _PURPOSE, said.company, said.body())
        except ValidationError:
            raise RunError(f"{path}: not a company's statement; remove it, or ask for another") from None
        except FedblocksError as error:
            raise RunError(f"{path}: {error}; remove it, or ask for another") from None
        found[said.company] = said
    return found


def _bytes(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ProtocolError("bad_signature", "expected hexadecimal digits") from None
