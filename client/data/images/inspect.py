"""Looking at images before they are used: classes, sizes, modes, broken files and copies, and a contract drafted.

Large folders are looked at for a few seconds; what was looked at is said.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import InputError
from ....settings.contract import ImageContract
from ..draft import Inspection, contract_text
from ..findings import Findings, counted
from ..tables.database import is_database
from ..tables.frames import is_table
from ..tables.inspect import how_it_is_written
from .arrays import arrays_of
from .class_labels import clean, in_order
from .file_tables import read_files, read_pixels
from .folders import File, classes_of, listing
from .load import built_in_or_set, is_tree
from .pictures import Unfit, Unreadable, changes, look, picture, reading
from .table_draft import drafted_table
from .tally import MOST_NAMED, Tally, Target

HEADERS, PIXELS, COPIES = 1.6, 1.6, 0.8  # seconds at most, each
_MOST_SIDE = 32  # of the example that is shown

Clock = Callable[[], float]


def inspect_images(source: str, clock: Clock = time.perf_counter) -> Inspection:
    """What is in a source of images, and a contract for it. Raises: InputError where it holds none."""
    findings, path = Findings(source), Path(source)
    if is_tree(path):
        with listing("source", path) as found:
            classes = classes_of("source", path, found, findings)
            findings.classes.update({name: i for i, name in enumerate(classes)})
            return _files(classes, {}, findings, clock)
    if is_database(source) or (path.is_file() and is_table(path)):
        return _table(source, findings, clock)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _arrays(*arrays_of("source", path), findings)
    return _arrays(*built_in_or_set("source", source), findings)


def _table(source: str, findings: Findings, clock: Clock) -> Inspection:
    written = how_it_is_written(source, None, findings)
    raw = written.model_dump(exclude_defaults=True) | drafted_table(source, written, findings)
    if "path" not in raw and "image" not in raw:
        raw |= {"kind": "images"}
        channels = int(raw.pop("channels"))
        contract = ImageContract.model_validate(raw)
        images, labels = read_pixels("source", source, contract, channels, findings)
        return _arrays(images, labels, findings, raw)
    contract = ImageContract.model_validate(raw | {"broken": "skip"})
    classes: dict[str, list[File]] = defaultdict(list)
    names = contract.labels
    for file, label in read_files("source", source, contract, findings):
        classes[str(label) if names is None else names[label]].append(file)
    return _files({name: classes[name] for name in in_order(classes)}, raw, findings, clock)


@dataclass
class _Seen:
    """What the headers of the files told."""

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    by_length: dict[int, list[tuple[str, File]]] = field(default_factory=lambda: defaultdict(list))


def _files(
    classes: dict[str, list[File]], raw: dict[str, Any], findings: Findings, clock: Clock
) -> Inspection:
    files = [(name, file) for name, inside in classes.items() for file in inside]
    findings.fact("images", f"{len(files):,}")
    _fact_of_classes({name: len(inside) for name, inside in classes.items()}, findings)
    order = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    seen = _headers(order, findings, clock)
    if not seen.sizes:
        name, reason = next(iter(seen.broken.items()))
        raise InputError("source", findings.source, f"no image that can be read; {name!r}: {reason}")
    grey = sum(n for mode, n in seen.modes.items() if mode.startswith(("1", "L", "I", "F")))
    channels = 1 if grey * 2 > seen.modes.total() else 3
    if 0 < grey < seen.modes.total():
        findings.note(f"{counted(grey, 'image')} grey, {seen.modes.total() - grey:,} in colour")
    raw = {"kind": "images"} | raw
    if not raw.keys() & {"path", "image"}:
        raw["labels"] = list(classes)
    oblong = sum(n for (w, h), n in seen.sizes.items() if w != h)
    if oblong:
        raw["fit"] = "crop"
        findings.note(
            f"{counted(oblong, 'image')} not square: fit = 'crop' keeps the middle; or 'pad', 'stretch'"
        )
    side = min(_MOST_SIDE, *(min(size) for size in seen.sizes))
    target = Target(size=max(2, side), channels=channels, fit="crop")
    _pixels(order, target, seen, findings, clock)
    if seen.broken:
        raw["broken"] = "skip"
        shown = "; ".join(f"{name!r} {reason}" for name, reason in list(seen.broken.items())[:MOST_NAMED])
        findings.note(
            f"not readable: {counted(len(seen.broken), 'file')} ({shown}); broken = 'skip' leaves them out"
        )
    _copies(seen, findings, clock)
    example = _example(files, {name: i for i, name in enumerate(classes)}, target, seen)
    return Inspection(findings, contract_text(raw, findings), example)


def _within(
    order: list[tuple[str, File]], seconds: float, clock: Clock, what: str, findings: Findings
) -> Iterator[tuple[str, File]]:
    end = clock() + seconds
    for i, entry in enumerate(order):
        if i and clock() > end:
            findings.note(f"{what} of {i:,} of {len(order):,} files were looked at, drawn at random")
            return
        yield entry


def _headers(order: list[tuple[str, File]], findings: Findings, clock: Clock) -> _Seen:
    seen = _Seen()
    for name, file in _within(order, HEADERS, clock, "the headers", findings):
        try:
            with file.open() as stream:
                length = stream.seek(0, 2)
                stream.seek(0)
                with reading(), look(stream) as opened:
                    changed = changes(opened, 0)
                    seen.modes[opened.mode] += 1
                    seen.sizes[opened.size] += 1
        except (Unreadable, OSError) as error:
            seen.broken[file.name] = error.strerror or "" if isinstance(error, OSError) else str(error)
            continue
        seen.changed.update(changed)
        seen.by_length[length].append((name, file))
    if seen.sizes:
        ordered = sorted(seen.sizes, key=lambda size: size[0] * size[1])
        ends = dict.fromkeys((ordered[0], ordered[-1]))
        findings.fact("sizes", " to ".join(f"{w}x{h}" for w, h in ends) + f", {len(ordered):,} different")
        findings.fact("modes", ", ".join(f"{mode} {n:,}" for mode, n in seen.modes.most_common()))
    for text, count in seen.changed.items():
        findings.note(f"{counted(count, 'image')}: {text}")
    return seen


def _pixels(
    order: list[tuple[str, File]], target: Target, seen: _Seen, findings: Findings, clock: Clock
) -> None:
    """Read images whole: only that tells which are broken."""
    blank, unfit = [], {}
    for _, file in _within(order, PIXELS, clock, "the pixels", findings):
        if file.name in seen.broken:
            continue
        try:
            with file.open() as stream:
                pixels = picture(stream, target, Tally())
        except (Unreadable, OSError) as error:
            seen.broken[file.name] = error.strerror or "" if isinstance(error, OSError) else str(error)
        except Unfit as error:
            unfit[file.name] = str(error)
        else:
            if (pixels == pixels[:, :1, :1]).all():
                blank.append(file.name)
    if blank:
        findings.note(f"of one colour all over: {counted(len(blank), 'image')} ({_named(blank)})")
    for name, reason in list(unfit.items())[:MOST_NAMED]:
        findings.note(f"{name!r}: {reason}")


def _copies(seen: _Seen, findings: Findings, clock: Clock) -> None:
    """Files with the same bytes; only files of the same length are compared."""
    alike = [entry for group in seen.by_length.values() if len(group) > 1 for entry in group]
    by_hash: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for name, file in _within(alike, COPIES, clock, "the bytes", findings):
        with file.open() as stream:
            by_hash[hashlib.blake2b(stream.read(), digest_size=16).digest()].append((name, file.name))
    groups = [sorted(group) for group in by_hash.values() if len(group) > 1]
    copies = sum(len(group) - 1 for group in groups)
    if copies:
        findings.note(f"{counted(copies, 'file')} copied from others; each copy counts as an example")
    mixed = [group for group in groups if len({name for name, _ in group}) > 1]
    if mixed:
        shown = " and ".join(repr(name) for _, name in mixed[0][:2])
        findings.note(f"{counted(len(mixed), 'image')} in two classes at once, as {shown}")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


def _fact_of_classes(counts: dict[str, int], findings: Findings) -> None:
    findings.fact("classes", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if len(counts) == 1:
        findings.note("there is one class alone; a classifier needs two or more")
    few, most = min(counts, key=lambda name: counts[name]), max(counts.values())
    if most >= 20 * counts[few]:
        findings.note(f"class {few!r} has {counted(counts[few], 'image')}, the largest class {most:,}")
    if sum(counts.values()) < ImageContract().least_examples:
        findings.note(f"fewer than {ImageContract().least_examples} images, the least that a contract allows")


def _example(
    files: list[tuple[str, File]], labels: dict[str, int], target: Target, seen: _Seen
) -> dict[str, str]:
    for name, file in files:
        if file.name in seen.broken:
            continue
        tally = Tally()
        try:
            with file.open() as stream:
                pixels = picture(stream, target, tally)
        except (Unreadable, Unfit, OSError):
            continue
        (width, height) = next(iter(tally.sizes))
        return {file.name: f"{width}x{height} -> {_of(pixels)}", "label": f"{name} -> {labels[name]}"}
    return {}


def _of(pixels: npt.NDArray[np.floating]) -> str:
    shape = " x ".join(map(str, pixels.shape))
    return f"{shape} numbers from {pixels.min():.3g} to {pixels.max():.3g}, as a model of that size reads it"


def _arrays(
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    findings: Findings,
    raw: dict[str, Any] | None = None,
) -> Inspection:
    """Of a .npz, a built-in set or a table of pixels: all images have one size."""
    if len(images) == 0 or len(images) != len(labels):
        raise InputError("source", findings.source, f"{len(images)} images but {len(labels)} labels")
    raw = {"kind": "images"} | (raw or {})
    findings.fact("images", f"{len(images):,}")
    findings.fact("sizes", " x ".join(map(str, images.shape[1:])))
    low, high = float(images.min()), float(images.max())
    findings.fact("pixels", f"{images.dtype}, {low:g} to {high:g}")
    limit: float = 255 if np.issubdtype(images.dtype, np.integer) else 1
    if limit == 255 and 255 < high < 2**32:
        raw["bits"] = int(high).bit_length() if high < 2**15 else 16 if high < 2**16 else 32
        limit = 2 ** raw["bits"] - 1
        findings.note(
            f"pixels have more than 8 bits; bits = {raw['bits']} is taken from the largest: check it"
        )
    if low < 0 or high > limit or not np.isfinite([low, high]).all():
        findings.note("pixels lie outside 0 to 1, or 0 to 255 of whole numbers: such images are refused")
    if images.shape[-1] != images.shape[-2]:
        raw["fit"] = "crop"
        findings.note("images are not square: fit = 'crop' keeps the middle; or 'pad', 'stretch'")
    names = Counter(clean(str(label)) for label in labels.tolist())
    _fact_of_classes({name: names[name] for name in in_order(names)}, findings)
    if not np.issubdtype(labels.dtype, np.number):
        raw["labels"] = in_order(names)
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    copies = len(flat) - len({row.tobytes() for row in flat})
    if copies:
        findings.note(f"{counted(copies, 'image')} copied from others; each copy counts as an example")
    example = {"image 1": _of(images[0] / np.float64(limit)), "label": str(labels[0])}
    return Inspection(findings, contract_text(raw, findings), example)
