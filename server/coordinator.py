"""The run around the rounds: join, then round after round, each checkpointed before the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flwr.serverapp import Grid

from ..blocks import block_parameters, build_model, merge
from ..blocks.state import ModelState
from .checkpoint import Checkpoint
from .cohort import join
from .dropout import LossyGrid
from .evaluation import Evaluator
from .optimizer import BlockOptimizer
from .round import run_round
from .run_folder import RunFolder

OnRound = Callable[[dict[str, Any]], None]


def coordinate(grid: Grid, run: RunFolder, on_round: OnRound = lambda row: None) -> Checkpoint:
    """Run, or go on with, a prepared run until its last round; returns the final state.

    `on_round` is called with each round's line of metrics. Interrupting it anywhere loses at most the round
    in flight, which is then repeated.
    """
    settings, plan = run.settings(), run.plan()
    checkpoint = Checkpoint.load(run.checkpoints)
    run.forget_metrics_after(checkpoint.round)
    if settings.companies.dropout.rate > 0:
        grid = LossyGrid(grid, settings.companies.dropout, settings.seed)
    model = build_model(plan.model, plan.noise).to(settings.device)
    blocks = list(checkpoint.model.blocks)
    merge(model, checkpoint.model.shared, *blocks)
    evaluator = Evaluator.of(run.evaluation, settings.seed)
    optimizers: dict[int, BlockOptimizer] = {}
    for b, block in enumerate(model.blocks):
        model.freeze_all_but(b)
        size = sum(p.numel() for _, p in block_parameters(block))
        optimizers[b] = BlockOptimizer(plan.training, size)
        optimizers[b].load(checkpoint.optimizers.get(b, {}))
    if checkpoint.round == 0 and not run.metrics():
        row = {"round": 0, "accuracy": evaluator.accuracy(model)}
        run.append_metrics(row)
        on_round(row)
    rounds = plan.training.rounds
    if checkpoint.round == rounds:
        return checkpoint

    cohort = join(grid, plan, checkpoint.model.shared, settings.companies.count)
    for round_ in range(checkpoint.round + 1, rounds + 1):
        started = time.perf_counter()
        b = assigned_block(round_, len(blocks))
        blocks[b], result = run_round(round_, b, model, blocks[b], optimizers[b], cohort, plan)
        row = asdict(result)
        if round_ % plan.training.evaluate_every == 0 or round_ == rounds:
            row["accuracy"] = evaluator.accuracy(model)
        row["seconds"] = round(time.perf_counter() - started, 4)
        checkpoint = Checkpoint(
            round_,
            ModelState(checkpoint.model.shared, tuple(blocks)),
            {b: optimizer.state() for b, optimizer in optimizers.items()},
        )
        # Metrics first: a line without its checkpoint is dropped on resume, a missing line could not be had.
        run.append_metrics(row)
        checkpoint.save(run.checkpoints)
        on_round(row)
    return checkpoint


def assigned_block(round_: int, blocks: int) -> int:
    """`sequential`: the whole cohort trains one block a round, first to last and again."""
    return (round_ - 1) % blocks
