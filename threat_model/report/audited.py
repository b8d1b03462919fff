"""What the report says about the audit: `audit.json` and `audit_images.npz`, put in order for reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ...blocks.families import ModelSettings, family
from ...server.run_folder import RunFolder
from ..attack_budget import AttackBudget
from ..metrics import Score, psnr
from ..verdicts import TITLES, Verdict
from .audit_file import Images, read_audit_file, read_images
from .images import picture

METRICS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "label": "label recovered",
    "reidentification": "re-identified",
}
SHARES = ("label", "reidentification")
# condition -> (in a sentence, in a table's head or a narrow drawing, beside the pictures)
_CONDITIONS = {
    "control": ("Control: noise taken away", "control", "Rebuilt with the noise taken away (control)"),
    "released": ("Attack on the noised release", "released", "Rebuilt from the release as it is"),
    "prior": ("Prior only: no update seen", "prior only", "Prior only, no update seen"),
    "random": ("Random public image", "random", "Random"),
}
_UNPROTECTED = ("Attack on the raw gradient", "attack", "Rebuilt from the raw gradient")


@dataclass(frozen=True)
class Row:
    condition: str
    label: str
    short: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class Picture:
    drawing: Markup
    psnr: float | None


@dataclass(frozen=True)
class GalleryRow:
    label: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class View:
    """One place an attacker may look from; `protected` where there is noise that a control takes away."""

    name: str
    letter: str
    title: str
    verdict: Verdict
    detail: str
    protected: bool
    rows: tuple[Row, ...]
    gain: dict[str, Score]
    gallery: tuple[GalleryRow, ...]

    @property
    def metrics(self) -> list[str]:
        return [m for m in METRICS if any(m in row.scores for row in self.rows)]

    @property
    def alarming(self) -> bool:
        """The raw gradient is there to be recovered; a protected view is not."""
        return self.protected and self.verdict.outcome != "not recovered"


@dataclass(frozen=True)
class Audited:
    block: int
    round: int
    attack: str
    budget: str
    exact_psnr: float
    candidates: int
    views: tuple[View, ...]

    @property
    def protected(self) -> list[View]:
        return [view for view in self.views if view.protected]

    @property
    def recovered(self) -> int:
        """How many protected views gave something away."""
        return sum(view.verdict.recovered for view in self.protected)

    @property
    def pictured(self) -> bool:
        return any(view.gallery for view in self.views)

    @property
    def inconclusive(self) -> int:
        """How many protected views the attack is too weak to say anything about."""
        return sum(view.verdict.outcome == "inconclusive" for view in self.protected)

    def sentences(self) -> list[tuple[str, str, bool]]:
        """(topic, sentence, attention) for the findings."""
        found = [
            (f"Audit ({view.letter})", f"{view.title}. {view.verdict.head}{view.detail}", view.alarming)
            for view in self.protected
        ]
        failed = [f"({view.letter})" for view in self.views if not view.verdict.evidence.control_succeeded]
        text = "".join(
            f"From {view.title[:1].lower()}{view.title[1:]} (a view that no run shows), the attack rebuilds "
            f"{view.verdict.evidence.exact} of {view.verdict.evidence.cases} exactly. "
            for view in self.views
            if not view.protected
        )
        if failed:
            text += (
                f"The control failed in view {', '.join(failed)}: there the attack is too weak even without "
                "noise, so that its failure on the release says nothing."
            )
        else:
            text += (
                "The controls succeeded: with the noise taken away the attack rebuilds at least half of the "
                "targets exactly. That it fails with the noise is still no proof that nothing leaks."
            )
        return [*found, ("Audit controls", text, bool(failed))]


def attackable(model: ModelSettings) -> bool:
    """Whether there is an attack on this family at all."""
    return family(model.family).problem is not None


def read_audit(run: RunFolder) -> Audited | None:
    """None if the run has not been audited. Raises: RunError where its files are not as an audit writes them."""
    raw = read_audit_file(run)
    return None if raw is None else _audited(raw, read_images(run))


def _audited(raw: dict[str, Any], images: Images) -> Audited:
    attack, budget = raw["attack"], AttackBudget(**raw["settings"]["budget"])
    return Audited(
        block=raw["block"],
        round=raw["round"],
        attack=attack,
        budget=budget.words(),
        exact_psnr=raw["exact_psnr"],
        candidates=raw["settings"]["candidates"],
        views=tuple(_view(i, view, attack, budget, images) for i, view in enumerate(raw["views"])),
    )


def _view(number: int, raw: dict[str, Any], attack: str, budget: AttackBudget, images: Images) -> View:
    verdict = Verdict.from_json(raw)
    protected = "control" in raw["rows"]
    named = _CONDITIONS if protected else _CONDITIONS | {"released": _UNPROTECTED}
    return View(
        name=raw["name"],
        letter=chr(ord("a") + number),
        title=TITLES[raw["name"]],
        verdict=verdict,
        detail=verdict.detail(attack, budget),
        protected=protected,
        rows=tuple(
            Row(condition, label, short, _scores(raw["rows"][condition]))
            for condition, (label, short, _) in named.items()
            if condition in raw["rows"]
        ),
        gain=_scores(raw["gain"]),
        gallery=_gallery(raw["name"], {c: beside for c, (_, _, beside) in named.items()}, images),
    )


def _scores(raw: dict[str, Any]) -> dict[str, Score]:
    return {metric: Score(**score) for metric, score in raw.items()}


def _gallery(view: str, named: dict[str, str], images: Images) -> tuple[GalleryRow, ...]:
    originals = images.get(f"{view}.original")
    if originals is None:
        return ()
    rows = [GalleryRow("Original", _pictures("original", originals, None))]
    for condition, label in named.items():
        found = images.get(f"{view}.{condition}")
        if found is not None:
            rows.append(GalleryRow(label, _pictures(label.lower(), found, originals)))
    return tuple(rows)


def _pictures(
    label: str, images: npt.NDArray[np.float32], originals: npt.NDArray[np.float32] | None
) -> tuple[Picture, ...]:
    scores: list[float | None] = [None] * len(images)
    if originals is not None:
        scores = list(psnr(images.astype(np.float64), originals.astype(np.float64)).tolist())
    return tuple(
        Picture(
            picture(image, f"target {i}, {label}" + ("" if score is None else f", {score:.1f} dB")), score
        )
        for i, (image, score) in enumerate(zip(images, scores, strict=True), start=1)
    )
