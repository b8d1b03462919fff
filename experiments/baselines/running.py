"""A baseline without federation as a run: its folder has metrics, summary and, of pooled data, the final model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...blocks import Denoiser, split
from ...blocks.build import metric_of
from ...blocks.examples import Examples
from ...server.checkpoint import Checkpoint
from ...server.evaluation import Evaluator
from ...server.events import Event, RoundFinished, RunFinished, RunStarted, Subscriber
from ...server.run_folder import RunFolder
from ...server.run_lock import exclusive
from ..simulation.simulate import summary
from .judged import fits_few, quality_of
from .one_place import Where, public_model, trained_in_one_place
from .rules import Baseline

_WHERE: dict[str, Where] = {"central": "pooled", "alone": "alone"}


def run_in_one_place(
    run: RunFolder, baseline: Baseline, subscribers: Sequence[Subscriber] = ()
) -> dict[str, Any]:
    """Train a prepared run's public model on all companies' examples together ("central"), or on each company's own
    ("alone"); returns and writes the summary.

    Of "alone" every figure is the mean over the companies' models, which are not kept. An interrupted one begins
    anew. `subscribers`: as for `coordinate`.
    """
    with exclusive(run.path):
        return _Running(run, baseline, subscribers).result()


class _Running:
    def __init__(self, run: RunFolder, baseline: Baseline, subscribers: Sequence[Subscriber]) -> None:
        self._run, self._baseline, self._subscribers = run, baseline, subscribers
        self._settings, self._plan = run.settings(), run.plan()
        self._evaluator = Evaluator.of(run.evaluation, self._settings.seed, self._plan.model)
        self._began = time.perf_counter()

    def result(self) -> dict[str, Any]:
        run, rounds, seed = self._run, self._plan.training.rounds, self._settings.seed
        run.forget_metrics_after(-1)
        self._tell(RunStarted(rounds, done=0))
        self._note({"round": 0, "quality": self._evaluator.quality(public_model(run).to(self._device))})
        ended: list[dict[str, list[float]]] = []
        own: dict[str, float] = {}
        on_round = self._on_round if self._baseline == "central" else lambda round_, model: None
        for trained in trained_in_one_place(
            run, self._plan, _WHERE[self._baseline], seed=seed, device=self._device, on_round=on_round
        ):
            ended.append(self._evaluator.quality(trained.model))
            for name in trained.companies if fits_few(run) else ():
                own[name] = quality_of(trained.model, Examples.load(run.own_heldout / f"{name}.npz"), seed)
            last = trained.model
        self._note(self._row(rounds, {name: _mean([each[name] for each in ended]) for name in ended[0]}))
        if self._baseline == "central":
            nothing: dict[int, dict[str, Tensor]] = {
                b: {} for b in range(self._plan.model.blocks)
            }  # does not go on
            Checkpoint(rounds, split(last.cpu()), nothing).save(run.checkpoints)
        self._tell(RunFinished(rounds))
        metric = metric_of(self._plan.model).name
        result = {"baseline": self._baseline} | summary(run) | {f"{metric}_by_company": own}
        result["seconds"] = round(time.perf_counter() - self._began, 2)
        run.write_json("result.json", result)
        return result

    @property
    def _device(self) -> str:
        return self._settings.device

    def _on_round(self, round_: int, model: Denoiser) -> None:
        training = self._plan.training
        if round_ == training.rounds:
            return  # noted with the end
        due = round_ % training.evaluate_every == 0
        self._note(self._row(round_, self._evaluator.quality(model) if due else None))

    def _row(self, round_: int, quality: dict[str, list[float]] | None) -> dict[str, Any]:
        """As a run's coordinator writes it; nobody was summed."""
        row = {"round": round_, "status": "done", "survivors": [], "absent": {}, "tasks": []}
        return row if quality is None else row | {"quality": quality}

    def _note(self, row: dict[str, Any]) -> None:
        self._run.append_metrics(row)
        self._tell(RoundFinished(row))

    def _tell(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)


def _mean(chains: list[list[float]]) -> list[float]:
    """Of each block's value over the models."""
    return [statistics.fmean(values) for values in zip(*chains, strict=True)]
