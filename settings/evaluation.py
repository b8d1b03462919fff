"""Federated evaluation: the model's quality on companies' held-out examples, by noisy sums that are charged for."""

from __future__ import annotations

from pydantic import Field

from ..blocks.families import ModelSettings
from ..blocks.settings import Part, require
from .privacy import LEAST_NOISE

MOST_CLASSES = 100
# In a ledger, after a run's name: its evaluations. No run's own name may end so, or one ledger entry would be of two.
EVALUATIONS = " (evaluation)"


class EvaluationSettings(Part):
    """What companies release of the model's quality on the examples that they never train on.

    Each held-out example adds its score, scaled to [0, 1], and 1 to a sum; `noise_multiplier` is the noise in units
    of the norm sqrt(2) that one example can have. Every evaluation is a release of its own, beside the training.
    """

    every: int = Field(
        0, ge=0, description="rounds from one evaluation to the next; 0: after the last round alone"
    )
    noise_multiplier: float = Field(20.0, ge=LEAST_NOISE, le=1e4)
    largest: float | None = Field(
        None, gt=0, le=1e6, description="scores above count as this; accuracy needs none, other metrics do"
    )
    by_class: bool = Field(False, description="the accuracy of each class, which costs no more privacy")
    most_examples: int = Field(
        100_000, ge=1, le=1_000_000, description="of a company with more, the sums are scaled down to so many"
    )

    def rounds(self, rounds: int) -> int:
        """How many evaluations a run of so many rounds has."""
        return -(-rounds // self.every) if self.every else 1

    def due(self, round_: int, rounds: int) -> bool:
        """Whether there is one after this round."""
        return round_ == rounds or (self.every > 0 and round_ % self.every == 0)

    def check(self, model: ModelSettings) -> None:
        """Refuse what this family's metric cannot be judged by."""
        from ..blocks.build import network_of  # brings PyTorch, which settings by themselves do without

        network = network_of(model)
        share, classes = network.metric.unit == "share", model.kind.target_classes
        require(network.metric_of_one, "evaluation", network.metric.name, "is no mean over single examples")
        told = self.largest is not None
        require(share != told, "evaluation.largest", self.largest, _LARGEST[share])
        if self.by_class:
            few = share and classes is not None and classes <= MOST_CLASSES
            require(few, "evaluation.by_class", True, f"needs a classifier of at most {MOST_CLASSES} classes")

    def range(self) -> float:
        """The score that counts as 1."""
        return self.largest or 1.0


_LARGEST = {
    True: "not for an accuracy, which lies between 0 and 1",
    False: "say up to where this metric's scores are told apart",
}
