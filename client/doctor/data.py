"""The company's data: there, whole, of the declared kind, and those that were imported."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator

import numpy as np

from ...blocks.examples import Examples
from ...errors import ProtocolError
from ..company import Company
from ..held_out import HELD_OUT_FILE, fingerprint
from ..importing import DATA_FILE, FOUND_FILE
from ..readiness import readable_data, readable_held_out
from .findings import Findings

FEW = 100


def check_data(company: Company, findings: Findings) -> Examples | None:
    """The examples, if they can be trained on."""
    path, home = company.home / DATA_FILE, shlex.quote(str(company.home))
    try:
        data = readable_data(company)
        readable_held_out(company)
    except ProtocolError as error:
        replace = " --replace" if path.exists() else ""
        mend = f"read your data: fedblocks company import SOURCE {home} --contract contract.toml{replace}"
        findings.error("bad_data" if path.exists() else "no_data", path, str(error), mend)
        return None
    out = company.held_out()
    whole = fingerprint(data, out).hex()
    apart = f", {len(out):,} held out" if out is not None else ""
    if data.groups is not None:
        apart += f", {len(data.groups):,} groups by column {data.groups.column!r}"
    findings.note("data", path, f"{len(data):,} examples{apart}, fingerprint {whole}")
    _as_imported(company, whole, findings)
    if out is not None and out.groups is not None and (parted := _groups_in_both(data, out)):
        what = f"{parted:,} groups have records on both sides, so what is held out says little of a model"
        findings.error(
            "held_out", company.home / HELD_OUT_FILE, what, "import the data again, with --replace"
        )
    # What two groups have alike is on the side of each.
    if out is not None and out.groups is None and (twice := _in_both(data, out)):
        what = (
            f"{twice:,} of the examples held out are trained on too, so what they say of a model is worthless"
        )
        findings.error(
            "held_out", company.home / HELD_OUT_FILE, what, "import the data again, with --replace"
        )
    if len(data) < FEW:
        what = f"{len(data)} examples are so few that hardly any noise hides one of them"
        findings.warn("few_examples", path, what, "take part with more, or expect little of the model")
    delta = company.policy.delta
    if len(data) and delta > 1 / len(data):
        what = f"delta={delta:g} is above 1 / {len(data):,} examples"
        findings.warn("delta", "policy.toml", what, "choose a smaller one before the ledger is created")
    return data


def _in_both(data: Examples, out: Examples) -> int:
    """How many held-out examples are among those trained on."""
    trained = set(_values(data))
    return sum(values in trained for values in _values(out))


def _groups_in_both(data: Examples, out: Examples) -> int:
    """How many held-out groups have records among those trained on."""
    trained, kept = (
        set() if each.groups is None else set(map(bytes, each.groups.keys.numpy())) for each in (data, out)
    )
    return len(trained & kept)


def _values(data: Examples) -> Iterator[bytes]:
    """A digest of each example."""
    for inputs, targets in zip(data.inputs.numpy(), data.targets.numpy(), strict=True):
        yield hashlib.sha256(inputs.tobytes() + b"|" + targets.tobytes()).digest()


def _as_imported(company: Company, fingerprint: str, findings: Findings) -> None:
    path = company.home / FOUND_FILE
    try:
        told = json.loads(path.read_text("utf-8"))
        same = told["fingerprint"] == fingerprint
    except FileNotFoundError:
        return  # written by hand
    except (OSError, ValueError, KeyError, TypeError):
        findings.warn("other_data", path, "cannot be read", "import the data again, with --replace")
        return
    if not same:
        what = "tells of other examples than lie there, which were changed or replaced since the import"
        findings.warn("other_data", path, what, "import the data again, with --replace, unless that was you")


def classes_missing(data: Examples, classes: int) -> list[int]:
    """Classes of the targets that no example has."""
    seen = np.unique(data.targets.numpy())
    return [label for label in range(classes) if label not in seen]
