"""What a plan costs, the noise for a target, the rounds that are left: figures for `fedblocks account`.

No data is loaded and nothing is written. A plan is a preset, a TOML file or a run's own; without one, single
figures come from the numbers alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..experiments.presets import load_settings
from ..privacy.accounting import at, calibrate, finite, guarantee, releases_within
from ..privacy.adversaries import seen_by_company
from ..privacy.composition import (
    RENYI,
    RUNS,
    Composition,
    composition,
    fitting,
    in_a_fresh_ledger,
    order_for,
    run_epsilon,
)
from ..privacy.events import (
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    TruncatedGaussianSteps,
)
from ..privacy.ledger_file import LedgerCopy
from ..privacy.ledger_room import remaining
from ..protocol.evaluation import evaluation_epsilon, whole_evaluation
from ..server.own_account import OwnAccount, own_accounts
from ..server.run_folder import RunFolder
from ..settings import RunSettings
from .ledger_tables import plain_guarantee, read_own


@dataclass(frozen=True)
class Planned:
    """A plan as the account sees it: `release_at(noise)` is one release, a round is `a_round` of them; `run` if it is
    that of a run."""

    release_at: Callable[[float], Event]
    noise_multiplier: float
    rounds: int
    reserve: int
    a_round: int
    delta: float
    target: float
    run: str = ""
    evaluations: Event | None = None  # all of the run's, which its ledger has as a run of their own


def figures(
    *,
    sampling_rate: float | None,
    noise_multiplier: float | None,
    epsilon: float | None,
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    batch_cap: int | None,
    examples: int | None,
    delta: float,
) -> dict[str, Any]:
    """What the numbers of the options alone amount to; InputError names the option that is wrong or missing."""
    if noise_multiplier is None and epsilon is None:
        raise InputError("--noise-multiplier", None, "give a preset, or --noise-multiplier or --epsilon")
    event_at = _mechanism(sampling_rate, steps, epochs, batch_size, batch_cap, examples)
    noise = noise_multiplier
    if noise is None:
        noise = calibrate(event_at, epsilon or 0.0, at(delta))
    event = event_at(noise)
    result = plain_guarantee(guarantee([event], delta)) | {
        "noise_multiplier": noise,
        "event": json.loads(event.to_json()),
    }
    if epsilon is not None:
        within = releases_within(epsilon, event.step, at(delta))
        result |= {"target": epsilon, f"{event.COUNT}_within": within}
    return result


def _mechanism(
    sampling_rate: float | None,
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    batch_cap: int | None,
    examples: int | None,
) -> Callable[[float], Event]:
    """The one mechanism that these numbers describe, by its noise."""
    ways = {"--sampling-rate": sampling_rate, "--epochs": epochs, "--batch-size": batch_size}
    if sum(value is not None for value in ways.values()) != 1:
        raise InputError("--sampling-rate", sampling_rate, f"give exactly one of {', '.join(ways)}")
    if batch_cap is not None and sampling_rate is None:
        raise InputError("--batch-cap", batch_cap, "goes with --sampling-rate")
    if (batch_size is None and batch_cap is None) != (examples is None):
        raise InputError("--examples", examples, "goes with --batch-size or --batch-cap")
    if epochs is not None:
        if steps is not None:
            raise InputError("--steps", steps, "does not go with --epochs")
        return lambda noise: EpochGaussian(noise_multiplier=noise, epochs=epochs)
    if steps is None:
        raise InputError("--steps", steps, "say how many")
    if batch_size is not None and examples is not None:
        return lambda noise: FixedSizeGaussianSteps(
            examples=examples, batch_size=batch_size, noise_multiplier=noise, steps=steps
        )
    rate = sampling_rate or 0.0
    if batch_cap is not None and examples is not None:
        return lambda noise: TruncatedGaussianSteps(
            sampling_rate=rate, noise_multiplier=noise, steps=steps, examples=examples, batch_cap=batch_cap
        )
    return lambda noise: GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def planned(
    preset: str | None, overrides: list[str], rounds: int | None, target: float | None, spent: Path | None
) -> Planned:
    """The plan of a preset or TOML file, else of the run folder `spent`, with its noise."""
    noise, name = None, ""
    if preset is not None:
        more = [] if rounds is None else [f"training.rounds={rounds}"]
        settings: RunSettings = load_settings(preset, [*overrides, *more])
    else:
        if overrides:
            raise InputError("--set", overrides[0], "needs a preset; a run keeps its own settings")
        if spent is None or not spent.is_dir():
            raise InputError("preset", None, "a ledger does not hold its plan: give a preset too")
        run = RunFolder.existing(spent)
        settings, noise, name = run.settings(), run.plan().noise_multiplier, run.plan().run
        if rounds is not None and rounds < 1:
            raise InputError("--rounds", rounds, "must be at least 1")
    training, privacy = settings.training, settings.privacy
    goal = target if target is not None else privacy.epsilon
    if goal is None:
        raise InputError("privacy.epsilon", None, "the plan adds no noise: give --target-epsilon")

    release_at = _release_at(settings)
    a_round = training.releases(settings.model.blocks) // (training.rounds + training.reserve)
    rounds = training.rounds if rounds is None else rounds
    # Found for the target where the plan leaves it open, or where a target was asked for.
    noise = None if target is not None else noise or privacy.noise_multiplier
    judged = whole_evaluation(settings.evaluation, settings.model, privacy, rounds)
    if (left := goal - evaluation_epsilon(judged, privacy.delta)) <= 0:
        raise InputError("evaluation", goal, "the evaluations alone cost more than this epsilon")
    noise = noise or calibrate(
        lambda z: release_at(z).times((rounds + training.reserve) * a_round),
        left,
        in_a_fresh_ledger(privacy.delta),
    )
    return Planned(release_at, noise, rounds, training.reserve, a_round, privacy.delta, goal, name, judged)


def _release_at(settings: RunSettings) -> Callable[[float], Event]:
    """One release of these settings by its noise."""
    # What integer noise costs, and what floating point does, goes by a block's size, which only a model can tell.
    import torch

    from ..blocks import build_model
    from ..blocks.build import network_of
    from ..experiments.simulation.preparation import make_plan
    from ..protocol.release import event_of, largest_block

    training, privacy = settings.training, settings.privacy
    shared = privacy.mode == "secure_step"
    with torch.device("meta"):  # its shapes alone: no memory, however large the model is
        alone = network_of(settings.model).blocks_alike and not shared
        model = build_model(settings.model, settings.noise, 0 if alone else None)
    size = largest_block(model, training)
    # Of shares of one noise, refuses what a run would be refused for.
    sums = make_plan(settings, model, "account").secure_aggregation if shared else settings.secure_aggregation
    bits, companies = sums.width(shared), settings.smallest_group if shared else None
    return lambda noise: event_of(training, privacy, noise, size, bits=bits, companies=companies)


def plan_figures(plan: Planned, spent: Path | None) -> dict[str, Any]:
    """The plan's epsilon and what it means, the rounds that fit, and what companies have left."""
    release = plan.release_at(plan.noise_multiplier)
    whole = release.times((plan.rounds + plan.reserve) * plan.a_round)
    judged = evaluation_epsilon(plan.evaluations, plan.delta)
    seen = None if plan.evaluations is None else seen_by_company(plan.evaluations)
    judged_by_company = evaluation_epsilon(seen, plan.delta)
    rule = composition(RUNS, plan.delta)
    first = replace(
        guarantee([whole], plan.delta),
        epsilon=run_epsilon(whole, plan.delta) + judged,
        epsilon_against_company=run_epsilon(seen_by_company(whole), plan.delta) + judged_by_company,
        composition=f"{rule}; the first run of a ledger",
    )
    result = plain_guarantee(first) | {
        "noise_multiplier": plan.noise_multiplier,
        "rounds": plan.rounds,
        "reserve": plan.reserve,
        "releases_a_round": plan.a_round,
        "steps": whole.steps,
        "release": json.loads(release.to_json()),
        "target": plan.target,
        "rounds_within": releases_within(
            max(0.0, plan.target - judged), release, in_a_fresh_ledger(plan.delta)
        )
        // plan.a_round,
    }
    if plan.evaluations is not None:
        result |= {"evaluations": json.loads(plan.evaluations.to_json()), "evaluations_epsilon": judged}
    if spent is not None and spent.is_dir() and not (run := RunFolder.existing(spent)).simulated():
        result["coordinators_account"] = [_known(each, plan, run) for each in own_accounts(run)]
    elif spent is not None:
        result["companies"] = [_left(each, plan, release) for each in _spenders(spent, plan)]
    return result


