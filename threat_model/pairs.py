"""What was measured of each pair of adversary and attack: a table for the threat model, from an audit's results.

python -m fedblocks.threat_model.pairs runs/ID     # writes the table in THREAT_MODEL.md again
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from .. import atomic_file
from ..errors import RunError
from ..server.run_folder import RunFolder
from .adversaries import ADVERSARIES
from .attacks import attacks
from .audit_file import read_audit_file
from .results import Result
from .sentences import grouped, sentence

PAGE = Path(__file__).parent / "THREAT_MODEL.md"
MEASURED = Path(__file__).parent / "measured.json"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
_RESULTS = TypeAdapter(list[Result])
HEAD = "| adversary | attack or test | measured |\n|---|---|---|\n"


def pairs(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """(adversary, attack, what was measured) of every pair; what gives most away stands for the rest."""
    found = []
    for name in ADVERSARIES:
        for attack in attacks():
            if name not in attack.adversaries:
                continue
            own = [r for r in results if r.attack == attack.name and r.adversary == name]
            applied = [r for r in own if r.outcome != "not applicable"]
            # What does not apply is said once, for whichever adversary is named first.
            refused = [r for r in results if r.attack == attack.name and r.outcome == "not applicable"]
            if applied:
                text = sentence(grouped(applied)[0].worst)
            elif refused:
                text = sentence(refused[0])
            else:
                text = "not measured"
            found.append((name, attack.name, text))
    return found


def markdown(results: Sequence[Result]) -> str:
    """The table as it stands in THREAT_MODEL.md."""
    rows = "".join(f"| {adversary} | {attack} | {text} |\n" for adversary, attack, text in pairs(results))
    return HEAD + rows


def strongest(results: Sequence[Result]) -> list[Result]:
    """One result of each pair, which alone makes the same table."""
    kept = []
    for name in ADVERSARIES:
        for attack in attacks():
            own = [r for r in results if r.attack == attack.name and r.adversary == name]
            applied = [r for r in own if r.outcome != "not applicable"]
            if applied:
                kept.append(grouped(applied)[0].worst)
            elif own:
                kept.append(own[0])
    return kept


def write_page(run: RunFolder) -> None:
    """Put what this run's audit has measured into THREAT_MODEL.md and beside it.

    Raises: RunError where the run has not been audited.
    """
    audit = read_audit_file(run)
    if audit is None:
        raise RunError(f"{run.path}: not audited; run fedblocks audit")
    kept = strongest(audit.results)
    atomic_file.write(MEASURED, _RESULTS.dump_json(kept, indent=1) + b"\n")
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    atomic_file.write(PAGE, f"{head}{BEGIN}\n{markdown(kept)}{END}{tail}".encode())


def measured() -> list[Result]:
    """What THREAT_MODEL.md's table is made of."""
    return _RESULTS.validate_json(MEASURED.read_bytes())


if __name__ == "__main__":
    write_page(RunFolder.existing(Path(sys.argv[1])))
