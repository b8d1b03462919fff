"""Which whole number each class has: by folders, by a label column, and the same in public and private data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ....errors import InputError
from ....settings.contract import ImageContract
from ..findings import Findings, some

Labels = npt.NDArray[np.int64]
_WHOLE = re.compile(r"^\d+$")


def clean(name: str) -> str:
    """A name as it is compared and shown: composed characters, and bytes that are no UTF-8 written out."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers by their value, other names as text."""
    listed = list(names)
    whole = all(_WHOLE.match(name) for name in listed)
    return sorted(listed, key=int) if whole else sorted(listed)


def of_folders(
    field: str, source: str, names: list[str], classes: int, contract: ImageContract, findings: Findings
) -> dict[str, int]:
    """The label of each class folder: its place in the contract; else the number that it is called, where all are
    called 0 to `classes` - 1; else its place in sorted order."""
    if contract.labels is not None:
        known = [clean(label) for label in contract.labels]
        for name in names:
            if name not in known:
                rule = f"class folder {name!r} is not one of the contract's labels: {some(known)}"
                raise InputError(field, source, rule)
        absent = [label for label in known if label not in names]
        if absent:
            findings.note(f"no folder for {some(absent)}")
        found = {name: known.index(name) for name in names}
    else:
        if len(names) > classes:
            rule = f"{len(names)} class folders ({some(names)}), model.classes={classes}"
            raise InputError(field, source, rule)
        whole = all(_WHOLE.match(name) and int(name) < classes for name in names)
        found = {name: int(name) if whole else i for i, name in enumerate(in_order(names))}
        if len(set(found.values())) < len(found):
            raise InputError(field, source, f"two class folders name the same number: {some(names)}")
        if len(names) < classes:
            findings.note(f"{len(names)} class folders ({some(in_order(names))}), model.classes={classes}")
    findings.classes.update(found)
    return found


def of_values(
    field: str,
    source: str,
    values: npt.NDArray[np.generic],
    contract: ImageContract,
    findings: Findings,
    place: Callable[[int], str],
) -> Labels:
    """Labels (N,) of a column or array: whole numbers as they are, or places in the contract's labels.

    `place` names where a value stands. A value itself is never shown.
    """
    numbers = np.issubdtype(values.dtype, np.number) and not np.issubdtype(values.dtype, np.complexfloating)
    if contract.labels is None:
        if not numbers:
            rule = 'labels must be whole numbers, or listed in order in a contract: labels = ["cat", "dog"]'
            raise InputError(field, source, rule)
        return _whole(field, source, values, place)
    known = [clean(label) for label in contract.labels]
    findings.classes.update({name: i for i, name in enumerate(known)})
    if numbers and not any(_WHOLE.match(name) for name in known):
        findings.note("labels are numbers, taken for places in the contract's labels, counted from 0")
        found = _whole(field, source, values, place)
        outside = (found < 0) | (found >= len(known))
    else:
        index = {name: i for i, name in enumerate(known)}
        found = np.array([index.get(_text(value), -1) for value in values.tolist()], dtype=np.int64)
        outside = found < 0
    if outside.any():
        rule = f"{place(int(np.argmax(outside)))} has a label that the contract does not list: {some(known)}"
        raise InputError(field, source, rule)
    return found


def _whole(field: str, source: str, values: npt.NDArray[np.generic], place: Callable[[int], str]) -> Labels:
    if not np.issubdtype(values.dtype, np.integer):
        real = values.astype(np.float64)
        wrong = ~np.isfinite(real) | (real != np.floor(real))
        if wrong.any():
            rule = f"labels must be whole numbers; that of {place(int(np.argmax(wrong)))} is not"
            raise InputError(field, source, rule)
    return values.astype(np.int64)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return clean(value.decode("utf-8", "backslashreplace").strip())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return clean(str(value).strip())


def check_same(public: Findings, private: Findings, field: str) -> None:
    """Refuse a class that has one label in public data and another in private data, or a label with two names.

    `field` names the private source. Where one side calls its classes by number alone, that is noted.
    """
    if not private.classes and not public.classes:
        return
    if not private.classes or not public.classes:
        named, other = (private, "public") if private.classes else (public, "private")
        if any(name != str(label) for name, label in named.classes.items()):
            text = (
                f"classes are compared by number: {shown(named.classes)}; {other} data have no names for them"
            )
            private.note(text)
        return
    by_label = {label: name for name, label in public.classes.items()}
    for name, label in private.classes.items():
        theirs = by_label.get(label, name)
        if public.classes.get(name, label) != label or theirs != name:
            how = f"labels = [{', '.join(repr(n) for n in in_order({*public.classes, *private.classes}))}]"
            rule = (
                f"class {name!r} has label {label}, which public data give to {theirs!r}; "
                f"list all classes in order in one contract for both: {how}"
            )
            raise InputError(field, private.source, rule)


def shown(classes: dict[str, int]) -> str:
    return some(f"{name} = {label}" for name, label in sorted(classes.items(), key=lambda pair: pair[1]))
