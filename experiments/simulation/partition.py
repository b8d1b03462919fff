"""Dealing one data set to several companies, with skewed labels (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...blocks.examples import Examples
from ...blocks.families import ModelSettings
from ...errors import InputError
from ...settings import CompanySettings

SMALLEST_PART = 10
_MOST_DRAWS = 11


def deal(
    private: Examples, model: ModelSettings, companies: CompanySettings, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Disjoint index arrays, one a company, which together cover all examples.

    Where examples have a class, each class is shared out by a Dirichlet(alpha) draw: small alpha, much skew.
    Texts and series are cut into stretches, so that companies differ as their documents and times do.
    """
    if len(private) < companies.count * SMALLEST_PART:
        rule = f"{len(private)} examples are too few to deal out: enough for {len(private) // SMALLEST_PART}"
        rule += "" if model.label_side is not None else "; shorter windows give more"
        raise InputError("companies.count", companies.count, rule)
    if model.label_side is not None:
        labels = private.targets if model.label_side == "targets" else private.inputs
        return _by_label(labels.numpy(), companies.count, companies.alpha, seed)
    return list(np.array_split(np.arange(len(private), dtype=np.int64), companies.count))


def _by_label(
    labels: npt.NDArray[np.int64], companies: int, alpha: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Draw shares until every part is large enough, then shuffle each part.

    The draws and their order are those of flwr-datasets' `DirichletPartitioner` (without balancing), so a seed gives
    the parts that it gives there.
    """
    generator = np.random.default_rng(seed % 2**32)
    for _ in range(_MOST_DRAWS):
        parts = _drawn(labels, companies, alpha, generator)
        if min(len(part) for part in parts) >= SMALLEST_PART:
            for part in parts:
                generator.shuffle(part)  # a part is in order of its classes until here
            return parts
    rule = f"no draw left every company {SMALLEST_PART} examples; raise alpha"
    raise InputError("companies.alpha", alpha, rule)


def _drawn(
    labels: npt.NDArray[np.int64], companies: int, alpha: float, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Each class in ascending order cut at the cumulative shares of one Dirichlet(alpha) draw, rounded down."""
    pieces: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(companies)]
    for label in np.unique(labels):
        indices = np.nonzero(labels == label)[0]
        shares = generator.dirichlet(np.full(companies, alpha))
        cuts = (np.cumsum(shares) * len(indices)).astype(int)[:-1]
        for own, piece in zip(pieces, np.split(indices, cuts), strict=True):
            own.append(piece)
    return [np.concatenate(own) for own in pieces]
