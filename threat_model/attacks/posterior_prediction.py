"""What the best attack is expected to find in each company's releases, before anything is released."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ..clip_model import ClipModel
from ..exhibits import Exhibit
from ..intervals import mean
from ..local_prediction import EXAMPLES, informations
from ..prediction import wins_at
from ..release_model import ReleaseModel
from ..releases import clip_of, deviation
from ..results import Result
from ..subject import Subject
from ..unknowns import Layout, unsuited
from . import Attack

_VISIBLE = 1.0  # dB
_SURE = 0.999  # level of the interval by which that is judged, as of what attacks find


def _applies(subject: Subject) -> str | None:
    if subject.plan.training.local_steps > 1:
        return (
            f"{subject.plan.training.local_steps} local steps: a release is no longer linear near one example"
        )
    if not subject.plan.private:
        return "the run adds no noise: what comes back is what the closed forms find, and nothing is to be predicted"
    (block,) = subject.blocks
    return unsuited(subject.problem(block), subject.plan.training.noise_draws)


def _run(subject: Subject) -> Iterator[Result | Exhibit]:
    (block,) = subject.blocks
    mechanism = subject.mechanism(block)
    layout = Layout(subject.problem(block), subject.public, subject.plan.training.noise_draws)
    model = ReleaseModel(layout, ClipModel.of(mechanism), steps=1, rate=0.0)
    clip, noise = clip_of(mechanism), deviation(mechanism)
    for done, (company, examples) in enumerate(subject.private.items(), start=1):
        started = time.monotonic()
        if subject.clock.over:
            yield _result(company, block, "inconclusive", reason=f"the time was over before {company}")
            continue
        if len(examples) == 0:
            yield _result(company, block, "not applicable", reason=f"{company} holds no example")
            continue
        generator = subject.generator("prediction", company, block)
        found = informations(model, examples, EXAMPLES, generator)
        for what in layout.fields:
            gains = np.concatenate([each.gain(noise, what.name).numpy() for each in found])
            yield _result(
                company, block, "partly found" if mean(gains, level=_SURE).low > _VISIBLE else "not found",
                statistic=f"predicted: closer than without the release ({what.name})", value=mean(gains),
                worst_decile=float(np.quantile(gains, 0.9)), wins_at=wins_at(found, clip, what.name),
                budget={"examples": len(found)}, seconds=round(time.monotonic() - started, 2),
            )  # fmt: skip
        subject.clock.tell(done / len(subject.private), f"prediction, block {block}")


def _result(
    company: str,
    block: int,
    outcome: str,
    *,
    statistic: str = "predicted: closer than without the release",
    **more: object,
) -> Result:
    return Result.model_validate(
        {
            "attack": ATTACK.name, "adversary": "auditor", "view": "one release of the company", "block": block,
            "statement": "prediction", "statistic": statistic, "unit": "dB", "outcome": outcome,
            "company": company, **more,
        }
    )  # fmt: skip


ATTACK = Attack(
    name="posterior-prediction",
    title="Predicts from Fisher information and the public prior what the best attack would find, company by company",
    statement="prediction",
    adversaries=("auditor",),
    sees="the company's own examples and the block, before anything is released",
    needs="an example with real fields; one local step",
    cost="a tenth of a second an example",
    applies=_applies,
    run=_run,
    weight=0.5,
)
