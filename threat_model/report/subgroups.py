"""Quality by class and by company, before and after: what an average hides.

The last model and the public one are evaluated here once more, on examples that companies held out: all of one class,
and each company's own (`RunFolder.own_heldout`), where the run has kept them. Flags come from the interval of the
change: of a share, Newcombe's (1998, method 10) for the difference of two proportions; of another metric, Student's
over parts of the examples, each as the one model does beside the other (`parted`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...blocks import Denoiser, build_model, merge
from ...blocks.build import network_of
from ...blocks.examples import Examples
from ...errors import FedblocksError
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import Plan
from .document import SubgroupQuality, Subgroups
from .measures import Measure, share_interval
from .parted import half_width

_MOST_GROUPS = 200
_MOST_EXAMPLES = 500  # of one group
_MOST_TRAINED = 200  # of one company, where these have no held-out ones
_LEAST_EXAMPLES = 2
OWN = "what each company held out itself"
TRAINED = (
    "each company's own examples, on which it trained (this run has kept none by company that were held out), so "
    "these figures flatter"
)


def subgroups(run: RunFolder, measure: Measure) -> tuple[Subgroups, ...]:
    """None where a simulation's files do not allow it, or where the metric is of a whole set of samples."""
    plan = run.plan()
    if not network_of(plan.model).metric_of_one:
        return ()  # a distance between sets of images says nothing of a few of one class
    try:
        first, last = Checkpoint.load(run.checkpoints, 0), Checkpoint.load(run.checkpoints)
        if last.round == 0:
            return ()
        heldout = Examples.load(run.evaluation / "heldout.npz").check("heldout", plan.model.kind)
        models = (_model(plan, first), _model(plan, last))
        judge = _Judge(*models, measure, run.settings().seed)
        found = []
        if (classes := plan.model.kind.labels) is not None:
            names = run.settings().data.public.class_names or [f"class {c}" for c in range(classes)]
            parts = {name: heldout[heldout.targets == c] for c, name in enumerate(names)}
            found.append(judge.of("class", "examples that companies held out", parts))
        own = bool(list(run.own_heldout.glob("*.npz")))
        found.append(judge.of("company", *_companies(run), most=_MOST_EXAMPLES if own else _MOST_TRAINED))
    except (FedblocksError, OSError):
        return ()
    return tuple(each for each in found if each is not None)


def _companies(run: RunFolder) -> tuple[str, dict[str, Examples]]:
    """(what these are, the examples by company), evenly spread over the names where there are very many."""
    files = {file.stem: file for file in run.own_heldout.glob("*.npz")}
    data = OWN
    if not files:
        data, files = TRAINED, {home.name: home / "data.npz" for home in run.homes()}
    names = sorted(files, key=_natural)
    if len(names) > _MOST_GROUPS:
        data += f"; {_MOST_GROUPS} of {len(names):,} companies, evenly spread"
        names = [names[i * len(names) // _MOST_GROUPS] for i in range(_MOST_GROUPS)]
    return data, {name: Examples.load(files[name]) for name in names}


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or -1), name


def _model(plan: Plan, checkpoint: Checkpoint) -> Denoiser:
    model = build_model(plan.model, plan.noise)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    return model.eval()


class _Judge:
    """Both models, asked as the run's own evaluation asks them."""

    def __init__(self, before: Denoiser, after: Denoiser, measure: Measure, seed: int) -> None:
        self._before, self._after, self._measure, self._seed = before, after, measure, seed

    def of(
        self, of: str, data: str, parts: Mapping[str, Examples], most: int = _MOST_EXAMPLES
    ) -> Subgroups | None:
        """None where there are fewer than two groups to compare."""
        groups = tuple(
            self._quality(name, _some(part, most))
            for name, part in parts.items()
            if len(part) >= _LEAST_EXAMPLES
        )
        if len(groups) < 2:
            return None
        tail = 0.1 if self._measure.metric.higher_is_better else 0.9
        before, after = (
            float(np.quantile([getattr(group, when) for group in groups], tail))
            for when in ("before", "after")
        )
        return Subgroups.model_validate(
            {"of": of, "data": data, "groups": groups, "worst_decile": after, "worst_decile_before": before}
        )

    def _quality(self, name: str, part: Examples) -> SubgroupQuality:
        m, n = self._measure, len(part)
        was, now = (
            model.chain_quality(part.inputs, part.targets, torch.Generator().manual_seed(self._seed))[-1]
            for model in (self._before, self._after)
        )
        low, high = share_interval(now, n) if m.is_share else (None, None)
        half = None if m.is_share else half_width(self._before, self._after, part, self._seed)
        change = m.change_interval(was, now, n, half)
        return SubgroupQuality(
            name=name, examples=n, before=was, after=now, low=low, high=high,
            change_low=None if change is None else change[0], change_high=None if change is None else change[1],
            lost=m.worsens(change),
        )  # fmt: skip


def _some(part: Examples, most: int) -> Examples:
    """At most so many, at even distances: of texts and series some of every part."""
    return part if len(part) <= most else part[np.arange(most) * len(part) // most]
