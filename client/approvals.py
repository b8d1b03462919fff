"""Requests to take part in a run, and what a person of the company has decided about them.

HOME/requests/*.json, a file a plan and run. Policy says which runs wait for a person: none, the first run of a plan
(whatever its later runs are called), or each. Nothing else of the company is looked at before the decision, so that
an answer tells the coordinator no more than that nobody has decided yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError, ProtocolError
from ..protocol import private_file
from ..settings import Plan, validated_json
from .policy import Policy

REQUESTS = "requests"
# Undecided requests of a home: a coordinator that makes up plans must not fill the disk.
MOST_PENDING = 20


class Undecided(ProtocolError):
    """Nobody has decided yet; `told`: this was answered, and put on record, before."""

    def __init__(self, text: str, *, told: bool) -> None:
        self.told = told
        super().__init__("pending", text)


class Request(BaseModel):
    """A plan that a coordinator asks for, in JSON; `digest` is the plan's, `terms` its own without the run's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    run: str
    plan: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    terms: str = Field(pattern=r"^[0-9a-f]{64}$")
    asked: float
    decision: Literal["pending", "approved", "denied"] = "pending"
    by: str = ""
    why: str = ""
    decided: float | None = None

    @property
    def offered(self) -> Plan:
        return validated_json(Plan, self.plan)


@dataclass(frozen=True)
class Requests:
    """The requests of one home."""

    home: Path
    clock: Callable[[], float] = time.time

    def check(self, plan: Plan, policy: Policy) -> None:
        """Return if the company takes part as far as its people are concerned; keeps a new request.

        Raises:
            Undecided: while nobody has decided.
            ProtocolError: "denied", or "too_many" undecided requests.
        """
        if policy.approval == "never" or policy.simulation_seed is not None:
            return
        own = self._path(plan)
        found = self._read(own)
        if found is not None and found.decision == "approved":
            return
        if found is not None and found.decision == "denied":
            raise ProtocolError(
                "denied", f"{found.by or 'a person'} has denied run {plan.run!r}: {found.why}"
            )
        terms = plan.terms_digest().hex()
        if policy.approval == "first" and any(
            each.terms == terms and each.decision == "approved" for each in self.all()
        ):
            return
        if found is None:
            if sum(each.decision == "pending" for each in self.all()) >= MOST_PENDING:
                raise ProtocolError("too_many", f"{MOST_PENDING} requests wait for a decision already")
            self._write(own, Request(
                run=plan.run, plan=plan.model_dump_json(), digest=plan.digest().hex(), terms=terms, asked=self.clock()
            ))  # fmt: skip
        text = f"run {plan.run!r} waits for a person: fedblocks agent pending {self.home}"
        raise Undecided(text, told=found is not None)

    def all(self) -> list[Request]:
        """All requests, the oldest first; files that are none are passed over."""
        found = (self._read(path) for path in (self.home / REQUESTS).glob("*.json"))
        return sorted((each for each in found if each is not None), key=lambda each: each.asked)

    def decide(self, run: str, decision: Literal["approved", "denied"], *, by: str, why: str = "") -> Request:
        """Decide about a run by its name, or by the first digits of its digest; a later decision replaces an earlier.

        Raises: InputError where no request, or more than one, is meant.
        """
        named = [
            each for each in self.all() if each.run == run or (len(run) >= 8 and each.digest.startswith(run))
        ]
        if not named:
            names = ", ".join(each.run for each in self.all() if each.decision == "pending") or "none waits"
            raise InputError("RUN", run, f"no such request; those that wait: {names}")
        if len(named) > 1:
            digests = ", ".join(each.digest[:12] for each in named)
            raise InputError("RUN", run, f"several plans have this name; give the digest of one: {digests}")
        decided = named[0].model_copy(
            update={"decision": decision, "by": by, "why": why, "decided": self.clock()}
        )
        self._write(self._path(decided.offered), decided)
        return decided

    def _path(self, plan: Plan) -> Path:
        return self.home / REQUESTS / f"{plan.digest().hex()}.json"

    def _read(self, path: Path) -> Request | None:
        try:
            found = Request.model_validate_json(path.read_bytes())
            return found if found.offered.digest().hex() == found.digest == path.stem else None
        except (OSError, ValidationError, InputError):
            return None

    def _write(self, path: Path, request: Request) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        private_file.write(path, request.model_dump_json(indent=1).encode())
