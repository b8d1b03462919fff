"""Which token values occur in a text: leverage in the row space, weighed against how frequent a value is.

The attacker practises on public texts: it makes releases of its own with the same mechanism, and fits how likely a
value is there, given its leverage, its energy and its frequency (a logistic regression). So the same attack is a hard
check where there is no noise, and falls back on frequency alone where noise hides everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blocks.taps import PrefixTap, TokenTap, ValueTap, normalised
from ..block_problem import BlockProblem
from ..releases import Release
from .levels import levels
from .span import Span

TextTap = TokenTap | ValueTap | PrefixTap
Sets = list[frozenset[int]]
_CONTEXTS = (
    16  # public places at which each value is looked at, where its input depends on what stands before it
)
_AT_MOST = (
    1 << 23
)  # numbers that describe all values at all places; fewer places are tried where these are more
_RIDGE = 1e-2
_NEWTON = 60


def frequencies(sets: Sets, vocabulary: int) -> Tensor:
    """Log odds that a value is in a text, from public ones: (V,)."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for each in sets:
        counts[list(each)] += 1
    share = (counts + 0.5) / (len(sets) + 1)
    return share.logit()


@dataclass(frozen=True)
class Reader:
    """What one tap shows of each value: `inputs` (V, m, D) in m public contexts, one where there is no context;
    `known` (V,): whether the value occurs in public at all. Of a `ValueTap` the known values' inputs alone, at m
    places."""

    problem: BlockProblem
    tap: TextTap
    inputs: Tensor
    known: Tensor
    vocabulary: int

    @classmethod
    def of(cls, problem: BlockProblem, tap: TextTap, texts: Tensor) -> Reader:
        """`texts` (N, T): public ones."""
        classes = problem.by_name[tap.field].classes
        assert classes is not None
        if isinstance(tap, TokenTap):
            inputs = normalised(tap.table + tap.offset[:1], tap.norm)[:, None]
            return cls(problem, tap, inputs, torch.ones(classes, dtype=torch.bool), classes)
        if isinstance(tap, ValueTap):
            values, length = texts.unique(), texts.shape[1]
            at_first = tap.enter(values, torch.zeros(1, dtype=torch.long))[:, 0]
            values, width = values[at_first.norm(dim=1) > 0], at_first.shape[-1]  # zero: a padding token's
            known = torch.zeros(classes, dtype=torch.bool)
            known[values] = True
            most = max(1, min(length, _AT_MOST // (len(values) * width)))
            places = torch.linspace(0, length - 1, most).round().long()
            return cls(problem, tap, tap.enter(values, places), known, classes)
        entered = torch.cat([tap.enter(part) for part in texts.split(64)])  # (N, T, D)
        found = torch.zeros(classes, _CONTEXTS, entered.shape[-1], dtype=torch.float64)
        known = torch.zeros(classes, dtype=torch.bool)
        for value in range(classes):
            places = (texts == value).nonzero()
            if len(places):
                # At even distances, and some of them twice where there are few.
                chosen = places[torch.arange(_CONTEXTS) * len(places) // _CONTEXTS]
                found[value] = entered[chosen[:, 0], chosen[:, 1]]
                known[value] = True
        return cls(problem, tap, found, known, classes)

    def span(self, release: Release) -> Span:
        rows = self.problem.tensors(release.vector)[self.tap.weight][self.tap.rows]
        return Span.of(rows, release.noise)

    def features(self, release: Release) -> Tensor:
        """(V, 2): the least leverage and the greatest energy over contexts, and over draws where these modulate."""
        span, inputs = self.span(release), self.inputs
        modulation = self.tap.modulation if isinstance(self.tap, TokenTap) else None
        if modulation is not None:
            level = self.problem.by_name["level"]
            assert level.bounds is not None
            draws = self.problem.draws * release.steps
            at = levels(self.problem.tensors(release.vector), modulation, level.bounds, draws)
            embedded = modulation.curve(at)  # (d, D)
            inputs = torch.cat([modulation.apply(inputs, c) for c in embedded], dim=1)  # (V, m d, D)
        leverage = span.leverage(inputs).amin(dim=1)
        energy = span.energy(inputs).amax(dim=1)
        found = torch.stack([leverage, energy], dim=1)[: self.vocabulary]
        if isinstance(self.tap, ValueTap):
            whole = found.new_zeros(self.vocabulary, 2)
            whole[self.known] = found
            found = whole
        found[~self.known] = found[self.known].median(dim=0).values  # of these nothing can be told
        return found


@dataclass(frozen=True)
class Calibrated:
    """Log odds that a value is there, linear in the standardised features and the prior log odds."""

    centre: Tensor
    scale: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, features: Sequence[Tensor], sets: Sets, prior: Tensor) -> Calibrated:
        """`features` (V, F) of each practice release, `sets` what was in it."""
        x = torch.cat([torch.cat([each, prior[:, None]], dim=1) for each in features])
        y = torch.zeros(len(sets), len(prior), dtype=torch.float64)
        for row, each in zip(y, sets, strict=True):
            row[list(each)] = 1.0
        centre, scale = x.mean(0), x.std(0).clamp_min(1e-12)
        design = torch.cat([(x - centre) / scale, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        weights = torch.zeros(design.shape[1], dtype=torch.float64)
        ridge = _RIDGE * torch.eye(len(weights), dtype=torch.float64)
        for _ in range(_NEWTON):
            p = (design @ weights).sigmoid()
            gradient = design.T @ (p - y.flatten()) + ridge @ weights
            hessian = design.T @ (design * (p * (1 - p))[:, None]) + ridge
            step = torch.linalg.solve(hessian, gradient)
            weights = weights - step / max(1.0, float(step.norm()))
        return cls(centre, scale, weights)

    def log_odds(self, features: Tensor, prior: Tensor) -> Tensor:
        """(V,)"""
        x = (torch.cat([features, prior[:, None]], dim=1) - self.centre) / self.scale
        found: Tensor = x @ self.weights[:-1] + self.weights[-1]
        return found


def recall(log_odds: Tensor, true: frozenset[int]) -> float:
    """Share of a text's values among as many that are held likeliest."""
    best = log_odds.topk(len(true)).indices.tolist()
    return len(true.intersection(best)) / len(true)


def exact(log_odds: Tensor, true: frozenset[int]) -> bool:
    """Whether the values held likelier than not are those of the text."""
    return set((log_odds > 0).nonzero()[:, 0].tolist()) == set(true)
