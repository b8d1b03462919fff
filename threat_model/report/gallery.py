"""`audit_images.npz` as the report shows it: originals above what the attacks rebuilt."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from markupsafe import Markup

from ...client.data.text.tokenizer import Tokenizer
from ...errors import InputError, RunError
from ...server.run_folder import RunFolder
from ..metrics import psnr
from .images import picture, plot
from .membership import Array, Curve, curves

Decode = Callable[[int], str]
# In the order of the rows.
_TEXT_LABELS = {
    "original": "Original",
    "control": "Values read off without noise (control)",
    "released": "Values read off from the release as it is",
    "prior": "Without the release",
}
_HIDDEN = "·"  # a token whose value was not read off
_LABELS = {
    "original": "Original",
    "control": "Rebuilt with the noise taken away (control)",
    "released": "Rebuilt from the release as it is",
    "prior": "Without the release",
}


@dataclass(frozen=True)
class Picture:
    drawing: Markup
    psnr: float | None


@dataclass(frozen=True)
class Row:
    label: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """What one attack rebuilt of one view of one block."""

    attack: str
    view: str
    block: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.attack}, {self.view}, {self.block.replace('-', ' ')}"


@dataclass(frozen=True)
class Stored:
    """What an audit has kept for the eye."""

    galleries: tuple[Gallery, ...] = ()
    curves: tuple[Curve, ...] = ()


def read_stored(run: RunFolder) -> Stored:
    """Nothing without the file. Raises: RunError if it is damaged."""
    path = run.path / "audit_images.npz"
    if not path.is_file():
        return Stored()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Stored(_galleries(arrays, _decoder(run)), curves(arrays))
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        MemoryError,
        NotImplementedError,
        BadZipFile,
        zlib.error,
    ):
        raise RunError(f"{path}: damaged; audit the run again, or remove the file") from None


def _decoder(run: RunFolder) -> Decode:
    """Of one token; its number where the run's tokenizer is not there."""
    name = getattr(run.plan().model, "tokenizer", None)
    if name is None:
        return str
    try:
        tokenizer = Tokenizer.of("model.tokenizer", name)
    except InputError:
        return lambda token: f"{token} "
    return lambda token: tokenizer.decode(np.array([token], np.int64)).replace("\n", "↵")


def _galleries(arrays: dict[str, Array], decode: Decode) -> tuple[Gallery, ...]:
    """Raises: KeyError or ValueError where the arrays are not what an audit writes."""
    exhibits: dict[tuple[str, str, str, str], dict[str, Array]] = {}
    for name, array in arrays.items():
        attack, view, block, what, condition = name.split("/")
        if what == "scores":
            continue
        kinds = {"image": "f", "series": "f", "text": "i"}
        if condition not in _LABELS or array.dtype.kind != kinds.get(what):
            raise ValueError(name)
        exhibits.setdefault((attack, view, block, what), {})[condition] = array
    return tuple(
        Gallery(attack, view, block, _rows(what, exhibit, decode))
        for (attack, view, block, what), exhibit in sorted(exhibits.items())
    )


def _rows(what: str, exhibit: dict[str, Array], decode: Decode) -> tuple[Row, ...]:
    originals = exhibit["original"]
    if what == "text":
        return _text_rows(exhibit, decode)
    if originals.ndim != (4 if what == "image" else 3):
        raise ValueError(what)
    rows = []
    for condition, label in _LABELS.items():
        if condition not in exhibit:
            continue
        found = exhibit[condition]
        if found.shape != originals.shape:
            raise ValueError(condition)
        shown = None if condition == "original" or what != "image" else originals
        rows.append(Row(label, _pictures(what, label.lower(), found, originals, shown)))
    return tuple(rows)


def _text_rows(exhibit: dict[str, Array], decode: Decode) -> tuple[Row, ...]:
    originals = exhibit["original"]
    if originals.ndim != 2 or any(tokens.shape != originals.shape for tokens in exhibit.values()):
        raise ValueError("text")
    rows = []
    for condition, label in _TEXT_LABELS.items():
        texts = exhibit.get(condition, originals[:0])
        read = [
            "".join(_HIDDEN if token < 0 else decode(int(token)) for token in text) for text in texts
        ]  # fmt: skip
        drawn = tuple(Picture(Markup('<span class="read">{}</span>').format(text), None) for text in read)
        if drawn:
            rows.append(Row(label, drawn))
    return tuple(rows)


def _pictures(
    what: str, label: str, found: Array, originals: Array, scored: Array | None
) -> tuple[Picture, ...]:
    scores: list[float | None] = [None] * len(found)
    if scored is not None:
        scores = list(psnr(found.astype(np.float64), scored.astype(np.float64)).tolist())
    drawn = []
    for i, (each, score) in enumerate(zip(found, scores, strict=True), start=1):
        text = f"target {i}, {label}" + ("" if score is None else f", {score:.1f} dB")
        limits = (float(originals[i - 1].min()), float(originals[i - 1].max()))
        drawn.append(Picture(picture(each, text) if what == "image" else plot(each, limits, text), score))
    return tuple(drawn)
