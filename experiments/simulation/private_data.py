"""Whose private examples are whose: dealt out of one source, named by a column, or each company's own file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ...blocks.examples import Examples, Groups
from ...client.data import load_examples
from ...client.data.findings import Findings
from ...client.data.group_keys import records_beside_groups
from ...client.data.images.class_labels import check_same
from ...client.data.tables.load import load_by_company
from ...errors import InputError
from ...settings import DataSource, SimulationSettings
from ...settings.contract import TableContract
from .partition import SMALLEST_PART, deal

Parts = dict[str, npt.NDArray[np.int64]]


def read_private(settings: SimulationSettings, findings: dict[str, Findings]) -> tuple[Examples, Parts]:
    """All private examples, and by each company's name which of them are its own.

    `findings` has those of the public data, and gets those of every private source. Raises: InputError naming the
    source, where a company has too few examples, its classes are not the public ones, or it does not say the groups
    that are the unit of privacy.
    """
    private, parts = _read_private(settings, findings)
    wanted, there = settings.training.group, None if private.groups is None else private.groups.column
    if wanted is not None and there != wanted:
        found = "name no groups" if there is None else f"name groups by column {there!r}"
        rule = f"the private data {found}; say group = {wanted!r} in their contract"
        raise InputError("training.group", wanted, rule)
    if wanted is None and private.groups is not None:
        for name, part in parts.items():
            _note_persons(findings.get(name, findings.get("private")), private[part])
    return private, parts


def _note_persons(found: Findings | None, own: Examples) -> None:
    if found is not None and own.groups is not None:
        found.note(records_beside_groups(own.groups))


def _read_private(settings: SimulationSettings, findings: dict[str, Findings]) -> tuple[Examples, Parts]:
    source = settings.data.private
    own = source.sources or (
        isinstance(source.contract, TableContract) and source.contract.company is not None
    )
    if own and settings.companies.examples is not None:
        rule = "each company has its own data already; leave it out"
        raise InputError("companies.examples", settings.companies.examples, rule)
    if source.sources:
        return _own_sources(settings, findings)
    field, found = "data.private.source", Findings(source.source)
    findings["private"] = found
    if isinstance(source.contract, TableContract) and source.contract.company is not None:
        return _by_column(settings, source.contract, found)
    private = load_examples(field, source, settings.model, settings.data.match_contrast, found)
    check_same(findings["public"], found, field)
    parts = deal(private, settings.model, settings.companies, settings.seed)
    return private, {f"company-{i}": part for i, part in enumerate(parts)}


def _own_sources(settings: SimulationSettings, findings: dict[str, Findings]) -> tuple[Examples, Parts]:
    private = settings.data.private
    shared = private.model_dump(exclude={"sources", "source"})
    every: list[Examples] = []
    parts: Parts = {}
    at = 0
    for name, path in sorted(private.sources.items()):
        field, found = f"data.private.sources.{name}", Findings(path)
        source = DataSource.model_validate(shared | {"source": path})
        own = load_examples(field, source, settings.model, settings.data.match_contrast, found)
        for other in findings.values():
            check_same(other, found, field)
        findings[name] = found
        parts[name] = np.arange(at, at + len(own), dtype=np.int64)
        _refuse_few(field, path, len(own))
        every.append(own)
        at += len(own)
    inputs, targets = (torch.cat([getattr(own, side) for own in every]) for side in ("inputs", "targets"))
    keys = [own.groups for own in every if own.groups is not None]  # one contract: all have them, or none
    groups = Groups(keys[0].column, torch.cat([each.keys for each in keys])) if keys else None
    return Examples(inputs, targets, groups), parts


def _by_column(
    settings: SimulationSettings, contract: TableContract, found: Findings
) -> tuple[Examples, Parts]:
    field, source = "data.private.source", settings.data.private.source
    private, rows, names = load_by_company(field, source, contract, found)
    count = settings.companies.count
    if len(names) != count:
        rule = f"column {contract.company!r} names {len(names)} companies; set companies.count={len(names)}"
        raise InputError("companies.count", count, rule)
    for name, own in zip(names, rows, strict=True):
        _refuse_few(f"{field}, company {name}", source, len(own))
    found.fact("companies", ", ".join(f"{name} {len(own):,}" for name, own in zip(names, rows, strict=True)))
    # Names of a column are the company's own words, and no names of folders.
    return private.check(field, settings.model.kind), {f"company-{i}": own for i, own in enumerate(rows)}


def _refuse_few(field: str, source: str, count: int) -> None:
    if count < SMALLEST_PART:
        rule = f"{count} examples, expected at least {SMALLEST_PART}; join it with another company's source"
        raise InputError(field, source, rule)
