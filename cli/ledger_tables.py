"""Companies' ledgers found, described, verified and exported, without touching them."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any, TextIO

from ..client.replay_guard import STEPS_FILE, Steps
from ..errors import InputError, LedgerError
from ..privacy.accounting import Guarantee, finite
from ..privacy.ledger_file import FIELDS, LedgerCopy, LedgerRow, check_seen, read_ledger
from ..privacy.verification import verify_rows
from ..protocol import private_file

_STARTS = "=+-@"


def find_ledgers(path: Path, company: str | None) -> list[Path]:
    """The ledgers at `path`: the file itself, or those of a company's home or of a run folder."""
    if path.is_dir():
        found = sorted([*path.glob("ledger.sqlite"), *path.glob("companies/*/ledger.sqlite")])
        if not found:
            raise InputError("ledger", str(path), "no ledger here, nor in companies/")
    else:
        found = [path]
    if company is None:
        return found
    chosen = [each for each in found if _name(each) == company]
    if not chosen:
        raise InputError("--company", company, f"no ledger of this company in {path}")
    return chosen


def _name(path: Path) -> str:
    """A damaged ledger cannot say whose it is; then its folder does."""
    try:
        return read_ledger(path).header.company
    except LedgerError:
        return path.parent.name


def read_own(path: Path) -> LedgerCopy:
    """The ledger at `path`; LedgerError, too, if the company's steps beside it have seen it further on."""
    steps = Steps(path.with_name(STEPS_FILE))
    seen = steps.seen() if steps.path.exists() else None
    copy = read_ledger(path)
    if seen is not None:
        check_seen(copy, *seen)
    return copy


def plain_guarantee(found: Guarantee) -> dict[str, Any]:
    """A guarantee as plain values; an epsilon is null where no finite one is known."""
    epsilons = ("epsilon", "epsilon_against_company")
    return vars(found) | {name: finite(getattr(found, name)) for name in epsilons}


def described(copy: LedgerCopy) -> dict[str, Any]:
    """The ledger as plain values, row by row."""
    return {
        "path": str(copy.path),
        "company": copy.header.company,
        **plain_guarantee(copy.spent),
        "head": copy.head,
        "rows": [_plain(row) for row in copy.rows],
    }


def verified(path: Path) -> dict[str, Any]:
    """Whether a ledger holds and what was compared, or what is wrong."""
    try:
        copy = read_own(path)
        found = verify_rows(path, copy.header, copy.rows)
    except LedgerError as error:
        return {"path": str(path), "ok": False, "says": str(error)}
    return {
        "path": str(path),
        "ok": True,
        "says": str(found),
        "company": copy.header.company,
        "rows": found.rows,
        "accountant": found.accountant,
        "composition": found.composition,
        "head": copy.head,
        "independent": [vars(check) | {"epsilon": finite(check.epsilon)} for check in found.checks],
    }


def export_rows(paths: list[Path], to: Path) -> int:
    """Write all rows to the new file `to` (.jsonl or .csv) and return their number."""
    if to.suffix not in (".jsonl", ".csv"):
        raise InputError("to", str(to), "must end in .jsonl or .csv")
    rows = [row for path in paths for row in read_own(path).rows]
    try:
        with open(to, "x", encoding="utf-8", newline="", opener=private_file.opener) as file:
            (_write_csv if to.suffix == ".csv" else _write_lines)(file, rows)
    except FileExistsError:
        raise InputError("to", str(to), "exists already; give a new file") from None
    except OSError as error:
        raise InputError("to", str(to), f"cannot be written ({error.strerror})") from None
    return len(rows)


def _plain(row: LedgerRow) -> dict[str, Any]:
    epsilons = {"epsilon_before": finite(row.epsilon_before), "epsilon_after": finite(row.epsilon_after)}
    return vars(row) | {"event": json.loads(row.event.to_json())} | epsilons


def _write_lines(file: TextIO, rows: list[LedgerRow]) -> None:
    file.writelines(json.dumps(_plain(row)) + "\n" for row in rows)


def _write_csv(file: TextIO, rows: list[LedgerRow]) -> None:
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    for row in rows:
        values = vars(row) | {"event": row.event.to_json()}
        writer.writerow({name: harmless(value) for name, value in values.items()})


def harmless(value: object) -> object:
    r"""Text in which no spreadsheet finds a formula: names come from the coordinator.

    A formula begins with = + - or @, in any width, where a cell begins; and a cell begins wherever the program that
    opens the file splits a line, which may be at ; or | or a space and inside of quotes. So such a character is
    escaped unless a letter or digit stands before it. What is escaped is written as in JSON, `\u003d`, and so is
    every backslash: `json.loads` of a cell between quotes, its own quotes escaped, gives the text back.
    """
    if not isinstance(value, str):
        return value
    pairs = zip(" " + value, value, strict=False)
    return "".join(_escaped(c) if _risky(before, c) else c for before, c in pairs)


def _risky(before: str, c: str) -> bool:
    if c == "\\" or not c.isprintable():
        return True
    starts = (
        unicodedata.normalize("NFKC", c)[:1] in {*_STARTS} or unicodedata.category(c) == "Pd" or c == "\u2212"
    )
    return starts and not before.isalnum()


def _escaped(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