def _known(account: OwnAccount, plan: Planned, run: RunFolder) -> dict[str, Any]:
    """What the coordinator of real companies knows of one: an upper limit, since no ledger lies with it."""
    rows = run.metrics()
    return {
        "company": account.company,
        "releases_in_a_sum": account.summed,
        "releases_at_most": account.most,
        "times_missing": account.absent,
        "epsilon_at_most": finite(account.epsilon),
        "epsilon_at_most_against_company": finite(account.epsilon_against_company),
        "delta": plan.delta,
        "rounds_to_go": plan.rounds - (rows[-1]["round"] if rows else 0),
        "statement": None
        if account.statement is None
        else account.statement.model_dump(mode="json", exclude={"company", "run", "record", "signature"})
        | {"out_of_date": account.out_of_date},
        "source": "the coordinator's own account, of a ledger's first run; the company's ledger decides",
    }


@dataclass(frozen=True)
class _Spender:
    """A ledger, or none yet, and the ceiling over it."""

    company: str
    path: Path
    ceiling: float
    rule: Composition
    ledger: LedgerCopy | None


def _spenders(spent: Path, plan: Planned) -> list[_Spender]:
    """The companies of a run folder under their own ceilings, or one ledger under the plan's target."""
    # A policy is held against models, which take a second to import.
    from ..client.policy import load_policy

    if not spent.is_dir():
        copy = read_own(spent)
        return [_Spender(copy.header.company, spent, plan.target, copy.composition, copy)]
    policies = sorted(RunFolder.existing(spent).companies.glob("*/policy.toml"))
    if not policies:
        raise InputError("--spent", str(spent), "holds no companies; give one company's ledger")
    found = []
    for file in policies:
        policy, path = load_policy(file), file.parent / "ledger.sqlite"
        # A company that has released nothing has no ledger yet.
        copied = read_own(path) if path.exists() else None
        order = order_for(policy.epsilon_ceiling, policy.delta) if policy.composition == RENYI else None
        rule = copied.composition if copied else composition(policy.composition, policy.delta, order)
        found.append(_Spender(policy.company, path, policy.epsilon_ceiling, rule, copied))
    return found


def _left(spender: _Spender, plan: Planned, release: Event) -> dict[str, Any]:
    """What was spent, and the rounds of this plan that are left as a run of their own, or in the one begun."""
    copy, rule = spender.ledger, spender.rule
    left = (
        remaining(copy, release, spender.ceiling, plan.run)
        if copy
        else fitting(rule, [], release, spender.ceiling)
    )
    spent = copy.spent if copy else guarantee([], rule.delta)
    return {
        "company": spender.company,
        "ledger": str(spender.path),
        "releases": len(copy.rows) if copy else 0,
        "epsilon": finite(spent.epsilon),
        "epsilon_against_company": finite(spent.epsilon_against_company),
        "against": spent.against,
        "delta": rule.delta,
        "ceiling": spender.ceiling,
        "composition": str(rule),
        "rounds_left": left // plan.a_round,
    }
