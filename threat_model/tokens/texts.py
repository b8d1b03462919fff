"""The attacker of a block's releases: it practises on public texts, then reads values and order of a private one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...blocks import Draw
from ...blocks.examples import Examples
from ...blocks.taps import PrefixTap, TokenTap, ValueTap
from ..block_problem import BlockProblem
from ..releases import Release
from .evidence import LeverageLaw, bigrams
from .order import Found, most_likely
from .presence import Calibrated, Reader, Sets, TextTap, frequencies
from .span import Span

PRACTICE = 16  # public texts of which it makes releases
_PREFIXED = 8  # of these, so many also show how prefixes look
_PUBLIC = 1000  # public texts for frequencies
_LIKELY = -7.0  # log odds below which a value is not tried in a text
Make = Callable[[Examples, int, list[Draw]], Release]
"""A release of one text; the number names the experiment, and the noise draws are kept in the list."""


def text_taps(problem: BlockProblem) -> list[TextTap]:
    """Where the tokens of a text enter a block."""
    return [
        tap for tap in problem.taps
        if isinstance(tap, TextTap) and problem.by_name[tap.field].what == "tokens"
    ]  # fmt: skip


def read_by_block(problem: BlockProblem, text: Tensor, draws: Sequence[Draw]) -> frozenset[int]:
    """The values of a text (T,) that a block reads at these draws: of a masked model those shown in any of them, of a
    causal one all but the last, of an encoder all but those that fill the text up."""
    pad = getattr(problem.settings, "pad", None)
    if pad is not None:
        return frozenset(text[(text != pad) | (torch.arange(len(text)) == 0)].tolist())
    if not problem.masked:
        return frozenset(text[:-1].tolist())
    shown = torch.zeros(len(text), dtype=torch.bool)
    for draw in draws:
        shown |= (draw.noise >= draw.level[:, None]).any(dim=0)
    return frozenset(text[shown].tolist())


@dataclass(frozen=True)
class Practised:
    """An attacker that has seen releases of public texts of one kind."""

    parent: TextAttacker
    calibrated: Calibrated
    laws: list[tuple[PrefixTap, Reader, LeverageLaw]]

    def log_odds(self, release: Release) -> Tensor:
        """Of each value to be in the text, (V,)."""
        return self.calibrated.log_odds(self.parent.reader.features(release), self.parent.prior)

    def order(self, release: Release, width: int) -> Found:
        """The text but its last token."""
        values = torch.arange(len(self.parent.prior))
        if isinstance(self.parent.reader.tap, TokenTap):
            odds = self.log_odds(release)
            values = values[odds >= min(_LIKELY, float(odds.max()))]
        taps = [(tap, reader.span(release), law) for tap, reader, law in self.laws]
        return most_likely(
            taps, self.parent.length - 1, values=values, log_prior=self.parent.bigrams, width=width
        )


class TextAttacker:
    """`public`: texts that everybody knows, of the length of the private ones.

    attacker = TextAttacker(problem, public, generator)
    practised = attacker.practise(make)           # releases of public texts, made as those that are attacked
    practised.log_odds(release)                   # (V,)
    """

    def __init__(self, problem: BlockProblem, public: Examples, generator: torch.Generator) -> None:
        self.problem, self._generator = problem, generator
        self.taps = text_taps(problem)
        order = torch.randperm(len(public), generator=generator)
        self._practice = public[order[:PRACTICE]]
        self._others = public[order[PRACTICE:][:_PUBLIC]]
        if not len(self._others):
            self._others = self._practice
        texts = self._others.inputs
        self.length = texts.shape[1]
        self.reader = Reader.of(problem, self.taps[0], texts)
        self.prior = frequencies(self._public_sets(), self.reader.vocabulary)

    @cached_property
    def bigrams(self) -> Tensor:
        return bigrams(self._others.inputs, self.reader.vocabulary)

    @cached_property
    def prefix_readers(self) -> list[tuple[PrefixTap, Reader]]:
        """The taps that can tell the order."""
        texts = self._practice.inputs
        return [(t, Reader.of(self.problem, t, texts)) for t in self.taps if isinstance(t, PrefixTap)]

    def practise(self, make: Make, *, order: bool) -> Practised:
        """Learn from releases of public texts; `order`: also how prefixes look."""
        releases, sets = self.experiments(make, self._practice)
        features = [self.reader.features(release) for release in releases]
        calibrated = Calibrated.fit(features, sets, self.prior)
        laws = []
        for tap, reader in self.prefix_readers if order else ():
            spans = [reader.span(release) for release in releases[:_PREFIXED]]
            texts = self._practice.inputs[: len(spans)]
            law = LeverageLaw.fit(tap, spans, texts, self.reader.vocabulary, self._generator)
            laws.append((tap, reader, law))
        return Practised(self, calibrated, laws)

    def experiments(self, make: Make, texts: Examples) -> tuple[list[Release], Sets]:
        """A release of each text, and the values that the block read of it."""
        releases, sets = [], []
        for i in range(len(texts)):
            drawn: list[Draw] = []
            releases.append(make(texts[i : i + 1], i, drawn))
            sets.append(read_by_block(self.problem, texts.inputs[i], drawn))
        return releases, sets

    def rank(self, releases: Sequence[Release], tap: TextTap) -> int:
        """The median numerical rank of a tap's rows."""
        found = [
            Span.of(self.problem.tensors(r.vector)[tap.weight][tap.rows], r.noise).rank for r in releases
        ]
        return int(torch.tensor(found).median())

    def why_no_order(self, clean: Sequence[Release]) -> str | None:
        """Why no order can be found in releases like these, of which there is no noise; none where it can."""
        taps = [tap for tap in self.taps if isinstance(tap, PrefixTap)]
        if self.problem.masked:
            return "tokens enter without their places, and after that each depends on all others"
        if any(isinstance(tap, ValueTap) for tap in self.taps):
            return "of a pretrained model only the values of tokens are searched for"
        if not taps:
            return "the one layer reads the tokens before their places act on them"
        width = self.reader.inputs.shape[-1]
        rank = min(self.rank(clean, tap) for tap in taps)
        return f"rank {rank} >= {width}: every prefix fits" if rank >= width else None

    def _public_sets(self) -> Sets:
        texts = self._others.inputs
        if not self.problem.masked:
            return [read_by_block(self.problem, text, ()) for text in texts]
        values = self.problem.sample({"tokens": texts}, self._generator)
        return [
            read_by_block(self.problem, text, [Draw(level, noise)])
            for text, level, noise in zip(texts, values["level"], values["noise"], strict=True)
        ]
