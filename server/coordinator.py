"""The run around the rounds: join, then round after round, each checkpointed before the next."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from flwr.serverapp import Grid

from ..blocks import Denoiser, build_model, merge
from ..blocks.state import ModelState, State, check_part
from ..errors import FedblocksError, InputError, RunError
from ..protocol.release import blocks_read
from ..settings import is_simulation
from .assignment import Task, assign
from .attendance import Attendance, Patience
from .checkpoint import Checkpoint
from .cohort import Cohort, join
from .delivery import deliver
from .drawn_cohort import DrawnCohort
from .evaluation import Evaluator
from .events import Event, ModelDelivered, RoundFinished, RunFinished, RunStarted, Subscriber
from .federated_evaluation import evaluate
from .guard import STOPPED, Guard, Look, first_loss
from .influence import leave_group_out
from .optimizer import BlockOptimizer
from .plain_sums import PlainSums
from .release_log import OpenedSum, OpenedSums, ReleaseLog
from .representation import Representation, measure
from .round import RoundResult, run_round
from .run_folder import RunFolder
from .run_lock import exclusive

log = logging.getLogger("fedblocks.run")
_SMALL_FILES = 1 << 20  # bytes


def coordinate(
    grid: Grid | PlainSums,
    run: RunFolder,
    subscribers: Sequence[Subscriber] = (),
    *,
    wait: float = 60.0,
    patience: Patience | None = None,
) -> Checkpoint:
    """Run, or go on with, a prepared run until its last round; returns the final state.

    `subscribers` are told the run's events: RunStarted, each RoundFinished, with real companies ModelDelivered,
    RunFinished. Interrupting it anywhere loses at most the round in flight, which is then repeated; a subscriber that
    raises interrupts it between rounds. `wait`: seconds for the companies to come up. `patience`: for real companies,
    which come and go: `wait` is then not used, and a round that fails is begun anew; without it, it is noted and the
    next one begins. `grid`: or sums without the protocol, of a simulation.

    Raises:
        RunError: another process is at it, or companies are missing.
        ProtocolError: "rounds_failed", too many in a row; "public_loss_rose", past the guard's limit; or the code
            with which a company refuses the plan.
    """
    with exclusive(run.path):
        return _coordinate(grid, run, subscribers, wait, patience)


def _coordinate(
    grid: Grid | PlainSums,
    run: RunFolder,
    subscribers: Sequence[Subscriber],
    wait: float,
    patience: Patience | None,
) -> Checkpoint:
    def tell(event: Event) -> None:
        for subscriber in subscribers:
            subscriber(event)

    settings, plan = run.settings(), run.plan()
    checkpoint = Checkpoint.load(run.checkpoints)
    if len(checkpoint.model.blocks) != plan.model.blocks:
        raise RunError(f"{run.checkpoints}: not of a model of {plan.model.blocks} blocks, as the plan is")
    run.forget_metrics_after(checkpoint.round)
    wanted = settings.releases
    if wanted is None:  # for an audit
        wanted = is_simulation(run.path) and not isinstance(grid, PlainSums)
    log = ReleaseLog(run.releases)
    logged = log.begins(wanted=wanted, done=checkpoint.round)
    model = build_model(plan.model, plan.noise).to(settings.device)
    blocks = list(checkpoint.model.blocks)
    # Companies would refuse any other state, one after the other, each in its own round.
    try:
        check_part(model, checkpoint.model.shared, None)
        for b, block in enumerate(blocks):
            check_part(model, block, b)
    except RunError as error:
        raise RunError(f"{run.checkpoints}: not the state of round {checkpoint.round} ({error})") from None
    merge(model, checkpoint.model.shared, *blocks)
    evaluator = Evaluator.of(run.evaluation, settings.seed, plan.model)
    names = [trainable(model, b, plan.training.interface) for b in range(len(blocks))]
    optimizers = [
        BlockOptimizer(plan.training, sum(blocks[b][name].numel() for name in names[b]))
        for b in range(len(blocks))
    ]
    for b, optimizer in enumerate(optimizers):
        optimizer.load(checkpoint.optimizers.get(b, {}))
    guard = Guard.of(settings, plan, evaluator)
    rounds = plan.training.rounds
    tell(RunStarted(rounds, done=checkpoint.round))
    if checkpoint.round == 0 and not run.metrics():
        row: dict[str, Any] = {"round": 0, "quality": evaluator.quality(model)}
        if guard.on:
            row["public_loss"] = guard.finite_loss(model)
        run.append_metrics(row)
        tell(RoundFinished(row))
    first = first_loss(run)
    shared, expected = checkpoint.model.shared, settings.companies.count
    if plan.drawn is not None and patience is not None:
        rule = "cohorts are drawn each round in `fedblocks simulate` alone"
        raise InputError("companies.per_round", plan.drawn.per_round, rule)
    public = evaluator.sets["public"]
    if checkpoint.round == rounds:
        if Representation.read(run) is None:  # its end was cut short
            measure(run, plan, model, checkpoint, public, guard, settings.seed)
        if patience is not None and not isinstance(grid, PlainSums):  # for who was missing when it ended
            last = Attendance.cohort_of(grid, run, plan, shared)
            _deliver(run, last, patience.deliver, patience, tell)
        tell(RunFinished(rounds))
        return checkpoint

    attendance: Attendance | None = None
    kept: OpenedSums | None = None
    drawing: DrawnCohort | None = None
    cohort: Cohort | PlainSums
    if isinstance(grid, PlainSums):
        cohort = grid
    elif patience is None and plan.drawn is not None:
        drawing = DrawnCohort(grid, plan, plan.drawn, shared, run.roster())
    elif patience is None:
        cohort = join(grid, plan, shared, run.roster(), expected, wait=wait)
    else:
        attendance = Attendance(grid, run, plan, shared, expected=expected, patience=patience, tell=tell)
        attendance.gather()
        cohort = attendance.cohort
        kept = OpenedSums(ReleaseLog(run.opened), plan)
    keeps_moments = settings.influence.discards or settings.guard.stops
    for round_ in range(checkpoint.round + 1, rounds + 1):
        started = time.perf_counter()
        if drawing is not None:
            cohort = drawing.of(round_)
        # All blocks of a round start from the state that the round began with.
        before = tuple(blocks)
        moments = [optimizer.state() for optimizer in optimizers] if keeps_moments else []

        def train(
            task: Task,
            round_: int = round_,
            before: tuple[State, ...] = before,
            cohort: Cohort | PlainSums = cohort,
        ) -> tuple[RoundResult, OpenedSum | None]:
            b = task.block
            states = {i: before[i] for i in blocks_read(plan, b)}
            attempt = "" if patience is None else secrets.token_hex(8)
            state, result, opened = run_round(
                round_, task, states, names[b], optimizers[b], cohort, plan, attempt, kept
            )
            blocks[b] = state
            return result, opened

        tasks = assign(
            round_, cohort.cohort(round_) if isinstance(cohort, PlainSums) else cohort.companies, plan
        )
        if (
            kept is not None
        ):  # what companies have paid for must find room, so nobody trains before there is some
            sizes = [tensor.nbytes for task in tasks for tensor in blocks[task.block].values()]
            kept.hold_room(sum(sizes) + _SMALL_FILES)
        # Disjoint groups go at once; a company that trains several blocks has one message in flight.
        at_once = len(tasks) if plan.training.assignment == "parallel" else 1
        with ThreadPoolExecutor(at_once) as pool:
            if attendance is None:
                trained = list(pool.map(train, tasks))
            else:
                trained = attendance.complete(round_, tasks, lambda left: list(pool.map(train, left)))
        results = [result for result, _ in trained]
        row = summary_of(round_, results)
        discarded = set()
        if settings.influence.leave_group_out != "off":
            summed = [(r.block, r.survivors) for r in results if r.status == "done"]
            quality = partial(evaluator.public, model)
            effects = leave_group_out(model, before, blocks, summed, quality, settings.influence)
            row["influence"] = [asdict(effect) for effect in effects]
            for effect in effects:
                if effect.discarded:
                    discarded.add(effect.block)
                    blocks[effect.block] = before[effect.block]
                    optimizers[effect.block].load(moments[effect.block])
        evaluated = round_ % plan.training.evaluate_every == 0 or round_ == rounds
        look: Look | None = None
        if first is not None and guard.due(evaluated=evaluated):
            merge(model, *blocks)
            look = guard.look(round_, model, first)
            row["guard"] = look.to_json()
        stopped = look is not None and look.ends_the_run
        if stopped:
            row["status"] = STOPPED
            discarded |= {task.block for task in tasks}
            for b in discarded:
                blocks[b] = before[b]
                optimizers[b].load(moments[b])
        if evaluated or stopped:
            merge(model, *blocks)
            row["quality"] = evaluator.quality(model)
        evaluation = None if stopped else plan.evaluation
        if evaluation is not None and evaluation.due(round_, rounds) and isinstance(cohort, Cohort):
            groups = list(dict.fromkeys(task.companies for task in tasks))
            attempt = "" if patience is None else secrets.token_hex(8)
            row["evaluation"] = evaluate(round_, groups, blocks, cohort, plan, attempt).to_json()
        row["seconds"] = round(time.perf_counter() - started, 4)
        checkpoint = Checkpoint(
            round_,
            ModelState(checkpoint.model.shared, tuple(blocks)),
            {b: optimizer.state() for b, optimizer in enumerate(optimizers)},
        )
        for result, opened in trained if logged else ():
            if opened is not None:
                status = "applied" if result.status == "done" else result.status
                status = "discarded" if result.block in discarded else status
                log.write(plan, round_, result.block, opened, status)
        # Metrics first: a line without its checkpoint is dropped on resume, a missing line could not be had.
        # Subscribers last: what they are told stays, whatever they do.
        run.append_metrics(row)
        checkpoint.save(run.checkpoints)
        if kept is not None:
            kept.forget()
        tell(RoundFinished(row))
        if round_ == rounds or stopped:
            measure(run, plan, model, checkpoint, public, guard, settings.seed)
        if look is not None and look.ends_the_run:
            raise look.error()
    if patience is not None and isinstance(cohort, Cohort):
        _deliver(run, cohort, patience.linger, patience, tell)
    tell(RunFinished(rounds))
    return checkpoint


def _deliver(run: RunFolder, cohort: Cohort, wait: float, patience: Patience, tell: Subscriber) -> None:
    """The run is done, whatever comes of this."""
    if not cohort.channels:
        return
    try:
        found = deliver(cohort.grid, run, cohort, wait=wait, poll=patience.poll)
    except (FedblocksError, OSError) as error:
        log.error("the final model was not delivered: %s", error)
        return
    tell(ModelDelivered(found.has, found.missing))


def summary_of(round_: int, results: list[RoundResult]) -> dict[str, Any]:
    """A round's line of metrics; it failed if one of its sums did."""
    return {
        "round": round_,
        "status": next((r.status for r in results if r.status != "done"), "done"),
        "survivors": sorted({name for r in results for name in r.survivors}),
        "absent": {name: why for r in results for name, why in r.absent.items()},
        "tasks": [asdict(r) for r in results],
    }


def trainable(model: Denoiser, block: int, interface: bool) -> list[str]:
    """Names in the model's state of what a round trains of a block, in the order of its updates."""
    return [f"blocks.{block}.{name}" for name in model.trainable(block, interface)]
