"""Does the time of a company's answer count its examples with an attribute? The attack, and its control.

The coordinator's weights are finite and pass every check, but so small that the activations of an example whose
image is not black are subnormal; a black one's are zero, which costs nothing. Where subnormals are not flushed,
each of the former takes longer, in the products of layers (Intel: up to 150 times) or inside exp and erf (AMD:
three to five times). Time over the number of planted examples is a line, and its slope is the leak: it is told
at any epsilon. The control runs the same with flushing off, and has to find a slope.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ...blocks import Denoiser, build_model
from ...blocks.examples import Examples
from ...client.policy import Policy
from ...client.training import train_block
from ...privacy import denormals
from ...privacy.randomness import Randomness
from ...settings import Plan

EXAMPLES = 800
_TINY = 1e-21  # once it is small, twice it is subnormal


@dataclass(frozen=True)
class Slope:
    """Least squares of seconds over the number of planted examples, each turn with a level of its own."""

    at_zero: float  # seconds
    each: float  # seconds an example
    standard_error: float

    @property
    def significance(self) -> float:
        """The slope in its standard errors."""
        return self.each / self.standard_error


def measure(repeats: int = 15, on_progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Both slopes, in microseconds an example, and how much longer the answer takes if all are planted."""
    attack = Attack(EXAMPLES)
    flushing, control = attack.slopes(repeats, on_progress)
    return {
        "microseconds_each": 1e6 * flushing.each,
        "standard_error": 1e6 * flushing.standard_error,
        "significance": flushing.significance,
        "slower_if_all_planted": 1 + EXAMPLES * flushing.each / flushing.at_zero,
        "not_flushing_microseconds_each": 1e6 * control.each,
        "not_flushing_standard_error": 1e6 * control.standard_error,
        "not_flushing_significance": control.significance,
        "not_flushing_slower_if_all_planted": 1 + EXAMPLES * control.each / control.at_zero,
        "examples": EXAMPLES,
        "runs": 3 * repeats,
    }


class Attack:
    """A company of `examples` images that answers crafted weights by `train_block`, at a charge near zero."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.plan = Plan.model_validate(
            {
                "run": "answer-time",
                "model": {
                    "family": "vit", "image_size": 4, "patch_size": 1, "hidden_size": 4, "layers": 5,
                    "blocks": 1, "heads": 1, "mlp_ratio": 16.0, "classes": 2,
                },
                "noise": {},
                "training": {
                    "rounds": 1, "sampling_rate": 1.0, "expected_batch_size": examples, "noise_draws": 1,
                },
                "delta": 1e-5, "max_grad_norm": 1.0, "noise_multiplier": 1e4, "company_clip": 1.0,
                "secure_aggregation": {},
            }
        )  # fmt: skip
        self.policy = Policy(company="c", epsilon_ceiling=8, delta=1e-5, data=self.plan.model.kind)
        self.model = crafted(self.plan)
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    def slopes(
        self,
        repeats: int,
        on_progress: Callable[[str], None] = lambda line: None,
        flushing: tuple[bool, ...] = (True, False),
    ) -> list[Slope]:
        """With flushing and without, from runs in turns: none, half and all of the examples planted."""
        counts = [0, self.examples // 2, self.examples]
        seconds: dict[bool, list[list[float]]] = {mode: [] for mode in flushing}
        self.seconds(0)  # the first pass finds how many examples fit
        started = time.monotonic()
        for repeat in range(repeats):
            for mode, found in seconds.items():
                with _maybe(mode):
                    runs = {count: self._best(count) for count in counts[:: 1 if repeat % 2 else -1]}
                found.append([runs[count] for count in counts])
            left = (time.monotonic() - started) / (repeat + 1) * (repeats - repeat - 1)
            on_progress(f"answer time: {repeat + 1} of {repeats} turns, {left:.0f} s left")
        return [slope(counts, found) for found in seconds.values()]

    def _best(self, planted: int) -> float:
        return min(self.seconds(planted) for _ in range(3))

    def seconds(self, planted: int) -> float:
        """Processor time of one answer; what else runs on the machine is not in it."""
        inputs = torch.zeros(self.examples, 1, 4, 4)
        inputs[:planted] = 0.5 + 0.5 * torch.rand(planted, 1, 4, 4)
        data = Examples(inputs[torch.randperm(self.examples)], torch.zeros(self.examples, dtype=torch.long))
        self.model.load_state_dict(self.weights)
        started = time.process_time()
        train_block(self.model, 0, data, self.plan, 3, Randomness.from_entropy(), self.policy)
        return time.process_time() - started


def crafted(plan: Plan) -> Denoiser:
    """Small patches, no biases: what an MLP of the clean stream computes is subnormal, or zero for black images."""
    torch.manual_seed(0)
    model = build_model(plan.model, plan.noise)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("patch.weight", "mlp.0.weight")) and "noise" not in name:
                p.mul_(_TINY / p.abs().max())
            elif name.endswith(("patch.bias", "position.weight", "proj.weight")) or (
                ".layers." in name and name.endswith(".bias")
            ):
                p.zero_()
    return model


def slope(counts: list[int], turns: list[list[float]]) -> Slope:
    """The line through seconds over counts; each of the turns has a level of its own, as the machine's load has."""
    y = np.array(turns)  # (turns, counts)
    x = np.tile(np.array(counts, dtype=np.float64), (len(y), 1))
    x_within, y_within = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    squares = float((x_within**2).sum())
    each = float((x_within * y_within).sum()) / squares
    residuals = y_within - each * x_within
    variance = float((residuals**2).sum()) / (y.size - len(y) - 1)
    return Slope(float(y.mean()) - each * float(x.mean()), each, float(np.sqrt(variance / squares)))


@contextmanager
def _maybe(flushing: bool) -> Iterator[None]:
    if flushing:
        yield
        return
    with patch.object(denormals, "_flush", lambda: None):
        yield
