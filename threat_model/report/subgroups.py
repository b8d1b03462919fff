"""Quality by class and by company, before and after: what an average hides.

The last model and the public one are evaluated here once more, on examples of one class among those that companies
held out, and on each company's own examples, which it trained on; a run keeps no held-out examples by company. Flags
come from intervals: of a share, Newcombe's (1998, method 10) for the difference of two proportions.
"""

from __future__ import annotations

import numpy as np
import torch

from ...blocks import Denoiser, build_model, merge
from ...blocks.examples import Examples
from ...errors import FedblocksError
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import Plan
from .document import SubgroupQuality, Subgroups
from .measures import Measure, share_interval

_MOST_GROUPS = 30
_MOST_EXAMPLES = 200  # of one group
_LEAST_EXAMPLES = 2


def subgroups(run: RunFolder, measure: Measure) -> tuple[Subgroups, ...]:
    """None where a simulation's files do not allow it, or where the metric is of a whole set of samples."""
    plan = run.plan()
    if measure.metric.unit == "number" and plan.model.kind.input_classes is not None:
        return ()  # a distance between sets of images says nothing of a few of one class
    try:
        first, last = Checkpoint.load(run.checkpoints, 0), Checkpoint.load(run.checkpoints)
        heldout = Examples.load(run.evaluation / "heldout.npz").check("heldout", plan.model.kind)
        companies = {home.name: Examples.load(home / "data.npz") for home in run.homes()[:_MOST_GROUPS]}
        before, after = (_model(plan, checkpoint) for checkpoint in (first, last))
    except (FedblocksError, OSError):
        return ()
    if last.round == 0:
        return ()
    found = []
    if (classes := plan.model.kind.target_classes) is not None and plan.model.kind.targets == ():
        parts = {f"class {c}": heldout[heldout.targets == c] for c in range(classes)}
        found.append(_of("class", "examples that companies held out", parts, before, after, measure))
    data = "each company's own examples, on which it trained"
    found.append(_of("company", data, companies, before, after, measure))
    return tuple(each for each in found if each is not None)


def _model(plan: Plan, checkpoint: Checkpoint) -> Denoiser:
    model = build_model(plan.model, plan.noise)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    return model.eval()


def _of(
    of: str, data: str, parts: dict[str, Examples], before: Denoiser, after: Denoiser, measure: Measure
) -> Subgroups | None:
    groups = [
        _quality(name, _some(part), before, after, measure)
        for name, part in list(parts.items())[:_MOST_GROUPS]
        if len(part) >= _LEAST_EXAMPLES
    ]
    if len(groups) < 2:
        return None
    qualities = np.array([group.after for group in groups])
    decile = np.quantile(qualities, 0.1 if measure.metric.higher_is_better else 0.9)
    return Subgroups.model_validate(
        {"of": of, "data": data, "groups": tuple(groups), "worst_decile": float(decile)}
    )


def _some(part: Examples) -> Examples:
    """At most so many, at even distances: of texts and series some of every part."""
    if len(part) <= _MOST_EXAMPLES:
        return part
    return part[np.arange(_MOST_EXAMPLES) * len(part) // _MOST_EXAMPLES]


def _quality(
    name: str, part: Examples, before: Denoiser, after: Denoiser, measure: Measure
) -> SubgroupQuality:
    was, now = (
        model.chain_quality(part.inputs, part.targets, torch.Generator().manual_seed(0))[-1]
        for model in (before, after)
    )
    low, high = share_interval(now, len(part)) if measure.is_share else (None, None)
    return SubgroupQuality(
        name=name, examples=len(part), before=was, after=now, low=low, high=high,
        lost=measure.surely_worse(was, now, len(part)),
    )  # fmt: skip
