"""From reconstructions to the scores of one view: all conditions on the same examples, matched in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import metrics
from .gradients import Unknowns
from .metrics import Array, Score
from .verdicts import Evidence, Verdict


@dataclass(frozen=True)
class ViewResult:
    """Scores of one view: rows[condition][metric]; conditions control, released, prior, random.

    `pictures` holds the images of control, released, prior and original, (n, C, H, W).
    """

    name: str
    verdict: Verdict
    rows: dict[str, dict[str, Score]]
    gain: dict[str, Score]
    pictures: dict[str, npt.NDArray[np.float32]]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.verdict.to_json(),
            "rows": {
                condition: {metric: score.to_json() for metric, score in row.items()}
                for condition, row in self.rows.items()
            },
            "gain": {metric: score.to_json() for metric, score in self.gain.items()},
        }


@dataclass
class Guesses:
    """One condition's guesses for all cases of a view, in the order of the originals."""

    images: list[Array]
    labels: list[npt.NDArray[np.int64]]

    def add(self, images: Tensor, labels: Tensor | None, truth: Unknowns) -> None:
        order = metrics.matched(images.numpy(), truth.images.numpy())
        self.images.append(images.numpy()[order])
        if labels is not None:
            self.labels.append(labels.numpy()[order])


def score_view(
    name: str,
    truths: list[tuple[Tensor, Unknowns]],
    guesses: dict[str, Guesses],
    *,
    private: Tensor,
    candidates: int,
    seed: int,
) -> ViewResult:
    """truths: (indices into private, unknowns) of each case."""
    originals = np.concatenate([t.images.numpy() for _, t in truths])
    labels = np.concatenate([t.labels.numpy() for _, t in truths])
    clusters = np.repeat(np.arange(len(truths)), [len(i) for i, _ in truths])
    rivals = _rivals(private, torch.cat([i for i, _ in truths]), candidates)
    values: dict[str, dict[str, Array]] = {}
    for condition, guess in guesses.items():
        images = np.concatenate(guess.images)
        row = {"psnr": metrics.psnr(images, originals), "ssim": metrics.ssim(images, originals)}
        if guess.labels:
            row["label"] = (np.concatenate(guess.labels) == labels).astype(np.float64)
        row["reidentification"] = metrics.reidentified(images, originals, rivals).astype(np.float64)
        values[condition] = {metric: v for metric, v in row.items() if np.isfinite(v).all()}
    draw = np.random.default_rng(seed)
    rows = {
        c: {metric: metrics.summarise(v, clusters, draw) for metric, v in row.items()}
        for c, row in values.items()
    }
    gain = {
        metric: metrics.summarise(values["released"][metric] - prior, clusters, draw)
        for metric, prior in values["prior"].items()
    }
    exact = {c: int((row["psnr"] >= metrics.EXACT_PSNR).sum()) for c, row in values.items()}
    evidence = Evidence(
        cases=len(labels),
        exact=exact["released"],
        control_exact=exact.get("control"),
        reidentified=int(values["released"]["reidentification"].sum()),
        reidentified_by_prior=int(values["prior"]["reidentification"].sum()),
        gain=gain["psnr"],
    )
    pictures = {c: np.concatenate(g.images).astype(np.float32) for c, g in guesses.items() if c != "random"}
    pictures["original"] = originals.astype(np.float32)
    return ViewResult(name, Verdict.of(evidence), rows, gain, pictures)


def _rivals(private: Tensor, indices: Tensor, candidates: int) -> Array:
    """For each attacked example the other private images nearest to it, (n, candidates - 1, C, H, W)."""
    flat = private.flatten(1)
    distance = torch.cdist(flat[indices], flat)  # (n, N)
    distance[torch.arange(len(indices)), indices] = torch.inf
    nearest = distance.topk(min(candidates, len(flat)) - 1, largest=False).indices
    found: Array = private[nearest].numpy()
    return found
