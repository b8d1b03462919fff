"""Reading a company's own data into its home: data.npz, as training reads it, and what was found, for people.

HOME/
    data.npz       the examples to train on (see `blocks.examples`), mode 600
    held_out.npz   those to judge models on, if any are held out (see `held_out`)
    data.json      where they are from, how many there are of what, what was left out and why, and their fingerprint

The fingerprint is a SHA-256 digest of the examples themselves, whatever the files around them: the same examples,
read again, have the same one. A run is joined with one (see `Company.ready`).
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..blocks.examples import Examples
from ..blocks.families import ModelSettings, family
from ..errors import InputError
from ..protocol import private_file
from ..settings import DataSource
from ..settings.contract import TableContract
from .company import Company
from .data import load_examples
from .data.findings import Findings
from .data.memory import within_memory
from .data.tables.database import check_url, is_database
from .held_out import HELD_OUT_FILE, MOST_SHARE, fingerprint, keep_key, own_key, split
from .policy import load_policy
from .policy_file import POLICY_FILE, declare_data, know_pretrained, refuse_other_data
from .replay_guard import STEPS_FILE

DATA_FILE, FOUND_FILE = "data.npz", "data.json"


@dataclass(frozen=True)
class Imported:
    """What an import has written: `examples` to train on, and `held_out` ones; `declared`: whether policy.toml got
    its [data] from it."""

    examples: int
    fingerprint: str
    findings: Findings
    declared: bool
    held_out: int = 0

    def to_json(self) -> dict[str, Any]:
        counts = {"examples": self.examples, "held_out": self.held_out, "fingerprint": self.fingerprint}
        return counts | self.findings.to_json()


def table_model(contract: TableContract) -> ModelSettings:
    """The smallest settings of a model that reads such rows: a contract says all that matters of it."""
    classes = 0 if contract.labels is None else len(contract.labels)
    width = {"hidden_size": max(16, classes), "heads": 1}
    return family("tabular").settings.model_validate(contract.model_fields_told() | width)


def import_data(
    home: Path,
    source: DataSource,
    model: ModelSettings,
    match_contrast: bool,
    *,
    replace: bool = False,
    held_out: float = 0.0,
) -> Imported:
    """Read `source` for `model` into `home`, and declare the data in policy.toml if that does not yet.

    Nothing is written unless all of it can be used. The examples are scaled by the contract alone: no statistic of
    them is taken, so no example changes how another one is read. `held_out`: about that share is kept for judging
    models, chosen as `held_out` has it.

    Raises: InputError naming the source and what is wrong with it, or that there are data already.
    """
    if not 0 <= held_out <= MOST_SHARE:
        raise InputError("--held-out", held_out, f"expected 0 to {MOST_SHARE:g}")
    if os.path.lexists(home / DATA_FILE) and not replace:
        rule = "is there already; --replace puts the new data in its place, and ends runs that joined with the old"
        raise InputError("data", str(home / DATA_FILE), rule)
    refuse_other_data(home, model.kind)
    know_pretrained(home)
    if is_database(source.source):
        check_url("SOURCE", source.source)
    _check_model(source, model)
    findings = Findings(source.source)
    with within_memory("SOURCE", source.source):
        examples = load_examples("SOURCE", source, model, match_contrast, findings)
    kept_out: Examples | None = None
    key = own_key(home)
    if held_out:
        examples, kept_out = split(examples, held_out, key)
        if not len(examples):
            raise InputError("--held-out", held_out, "leaves no example to train on; hold out fewer")
    told_by = fingerprint(examples, kept_out).hex()
    # In this order an import that is interrupted never leaves an example on both sides.
    (home / HELD_OUT_FILE).unlink(missing_ok=True)
    examples.save(home / DATA_FILE)
    if kept_out is not None:
        keep_key(home, key)
        kept_out.save(home / HELD_OUT_FILE)
    declared = declare_data(home, model.kind)
    found = Imported(len(examples), told_by, findings, declared, 0 if kept_out is None else len(kept_out))
    told = {"read": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")} | found.to_json()
    private_file.write(home / FOUND_FILE, json.dumps(told, indent=2).encode())
    if (home / STEPS_FILE).exists():  # else the record has not begun
        decisions = Company(home, load_policy(home / POLICY_FILE)).decisions
        decisions.write("data", digest=told_by, examples=found.examples)
    return found


def _check_model(source: DataSource, model: ModelSettings) -> None:
    """What a contract settles of the model must be so; shapes alone would not say which column is one too many."""
    told = {} if source.contract is None else source.contract.model_fields_told()
    for name, value in told.items():
        wanted = getattr(model, name, None)
        same = list(wanted) == value if isinstance(value, list) and wanted is not None else wanted == value
        if not same and not (wanted is None and value == "none"):
            raise InputError(
                f"model.{name}", wanted, f"the contract says {value}: use the coordinator's contract"
            )
