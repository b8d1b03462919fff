"""Requests to take part in a run, and what a person of the company has decided about them.

HOME/requests/*.json, a file a plan and run. Policy says which runs wait for a person: none, the first run of a plan
(whatever its later runs are called), or each. Nothing else of the company is looked at before the decision, so that
an answer tells the coordinator no more than that nobody has decided yet.

HOME/requests/plans/*.json, a file a plan: a decision about every run of it, whatever they are called, also those that
have not asked yet. A decision about a run itself goes before it. Denials hold whatever the policy says.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError, ProtocolError
from ..protocol import private_file
from ..settings import Plan, validated_json
from .policy import Policy

REQUESTS = "requests"
_PLANS = "plans"
# Undecided requests of a home, so that a coordinator that makes up plans does not fill the disk. The one that was
# asked for longest ago gives way: a run that is really wanted asks again every few seconds.
MOST_PENDING = 20


Decided = Literal["approved", "denied"]


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
            ProtocolError: "denied".
        """
        if policy.simulation_seed is not None:
            return
        own, of_plan = self._read(self._path(plan)), self._read(self._plan_path(plan))
        decided = own if own is not None and own.decision != "pending" else of_plan
        if decided is not None and decided.decision == "denied":
            who = decided.by or "a person"
            raise ProtocolError("denied", f"{who} has denied run {plan.run!r}: {decided.why}")
        if policy.approval == "never" or (decided is not None and decided is own):
            return
        terms = plan.terms_digest().hex()
        if policy.approval == "first" and (
            decided is not None
            or any(each.terms == terms and each.decision == "approved" for each in self.all())
        ):
            return
        self._keep(plan)
        text = f"run {plan.run!r} waits for a person: fedblocks agent pending {self.home}"
        raise Undecided(text, told=own is not None)

    def all(self) -> list[Request]:
        """All requests, the oldest first; files that are none are passed over."""
        found = (self._read(path) for path in self._files())
        return sorted((each for each in found if each is not None), key=lambda each: each.asked)

    def named(self, run: str) -> Request:
        """The request for a run by its name, or by the first digits of its digest.

        Raises: InputError where no request, or more than one, is meant.
        """
        named = [
            each for each in self.all() if each.run == run or (len(run) >= 8 and each.digest.startswith(run))
        ]
        if not named:
            names = ", ".join(each.run for each in self.all() if each.decision == "pending") or "none waits"
            raise InputError("RUN", run, f"no such request; those that wait: {names}; or give --plan FILE")
        if len(named) > 1:
            digests = ", ".join(each.digest[:12] for each in named)
            raise InputError("RUN", run, f"several plans have this name; give the digest of one: {digests}")
        return named[0]

    def decide(self, run: str, decision: Decided, *, by: str, why: str = "") -> Request:
        """Decide about a run, `named`; a later decision replaces an earlier one."""
        with self._locked():
            decided = self._decided(self.named(run), decision, by, why)
            self._write(self._path(decided.offered), decided)
        return decided

    def decide_plan(self, plan: Plan, decision: Decided, *, by: str, why: str = "") -> Request:
        """Decide about every run of a plan, whatever they are called: those that have asked, and later ones."""
        with self._locked():
            about = self._decided(self._request(plan), decision, by, why)
            self._write(self._plan_path(plan), about)
            for each in self.all():
                if each.terms == about.terms:
                    self._write(self._path(each.offered), self._decided(each, decision, by, why))
        return about

    def _decided(self, request: Request, decision: Decided, by: str, why: str) -> Request:
        return request.model_copy(
            update={"decision": decision, "by": by, "why": why, "decided": self.clock()}
        )

    def _request(self, plan: Plan) -> Request:
        return Request(
            run=plan.run, plan=plan.model_dump_json(), digest=plan.digest().hex(),
            terms=plan.terms_digest().hex(), asked=self.clock(),
        )  # fmt: skip

    def _keep(self, plan: Plan) -> None:
        """Keep a request, or that it was asked for again just now; the oldest of too many gives way."""
        path = self._path(plan)
        with self._locked():
            if self._read(path) is None:
                self._write(path, self._request(plan))
            os.utime(path)
            waiting = [
                each for each in self._files() if (found := self._read(each)) and found.decision == "pending"
            ]
            waiting.sort(key=lambda each: each.stat().st_mtime_ns)
            for each in waiting[:-MOST_PENDING]:
                each.unlink()

    def _files(self) -> list[Path]:
        return list((self.home / REQUESTS).glob("*.json"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among processes of this home: a decision must not be lost to a request that gives way."""
        folder = self.home / REQUESTS
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, plan: Plan) -> Path:
        return self.home / REQUESTS / f"{plan.digest().hex()}.json"

    def _plan_path(self, plan: Plan) -> Path:
        return self.home / REQUESTS / _PLANS / f"{plan.terms_digest().hex()}.json"

    def _read(self, path: Path) -> Request | None:
        """The request in a file, if it is of the plan by which the file is named."""
        with suppress(OSError, ValidationError, InputError):
            found = Request.model_validate_json(path.read_bytes())
            offered = found.offered
            if (offered.digest().hex(), offered.terms_digest().hex()) == (found.digest, found.terms):
                named = found.terms if path.parent.name == _PLANS else found.digest
                return found if named == path.stem else None
        return None

    def _write(self, path: Path, request: Request) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        private_file.write(path, request.model_dump_json(indent=1).encode())
