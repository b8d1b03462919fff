"""Where a report's numbers come from: digests of files, versions, commands; and whether two sources agree."""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ... import __version__
from ...blocks import digest as digest_of_states
from ...errors import FedblocksError
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from .audited import Audited
from .diagnosed import Diagnosed
from .document import CrossCheck, Digest
from .facts import Facts

_PACKAGES = ("torch", "flwr", "dp-accounting", "opacus", "numpy", "scipy")
_FILES = ("metrics.jsonl", "result.json", "audit.json", "audit_images.npz", "diagnostics.json")


def digests(run: RunFolder, facts: Facts) -> tuple[Digest, ...]:
    """Of everything that this report was made from."""
    found = [Digest(of="plan, as the companies agreed to it", sha256=facts.plan.digest().hex())]
    found += [
        Digest(of=name, sha256=hashlib.sha256((run.path / name).read_bytes()).hexdigest())
        # Of a real run the metrics alone: what else lies in its folder is of a simulation.
        for name in (_FILES[:1] if facts.real else _FILES)
        if (run.path / name).is_file()
    ]
    heads = [(s.company, s.head) for s in facts.spending if s.head]
    if heads:
        text = "".join(f"{company} {head}\n" for company, head in heads)
        of = f"last rows of {len(heads)} ledger{'' if len(heads) == 1 else 's'}"
        found.append(Digest(of=of, sha256=hashlib.sha256(text.encode()).hexdigest()))
    try:
        last = Checkpoint.load(run.checkpoints)
    except (FedblocksError, OSError):
        return tuple(found)
    model = digest_of_states(last.model.shared, *last.model.blocks).hex()
    return (*found, Digest(of=f"model after round {last.round}", sha256=model))


def versions() -> dict[str, str]:
    found = {"fedblocks": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commands(
    run: RunFolder, facts: Facts, diagnosed: Diagnosed | None, audit: Audited | None
) -> tuple[str, ...]:
    """Lines for a shell, paths quoted where it needs that."""
    folder = shlex.quote(facts.folder)
    verify = [f"fedblocks ledger verify {folder}"] if facts.spending else []
    check = [f"fedblocks report {folder}", f"fedblocks report {folder} --check"]
    if facts.real:
        return (*check,)
    reference = " --with-reference" if facts.utility and facts.utility.reference else ""
    controls = " --with-controls" if diagnosed and diagnosed.controlled else ""
    again = f"fedblocks simulate {shlex.quote(facts.folder + '/settings.toml')}{reference}{controls}"
    minutes, seed = (audit.audit.minutes, audit.audit.seed) if audit else (_minutes(facts), 0)
    return (again, f"fedblocks audit {folder} --minutes {minutes:g} --seed {seed}", *verify, *check)


def _minutes(facts: Facts) -> float:
    return facts.simulation.audit.minutes if facts.simulation else 5.0


def cross_checks(run: RunFolder, facts: Facts, audit: Audited | None) -> tuple[CrossCheck, ...]:
    """What stands in two files of the run, compared."""
    result = (run.read_json("result.json") if not facts.real else None) or {}
    rows = run.metrics()
    found: list[CrossCheck] = []
    name = facts.measure.metric.name
    if facts.utility is not None and facts.finished:
        for what, key, point in (
            (f"{name} of the public model", f"{name}_public_model", facts.utility.first),
            (f"{name} after the last round", name, facts.utility.last),
        ):
            if isinstance(result.get(key), int | float):
                found.append(_numbers(what, "metrics.jsonl", point.judged[-1], "result.json", result[key]))
    if isinstance(result.get("rounds_done"), int):
        done = sum(row["round"] > 0 and row["status"] == "done" for row in rows)
        found.append(_numbers("rounds done", "metrics.jsonl", done, "result.json", result["rounds_done"]))
    said = result.get("epsilon")
    if isinstance(said, dict):
        for s in facts.spending:
            if s.company in said and (value := said[s.company]) is not None and s.other_releases == 0:
                found.append(_numbers(f"ε of {s.company}", "ledger", s.spent, "result.json", value))
    found += _charged(facts, rows)
    for s in facts.spending:
        if s.second is not None:
            found.append(
                CrossCheck(
                    what=f"ε of {s.company}, by a second accountant", one=f"ledger: {s.spent:.6g}",
                    other=s.second.wrong or f"{s.second.says}: {_bounds(s.second.lower, s.second.upper)}",
                    agrees=s.second.agrees,
                )
            )  # fmt: skip
    if audit is not None:
        done = rows[-1]["round"] if rows else 0
        found.append(
            _numbers("round that was audited", "audit.json", audit.audit.round, "metrics.jsonl", done)
        )
    return _collapsed(found)


def _charged(facts: Facts, rows: list[dict[str, Any]]) -> list[CrossCheck]:
    """Whatever is in an opened sum must have been charged."""
    if not facts.spending:
        return []
    charged = {s.company: set(s.trained) for s in facts.spending}
    missing = sum(
        row["round"] not in charged.get(name, set())
        for row in rows
        if row["round"] > 0
        for name in row["survivors"]
        if name in charged
    )
    summed = sum(len(row["survivors"]) for row in rows if row["round"] > 0)
    return [
        CrossCheck(
            what="updates in opened sums that a ledger has charged", one=f"metrics.jsonl: {summed:,} updates",
            other=f"ledgers: {summed - missing:,} of them", agrees=missing == 0,
        )
    ]  # fmt: skip


def _numbers(what: str, one: str, first: float, other: str, second: float) -> CrossCheck:
    same = math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
    return CrossCheck(
        what=what, one=f"{one}: {first:.6g}", other=f"{other}: {second:.6g}", agrees=same
    )  # fmt: skip


def _bounds(lower: float | None, upper: float | None) -> str:
    if lower is None and upper is None:
        return "no bound"
    low = "nothing below" if lower is None else f"at least {lower:.4g}"
    high = "nothing above" if upper is None else f"at most {upper:.4g}"
    return f"{low}, {high}"


def _collapsed(found: list[CrossCheck]) -> tuple[CrossCheck, ...]:
    """Companies of which all is the same share a line."""
    kept: dict[tuple[str, str, str, bool], list[str]] = {}
    for each in found:
        head, _, company = each.what.partition(" of ")
        name, comma, tail = company.partition(", ")
        kind = (f"{head} of {{}}{comma}{tail}", each.one, each.other, each.agrees)
        if head != "ε":
            kind = (each.what, each.one, each.other, each.agrees)
        kept.setdefault(kind, []).append(name)
    return tuple(
        CrossCheck(
            what=what.replace("{}", names[0] if len(names) == 1 else f"{len(names)} companies"), one=one, other=other,
            agrees=agrees,
        )
        for (what, one, other, agrees), names in kept.items()
    )  # fmt: skip
