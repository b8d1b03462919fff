"""Dealing one data set to several companies, with skewed labels (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...blocks.examples import Examples, Groups
from ...blocks.families import ModelSettings
from ...errors import InputError
from ...settings import CompanySettings

SMALLEST_PART = 10
_MOST_DRAWS = 11


def deal(
    private: Examples, model: ModelSettings, companies: CompanySettings, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Index arrays, one a company: disjoint, and together all examples, unless each draws `companies.examples`.

    Where examples have a class, each class is shared out by a Dirichlet(alpha) draw: small alpha, much skew.
    Texts and series are cut into stretches, so that companies differ as their documents and times do. A group of
    records goes to one company as a whole, by the label that most of its records have.
    """
    if private.groups is not None:
        return _by_group(private, private.groups, model, companies, seed)
    if companies.examples is not None:
        return _by_draw(private, model, companies, companies.examples, seed)
    if len(private) < companies.count * SMALLEST_PART:
        rule = f"{len(private)} examples are too few to deal out: enough for {len(private) // SMALLEST_PART}"
        rule += "" if model.label_side is not None else "; shorter windows give more"
        raise InputError("companies.count", companies.count, rule)
    if model.label_side is not None:
        labels = private.targets if model.label_side == "targets" else private.inputs
        return _by_label(labels.numpy(), companies.count, companies.alpha, seed)
    return list(np.array_split(np.arange(len(private), dtype=np.int64), companies.count))


def _by_group(
    private: Examples, groups: Groups, model: ModelSettings, companies: CompanySettings, seed: int
) -> list[npt.NDArray[np.int64]]:
    if companies.examples is not None:
        rule = "groups of records are dealt out, and not drawn anew by each company; leave it out"
        raise InputError("companies.examples", companies.examples, rule)
    if len(groups) < companies.count * SMALLEST_PART:
        rule = f"{len(groups)} groups are too few to deal out: enough for {len(groups) // SMALLEST_PART}"
        raise InputError("companies.count", companies.count, rule)
    order = np.argsort(groups.numbers, kind="stable")
    members = np.split(order, np.cumsum(groups.sizes)[:-1])  # a group's records, by its number
    first = np.argsort(
        [own[0] for own in members], kind="stable"
    )  # groups in the order of their first record
    if model.label_side is None:
        parts = list(np.array_split(np.arange(len(first), dtype=np.int64), companies.count))
    else:
        labels = (private.targets if model.label_side == "targets" else private.inputs).numpy()
        most = np.array([np.bincount(labels[members[g]]).argmax() for g in first], dtype=np.int64)
        parts = _by_label(most, companies.count, companies.alpha, seed)
    return [np.concatenate([members[first[g]] for g in part]) for part in parts]


def held_out_pool(private: Examples, model: ModelSettings, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which examples are held out by whoever draws them, where one may be at several companies: no company trains on
    what another holds out. Texts and series are held out from their end."""
    count = max(1, int(len(private) * share))
    out = np.zeros(len(private), dtype=np.bool_)
    if model.label_side is None:
        out[-count:] = True
    else:
        out[np.random.default_rng([seed, 3]).permutation(len(private))[:count]] = True
    return out


def _by_draw(
    private: Examples, model: ModelSettings, companies: CompanySettings, examples: int, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Each company's own draw, without replacement: by its own Dirichlet(alpha) shares of the classes, or a stretch
    of a text or series; `companies.holdout` of it from the pool that is held out."""
    out = held_out_pool(private, model, companies.holdout, seed)
    held = max(1, int(examples * companies.holdout))
    wanted = ((np.flatnonzero(~out), examples - held), (np.flatnonzero(out), held))
    if any(len(pool) < count for pool, count in wanted):
        rule = f"{len(private)} examples are too few for a company to draw so many"
        raise InputError("companies.examples", examples, rule)
    generator = np.random.default_rng([seed, 4])
    if model.label_side is None:
        starts = [(pool, count, len(pool) - count + 1) for pool, count in wanted]
        return [
            np.concatenate(
                [pool[(at := int(generator.integers(most))) : at + count] for pool, count, most in starts]
            )
            for _ in range(companies.count)
        ]
    labels = (private.targets if model.label_side == "targets" else private.inputs).numpy()
    classes, place = np.unique(labels, return_inverse=True)
    parts = []
    for _ in range(companies.count):
        # No class of no weight at all: where alpha is small, there would be too few examples to draw.
        shares = generator.dirichlet(np.full(len(classes), companies.alpha)) + 1e-9
        weights = shares[place]  # (examples,)
        parts.append(
            np.concatenate(
                [
                    generator.choice(pool, count, replace=False, p=weights[pool] / weights[pool].sum())
                    for pool, count in wanted
                ]
            )
        )
    return parts


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
