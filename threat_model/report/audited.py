"""What the report says about the audit: `audit.json` and `audit_images.npz`, put in order for reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...server.run_folder import RunFolder
from ..audit_file import Audit, read_audit_file
from ..results import Statement
from ..sentences import ORDER, Group, count_words, grouped, sentence
from .gallery import Gallery, Stored, read_stored

_TEXTS: dict[Statement, str] = {
    "reconstruction": """An attacker who knows the model, the plan and the public data tries to rebuild training
        examples from what it sees of a release. Without the release it has its best guess from public data alone;
        only what goes beyond that comes from the release.""",
    "membership": """Was this example among a company's training data? 0.5 is a coin's answer. The ceiling is what the
        noise allows any attack at all.""",
    "property": """Facts about a company's data as a whole. A company as a whole has no epsilon: what is promised
        concerns one example.""",
    "extraction": "Does the model repeat sequences that were planted into a company's data?",
    "certificate": """Lower bounds on epsilon that hold for every mechanism of the claimed trade-off. A bound above
        the claim refutes it; a bound below it proves nothing.""",
    "conformance": """The company's own step, recorded and replayed on a neighbouring data set: does it do what its
        account assumes?""",
    "estimate": "What epsilon would be if the scores followed the stated model: no bound.",
    "prediction": """What the best local attack is expected to reach, computed before anything is released: no bound
        either.""",
}


@dataclass(frozen=True)
class Line:
    """One statistic of one attack on one view."""

    group: Group
    text: str
    alarming: bool

    @property
    def place(self) -> str:
        return self.group.where if self.group.worst.outcome != "not applicable" else ""


@dataclass(frozen=True)
class Part:
    """The results of one kind of statement."""

    statement: Statement
    text: str
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return self.statement.capitalize()

    @property
    def attacked(self) -> list[Line]:
        return [line for line in self.lines if line.group.worst.outcome != "not applicable"]

    @property
    def told(self) -> str:
        """How many statistics there are, by how they ended."""
        n = len(self.attacked)
        ends = Counter(line.group.worst.outcome for line in self.attacked if line.group.worst.protected)
        known = ", ".join(f"{ends[outcome]} {outcome}" for outcome in ORDER if ends[outcome])
        return f"{n} statistic{'' if n == 1 else 's'}" + (f" ({known})" if known else "")

    @property
    def refused(self) -> list[Line]:
        return [line for line in self.lines if line.group.worst.outcome == "not applicable"]


@dataclass(frozen=True)
class Audited:
    audit: Audit
    parts: tuple[Part, ...]
    stored: Stored

    @property
    def galleries(self) -> tuple[Gallery, ...]:
        return self.stored.galleries

    @property
    def ending(self) -> str:
        return self.audit.verdict.ending

    @property
    def counts(self) -> str:
        return count_words(self.audit.results)

    @property
    def groups(self) -> list[Group]:
        return grouped(self.audit.results)

    def failed(self) -> list[tuple[str, str]]:
        """(attack, sentence) of what fails the audit, then what gave away something that was never promised, and
        limits that were passed."""
        failures = self.audit.verdict.failures
        lines = [line for part in self.parts for line in part.lines if line.alarming]
        found = [
            (line.group.worst.attack, line.text)
            for line in lines
            if line.group.worst.given_away or any(r.key in failures for r in line.group.results)
        ]
        over = {
            key: reasons for key, reasons in failures.items() if any("limit" in reason for reason in reasons)
        }
        return [*found, *(("limit", f"{key}: {'; '.join(reasons)}.") for key, reasons in over.items())]


def read_audit(run: RunFolder) -> Audited | None:
    """None if the run has not been audited. Raises: RunError where its files are not as an audit writes them."""
    audit = read_audit_file(run)
    if audit is None:
        return None
    groups = grouped(audit.results)
    open_ = audit.verdict.failures.keys() | audit.verdict.inconclusive.keys()
    parts = []
    for statement, text in _TEXTS.items():
        lines = tuple(
            Line(g, sentence(g.worst), any(r.key in open_ for r in g.results) or g.worst.given_away)
            for g in groups
            if g.worst.statement == statement
        )
        if lines:
            parts.append(Part(statement, " ".join(text.split()), lines))
    return Audited(audit, tuple(parts), read_stored(run))
