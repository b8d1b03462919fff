"""A text from its start: every prefix has to explain what the gradient shows.

In a causal model the input of a layer at place t is a function of the tokens up to t (DAGER, section 5), so prefixes
can be tested one token at a time, in the row space of a layer whose inputs are contextual. A decoy passes every test:
a constant run of the first token, in which attention finds the same value everywhere, so that all inputs equal the
first. A place whose input was there before therefore counts for nothing, neither for its prefix nor against it, and
the prefix that explains most directions wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blocks.taps import PrefixTap
from .span import Span

_SAME = 1e-4  # distance of unit vectors below which two inputs are one

Evidence = Callable[[Tensor], Tensor]
"""Log-likelihood ratio of log leverages (...,): of a token that is there against one that is not."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best text (T,) and its score in nats; `rivals`: how many others were kept to the end."""

    tokens: Tensor
    score: float
    rivals: int


def most_likely(
    taps: Sequence[tuple[PrefixTap, Span, Evidence]],
    length: int,
    *,
    values: Tensor,
    log_prior: Tensor,
    width: int,
    margin: float = 30.0,
) -> Found:
    """The text of `length` tokens out of `values` (m,) whose inputs agree best with the spans.

    `log_prior` (V + 1, V): of a token after another, its last row of a first one. Of the prefixes those are kept that
    are among the `width` best, and within `margin` nats of the best.
    """
    tried = [_Tried(*each) for each in taps]
    prefixes = torch.zeros(1, 0, dtype=torch.long)
    scores = torch.zeros(1, dtype=torch.float64)
    for place in range(length):
        last = prefixes[:, -1] if place else torch.tensor([len(log_prior) - 1])
        total = scores[:, None] + log_prior[last][:, values]  # (B, m)
        for each in tried:
            total = total + each.told(values)
        best = total.flatten().topk(min(width, total.numel()))
        kept = best.indices[best.values >= best.values[0] - margin]
        parents, tokens = kept // len(values), values[kept % len(values)]
        prefixes = torch.cat([prefixes[parents], tokens[:, None]], dim=1)
        scores = total.flatten()[kept]
        for each in tried:
            each.extend(parents, tokens, kept % len(values))
    return Found(tokens=prefixes[0], score=float(scores[0]), rivals=len(prefixes) - 1)


class _Tried:
    """One tap: what the next token says after each prefix, and the inputs of the prefixes so far."""

    def __init__(self, tap: PrefixTap, span: Span, evidence: Evidence) -> None:
        self._prefixes, self._span, self._evidence = tap.prefixes(), span, evidence
        self._before = torch.zeros(1, 0, span.width, dtype=torch.float64)  # (B, t, D) unit vectors
        self._next = self._before

    def told(self, values: Tensor) -> Tensor:
        """(B, m): the evidence, 0 where the input was there before."""
        inputs = self._prefixes.choices(values)
        self._next = inputs / inputs.norm(dim=-1, keepdim=True).clamp_min(1e-30)  # (B, m, D)
        told = self._evidence(self._span.leverage(self._next))
        alike = (self._next @ self._before.mT > 1 - _SAME**2 / 2).any(dim=-1)
        return told.masked_fill(alike, 0.0)

    def extend(self, parents: Tensor, tokens: Tensor, chosen: Tensor) -> None:
        self._prefixes.extend(parents, tokens)
        self._before = torch.cat([self._before[parents], self._next[parents, chosen][:, None]], dim=1)
