"""A whole multi-company run in this process, and its summary."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...blocks.build import metric_of
from ...client.app import app as client_app
from ...client.company import Company
from ...client.kept_prefix import forget
from ...client.policy import load_policy
from ...errors import RunError
from ...privacy.accounting import Guarantee, finite
from ...privacy.secure_aggregation import computed_once
from ...server.coordinator import coordinate
from ...server.events import Subscriber
from ...server.run_folder import RunFolder
from ...server.run_lock import exclusive
from ...settings import Engine, Plan, Transport, read_simulation, without_protocol
from .dropout import LossyGrid
from .engines import check_engine, grid_of
from .loopback import loopback_grid
from .personalising import personalised
from .unprotected import NO_GUARANTEE, unprotected


def simulate(
    run: RunFolder,
    subscribers: Sequence[Subscriber] = (),
    *,
    transport: Transport = "grid",
    engine: Engine = "threads",
    workers: int | None = None,
) -> dict[str, Any]:
    """Run, or go on with, a prepared run in this process; returns and writes its summary.

    `transport`: "grid", messages by function calls, or "grpc", over the data plane on loopback; `engine`: where
    companies compute, `workers` of them at once (none: as the settings have it). The result is the same.
    `subscribers`: as for `coordinate`.

    Raises: InputError for an engine that the run cannot have.
    """
    check_engine(read_simulation(run.path), engine, workers, transport)
    with exclusive(run.path):
        return _simulate(run, subscribers, transport, engine, workers)


def _simulate(
    run: RunFolder,
    subscribers: Sequence[Subscriber],
    transport: Transport,
    engine: Engine,
    workers: int | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    heldout = run.evaluation / "heldout.npz"
    if not heldout.is_file():
        raise RunError(f"{heldout} is missing; put it back from a copy")
    settings = read_simulation(run.path)
    at_once, over_grpc = workers or settings.workers, transport == "grpc"
    try:
        if settings.protocol == "off":
            with unprotected(run, at_once, processes=engine == "processes") as sums:
                coordinate(sums, run, subscribers)
        else:
            companies = loopback_grid(run, client_app) if over_grpc else grid_of(run, engine, at_once)
            with computed_once(), companies as grid:
                dropout = settings.companies.dropout
                lossy = LossyGrid(grid, dropout, settings.seed) if dropout.rate > 0 else grid
                coordinate(lossy, run, subscribers)
    finally:
        for home in run.homes():
            forget(home)  # a deployed company does at the end of a run
    result = summary(run) | personalised(run)
    result["seconds"] = round(time.perf_counter() - started, 2)
    earlier = run.read_json("result.json") or {}
    run.write_json("result.json", earlier | result)
    return result


def summary(run: RunFolder) -> dict[str, Any]:
    """What a finished run achieved and what it cost; every figure is read back from the run's own files."""
    rounds = run.metrics()[1:]
    rows = [row for row in run.metrics() if "quality" in row]
    first, last = rows[0]["quality"], rows[-1]["quality"]
    plan = run.plan()
    metric = metric_of(plan.model).name
    return {
        "run": run.path.name,
        "folder": str(run.path),
        "family": plan.model.family,
        "metric": metric,
        "rounds": rows[-1]["round"],
        "rounds_done": sum(row["status"] == "done" for row in rounds),
        "rounds_failed": dict(Counter(row["status"] for row in rounds if row["status"] != "done")),
        "groups_flagged": sum(effect["flagged"] for row in rounds for effect in row.get("influence", ())),
        "rounds_past_the_guard": sum(row.get("guard", {}).get("flagged", False) for row in rounds),
        "refusals": dict(Counter(code for row in rounds for _, code in row["absent"].values())),
        f"{metric}_public_model": first["heldout"][-1],
        metric: last["heldout"][-1],
        f"{metric}_by_block": last["heldout"],
        f"{metric}_on_public_data": last["public"][-1],
        **_guarantee(run, plan, rounds),
        "noise_multiplier": plan.noise_multiplier,
    }


def _guarantee(run: RunFolder, plan: Plan, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the companies' own ledgers say; where there are none, that."""
    if without_protocol(run.path):
        return {
            "protocol": "off",
            "guarantee": NO_GUARANTEE,
            "epsilon": {},
            "unit_of_privacy": "none",
        }
    spent = _spent(run)
    return {
        "epsilon": _finite(spent),
        **_against(spent.values()),
        **_shares(plan, rounds, spent),
        "delta": plan.delta,
        "unit_of_privacy": f"{plan.training.unit or 'one example'} of one company, add or remove"
        if plan.private
        else "none",
    }


def _against(spent: Collection[Guarantee]) -> dict[str, Any]:
    """Whom the epsilons hold against; and what holds against a company that takes part, where that is more."""
    found: dict[str, Any] = {"epsilon_holds_against": " / ".join(sorted({each.against for each in spent}))}
    if any(each.epsilon_against_company > each.epsilon for each in spent):
        found["epsilon_against_a_company"] = finite(max(each.epsilon_against_company for each in spent))
    return found


def _shares(plan: Plan, rounds: Sequence[dict[str, Any]], spent: Mapping[str, Guarantee]) -> dict[str, Any]:
    """Where cohorts are drawn: how many rounds the companies were in, and what they have spent."""
    if plan.drawn is None:
        return {}
    of = Counter(name for row in rounds for name in {*row["survivors"], *row["absent"]})
    return {
        "companies_per_round": plan.drawn.per_round,
        "rounds_of_a_company": spread([of[name] for name in spent]),
        "epsilon_of_a_company": spread([each.epsilon for each in spent.values()]),
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """The least, the middle and the largest."""
    return {
        "min": finite(min(values)),
        "median": finite(statistics.median(values)),
        "max": finite(max(values)),
    }


def epsilon_by_company(run: RunFolder) -> dict[str, float | None]:
    """What each simulated company's own ledger says it has spent; None after a release without noise."""
    return _finite(_spent(run))


def _finite(spent: Mapping[str, Guarantee]) -> dict[str, float | None]:
    return {name: finite(each.epsilon) for name, each in spent.items()}


def _spent(run: RunFolder) -> dict[str, Guarantee]:
    spent = {}
    for home in run.homes():
        company = Company(home, load_policy(home / "policy.toml"))
        with company.ledger() as ledger:
            spent[company.name] = ledger.spent()
    return spent
