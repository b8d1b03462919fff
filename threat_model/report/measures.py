"""A family's metric in the report's words: its name, its numbers, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest

from ...blocks import Metric
from ...blocks.families import ModelSettings, family

# What counts as no change, and as forgetting: in shares of the examples, else in shares of the value itself.
_NOTICEABLE = {"share": 0.005, "bits": 0.01, "number": 0.01}
_FORGETTING = 0.05


@dataclass(frozen=True)
class Measure:
    """How qualities, and differences of them, are written and compared."""

    metric: Metric

    @property
    def words(self) -> str:
        """The name within a sentence."""
        return self.metric.words

    @property
    def title(self) -> str:
        return self.words[:1].upper() + self.words[1:]

    @property
    def direction(self) -> str:
        return "higher is better" if self.metric.higher_is_better else "lower is better"

    @property
    def is_share(self) -> bool:
        return self.metric.unit == "share"

    def show(self, value: float) -> str:
        if self.is_share:
            return f"{value:.1%}"
        return f"{value:.2f}" if self.metric.unit == "bits" else three_digits(value)

    def short(self, value: float) -> str:
        """As `show`, where a drawing has little room."""
        return f"{value:.0%}" if self.is_share else self.show(value)

    def change(self, step: float) -> str:
        """A difference with its sign: points of a share, else in the metric's own unit."""
        shown = f"{100 * step:.1f}" if self.is_share else self.show(step)
        return f"+{shown}" if step >= 0 else shown.replace("-", "−")

    def step(self, interval: tuple[float, float] | None) -> str:
        """The interval of a difference; a dash where none is known."""
        return "–" if interval is None else f"{self.change(interval[0])} to {self.change(interval[1])}"

    def amount(self, size: float) -> str:
        """A difference without sign, with its unit."""
        if self.is_share:
            return f"{100 * abs(size):.1f} points"
        return self.show(abs(size)) + (" bits" if self.metric.unit == "bits" else "")

    def gain(self, before: float, after: float) -> float:
        """How much better: negative where it is worse, whichever way the metric runs."""
        return after - before if self.metric.higher_is_better else before - after

    def noticeably_better(self, before: float, after: float) -> bool:
        return self.gain(before, after) > self._scale(before, _NOTICEABLE[self.metric.unit])

    def noticeably_worse(self, before: float, after: float) -> bool:
        return self.gain(before, after) < -self._scale(before, _NOTICEABLE[self.metric.unit])

    def forgotten(self, before: float, after: float) -> bool:
        return self.gain(before, after) < -self._scale(before, _FORGETTING)

    def surely_worse(self, before: float, after: float, examples: int) -> bool:
        """Whether the 95% interval of the change lies below none: known of shares alone, since no spread is stored of
        other metrics; those count where they are noticeably worse."""
        if not self.is_share or not examples:
            return self.noticeably_worse(before, after)
        return change_interval(before, after, examples)[1] < 0

    def change_interval(
        self, before: float, after: float, examples: int, half: float | None = None
    ) -> tuple[float, float] | None:
        """Of after - before, at 95%: of shares by their numbers of examples, of others by the `half` that was
        measured (see `parted`); none where that was not."""
        if self.is_share:
            return change_interval(before, after, examples) if examples else None
        return None if half is None else (after - before - half, after - before + half)

    def worsens(self, change: tuple[float, float] | None) -> bool:
        """Whether the whole interval of after - before is for the worse; not without an interval."""
        if change is None:
            return False
        return change[1] < 0 if self.metric.higher_is_better else change[0] > 0

    def surely_better(self, before: float, after: float, examples: int) -> bool:
        """As `surely_worse`, the other way."""
        if not self.is_share or not examples:
            return self.noticeably_better(before, after)
        return change_interval(before, after, examples)[0] > 0

    def _scale(self, value: float, share: float) -> float:
        return share if self.is_share else share * abs(value)


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's, at 95%."""
    low, high = binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def change_interval(before: float, after: float, n: int) -> tuple[float, float]:
    """Of after - before, two shares of n examples each, at 95%: Newcombe (1998), method 10.

    Both are of the same examples; that they go together is not known here, and would make the interval narrower.
    """
    (low0, high0), (low1, high1) = share_interval(before, n), share_interval(after, n)
    change = after - before
    return (
        change - math.hypot(after - low1, high0 - before),
        change + math.hypot(high1 - after, before - low0),
    )


def three_digits(value: float) -> str:
    """39.8, 0.123, 1240: three digits that count, never an exponent where a reader expects none."""
    if value == 0 or not math.isfinite(value) or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


@dataclass(frozen=True)
class ModelWords:
    """A model by what it is and by the examples that it reads."""

    kind: str
    data: str


def model_words(model: ModelSettings) -> ModelWords:
    return ModelWords(family(model.family).title, model.data_words)
