"""`audit.json`: an audit's results, its gate and its verdict, as data with a published schema."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import RunError
from ..server.run_folder import RunFolder
from .gate import Gate
from .results import FAILED_CONTROL, Result

FILE = "audit.json"
Ending = Literal["passed", "failed", "inconclusive"]
EXIT_CODES: dict[Ending, int] = {"passed": 0, "failed": 3, "inconclusive": 4}


class Verdict(BaseModel):
    """How an audit ended: `failures` and `inconclusive` name the results, by key, and say why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ending: Ending
    failures: dict[str, list[str]]
    inconclusive: dict[str, str]

    @classmethod
    def of(cls, results: tuple[Result, ...], gate: Gate) -> Verdict:
        """A failure outweighs what is inconclusive; an audit in which nothing was attacked says nothing.

        Who is a member is one question. A test of it whose control failed leaves nothing open where another test of
        the same view answers it.
        """
        failures = {result.key: why for result in results for why in [gate.failures(result)] if why}
        answered = {
            each.question for each in results
            if each.statement == "membership" and each.outcome in ("found", "not found") and each.control
        }  # fmt: skip
        open_ = {
            result.key: result.reason for result in results
            if result.outcome == "inconclusive" and result.protected
            and not (result.reason.startswith(FAILED_CONTROL) and result.question in answered)
        }  # fmt: skip
        for limit in gate.unused(results):
            words = ", ".join(f"{k} {v}" for k, v in limit.model_dump(exclude={"of", "most"}).items() if v)
            open_[f"limit: {words or 'all'}"] = "no result of this audit is of that kind and has that figure"
        if not any(r.protected and r.outcome != "not applicable" for r in results):
            open_["audit"] = "no attack on a protected view applies"
        ending: Ending = "passed"
        if open_ and gate.inconclusive == "fails":
            ending = "inconclusive"
        if failures:
            ending = "failed"
        return cls(ending=ending, failures=failures, inconclusive=open_)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.ending]


class Audit(BaseModel):
    """One audit of one run at one round. `plan` is the digest of what was audited, `blocks` and `adversaries` what
    was asked for, `minutes` the budget, `seconds` what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    version: str
    run: str
    plan: str = Field(pattern=r"^[0-9a-f]{64}$")
    round: int = Field(ge=0)
    blocks: tuple[int, ...]
    adversaries: tuple[str, ...]
    seed: int
    minutes: float = Field(gt=0)
    seconds: float = Field(ge=0)
    gate: Gate
    results: tuple[Result, ...]
    verdict: Verdict

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        twice = [key for key, n in Counter(result.key for result in self.results).items() if n > 1]
        if twice:
            raise ValueError(f"two results of one key: {twice[0]}")
        if self.verdict != Verdict.of(self.results, self.gate):
            raise ValueError("a verdict that its own results deny")
        return self

    def write(self, run: RunFolder) -> None:
        run.write_json(FILE, self.model_dump(mode="json"))


def read_audit_file(run: RunFolder) -> Audit | None:
    """None if the run has not been audited. Raises: RunError for anything else than an audit of this run."""
    raw = run.read_json(FILE)
    if raw is None:
        return None
    try:
        # As JSON: there the strict mode takes lists for tuples.
        found = Audit.model_validate_json(json.dumps(raw))
    except ValidationError:
        rule = f"{FILE} is of another version of fedblocks or was changed; audit the run again, or remove the file"
        raise RunError(f"{run.path}: {rule}") from None
    if found.plan != run.plan().digest().hex():
        raise RunError(
            f"{run.path}: {FILE} is of a run of another plan; audit this one again, or remove the file"
        )
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of `audit.json`."""
    return Audit.model_json_schema(mode="serialization") | {"title": "fedblocks audit.json"}
