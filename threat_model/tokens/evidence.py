"""What a leverage says of one token after a prefix, learnt on public texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blocks.taps import PrefixTap
from .span import Span

_FREEDOM = 4.0  # heavy tails: what lies far from all practice says little


@dataclass(frozen=True)
class LeverageLaw:
    """Log-likelihood ratio of a log leverage of the right token against a wrong one: two Student laws."""

    right: tuple[float, float]  # mean and deviation
    wrong: tuple[float, float]

    @classmethod
    def fit(
        cls, tap: PrefixTap, spans: Sequence[Span], texts: Tensor, vocabulary: int, generator: torch.Generator
    ) -> LeverageLaw:
        """From practice: `spans` of releases of public `texts` (N, T), whose last tokens nothing reads."""
        length = texts.shape[1] - 1
        right, wrong = [], []
        diagonal = torch.arange(length)
        for text, span in zip(texts[:, :-1], spans, strict=True):
            right.append(span.leverage(tap.enter(text[None])[0]))
            others = text.repeat(length, 1)  # row t is wrong at place t
            others[diagonal, diagonal] = (
                text + torch.randint(1, vocabulary, (length,), generator=generator)
            ) % vocabulary
            entered = tap.enter(others)[diagonal, diagonal]
            decoy = (text[:-1] == text[0]).cumprod(0).bool() & (others[diagonal, diagonal][1:] == text[0])
            keep = torch.cat([torch.ones(1, dtype=torch.bool), ~decoy])
            wrong.append(span.leverage(entered)[keep])
        return cls(_law(torch.cat(right)), _law(torch.cat(wrong)))

    def __call__(self, leverage: Tensor) -> Tensor:
        return _log_density(leverage, self.right) - _log_density(leverage, self.wrong)


def _law(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std()), 1e-3)


def _log_density(values: Tensor, law: tuple[float, float]) -> Tensor:
    mean, deviation = law
    law_of_logs = torch.distributions.StudentT(_FREEDOM, mean, deviation)
    found: Tensor = law_of_logs.log_prob(values)
    return found


def bigrams(texts: Tensor, vocabulary: int) -> Tensor:
    """Log probability of a token after another in public texts (N, T), smoothed: (V + 1, V), the last row of any."""
    counts = torch.full((vocabulary + 1, vocabulary), 0.02, dtype=torch.float64)
    pairs = texts[:, :-1] * vocabulary + texts[:, 1:]
    counts[:-1] += torch.bincount(pairs.flatten(), minlength=vocabulary**2).view(vocabulary, vocabulary)
    counts[-1] += torch.bincount(texts.flatten(), minlength=vocabulary)
    return (counts / counts.sum(1, keepdim=True)).log()
