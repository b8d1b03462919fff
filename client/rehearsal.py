"""A trial release on artificial examples, before a real one is charged.

A plan may pass every rule and still fail in execution: heads that a layer cannot split, noise that a sampler cannot
draw, an update that the codec cannot hold, a machine that does not meet the proof's assumptions. After the charge
that would waste the company's budget. So the same code runs first, with the fewest steps that can show a failure, on
examples that are all zero: it does not read the company's data, and an error here is a refusal that costs nothing.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ..blocks.examples import Examples, Groups
from ..privacy.randomness import Randomness
from ..settings import DataKind, Plan
from .evaluating import evaluated
from .policy import Policy
from .training import model_of, train_block, whole_model_of

_EXAMPLES = 2


def rehearse(plan: Plan, block: int, companies: int, policy: Policy) -> None:
    """Train `block` on trial, for a sum of `companies` companies; raises what the release itself would raise.

    Afterwards the state of this plan's model (`model_of`) is undefined. Equal rehearsals run once in a process.
    """
    # Two batches of all examples, or as many as the noise has bands.
    turns = plan.training.noise_bands
    short = {"sampling_rate": 1 / turns, "local_steps": 1 if plan.secure_step else max(2, turns)}
    training = plan.training.model_copy(update={**short, "rounds": 1})
    alike = plan.model_copy(update={"training": training, "run": "rehearsal"})
    _rehearsed(
        alike, block, companies, policy.data, policy.device, policy.memory_mb, policy.largest_max_grad_norm
    )


@lru_cache(maxsize=256)
def _rehearsed(
    plan: Plan,
    block: int,
    companies: int,
    kind: DataKind,
    device: str,
    memory_mb: int,
    largest_max_grad_norm: float,
) -> None:
    policy = Policy(
        company="rehearsal", epsilon_ceiling=0.0, delta=plan.delta, data=kind, device=device,
        memory_mb=memory_mb,
        largest_max_grad_norm=largest_max_grad_norm,
    )  # fmt: skip
    model = model_of(plan, device, block)
    data = zeros(kind, plan.training.group)
    train_block(model, block, data, plan, companies, Randomness.from_entropy(), policy)


def rehearse_evaluation(plan: Plan, companies: int, policy: Policy) -> None:
    """As `rehearse`, of an evaluation."""
    _evaluation_rehearsed(plan.model_copy(update={"run": "rehearsal"}), companies, policy.data, policy.device)


@lru_cache(maxsize=64)
def _evaluation_rehearsed(plan: Plan, companies: int, kind: DataKind, device: str) -> None:
    model = whole_model_of(plan, device)
    evaluated(model, zeros(kind, plan.training.group), plan, companies, Randomness.from_entropy())


def zeros(kind: DataKind, group: str | None = None) -> Examples:
    """Examples of this kind, all zero, each a group of its own by column `group`."""
    parts = ((kind.inputs, kind.input_classes), (kind.targets, kind.target_classes))
    inputs, targets = (
        torch.zeros(_EXAMPLES, *shape, dtype=torch.float32 if classes is None else torch.int64)
        for shape, classes in parts
    )
    keys = torch.arange(_EXAMPLES)[:, None].repeat(1, 4)
    return Examples(inputs, targets, None if group is None else Groups(group, keys))
