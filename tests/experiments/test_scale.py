"""Cohorts drawn each round from more companies: who is drawn, what each is charged, and what changes no bit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedblocks.blocks import digest
from fedblocks.blocks.examples import Examples
from fedblocks.client.app import _check_cohort, app
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError, PolicyRefusal, ProtocolError
from fedblocks.experiments.bench.scale import exponent, measure, summary
from fedblocks.experiments.simulation.partition import deal, held_out_pool
from fedblocks.experiments.simulation.planning import for_companies
from fedblocks.experiments.simulation.preparation import prepare, read_inputs
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.composition import run_epsilon
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.secure_aggregation import Session
from fedblocks.server.attendance import Patience
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.events import Event, RoundFinished
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import DrawnCohorts, SimulationSettings, validated

COMPANIES, PER_ROUND, ROUNDS = 12, 4, 6


def changed(settings: SimulationSettings, **changes: object) -> SimulationSettings:
    """Changed and validated anew; `companies__count`, or `workers` of no part."""
    raw: dict[str, Any] = settings.model_dump(mode="json")
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (raw[part] if part else raw)[name] = value
    return validated(SimulationSettings, raw)


@pytest.fixture(scope="module")
def many(small: SimulationSettings) -> SimulationSettings:
    return changed(
        small,
        companies__count=COMPANIES,
        companies__per_round=PER_ROUND,
        companies__examples=40,
        training__rounds=ROUNDS,
    )


@pytest.fixture(scope="module")
def prepared(many: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return prepare(many, tmp_path_factory.mktemp("scale") / "run")


@pytest.fixture(scope="module")
def finished(
    prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    run = copy_of(prepared, tmp_path_factory.mktemp("finished") / "run")
    return run, simulate(run)


def copy_of(run: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(run.path, path)
    return RunFolder(path)


def final_digest(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def test_cohorts_are_drawn_uniformly_without_replacement() -> None:
    """Would catch a draw that prefers some companies or pairs of them, and one that takes a company twice."""
    drawn, rounds = DrawnCohorts(seed=3, companies=10, per_round=4), 4000
    cohorts = [drawn.places(round_) for round_ in range(1, rounds + 1)]
    assert all(len(set(cohort)) == 4 and cohort == sorted(cohort) for cohort in cohorts)
    each = np.bincount(np.concatenate(cohorts), minlength=10)
    pairs = Counter((a, b) for cohort in cohorts for a in cohort for b in cohort if a < b)
    # Without replacement the counts vary less than independent ones: by 1 - 4/10 of them, each company's.
    assert stats.chi2.sf(float(((each - 400 * 4) ** 2 / (400 * 4 * 0.6)).sum()) * 0.9, 9) > 1e-4
    expected = rounds * 4 * 3 / (10 * 9)
    assert len(pairs) == 45
    assert max(abs(n - expected) for n in pairs.values()) < 5 * expected**0.5


def test_a_draw_follows_from_seed_and_round_and_not_from_the_order_of_names() -> None:
    """Would catch a draw from a stream, which a resumed run would begin anew."""
    drawn, names = DrawnCohorts(seed=3, companies=9, per_round=3), [f"c{i}" for i in range(9)]
    forwards = [drawn.cohort(round_, names) for round_ in range(1, 30)]
    assert forwards == [drawn.cohort(round_, names[::-1]) for round_ in range(1, 30)]
    assert forwards[::-1] == [drawn.cohort(round_, names) for round_ in range(29, 0, -1)]
    other = drawn.model_copy(update={"seed": 4})
    assert forwards != [other.cohort(round_, names) for round_ in range(1, 30)]
    counts = Counter(name for cohort in forwards for name in cohort)
    assert {name: drawn.rounds_of(name, names, 29) for name in names} == {
        name: counts[name] for name in names
    }
    assert drawn.most_rounds(29) == max(counts.values())


def test_each_company_is_charged_for_the_rounds_that_it_trained_in(
    many: SimulationSettings, finished: tuple[RunFolder, dict[str, Any]]
) -> None:
    """Would catch a company that pays for rounds of others, or trains in more than it has paid for."""
    run, result = finished
    assert result["rounds_done"] == ROUNDS
    trained = Counter(name for row in run.metrics()[1:] for name in row["survivors"])
    assert all(len(row["survivors"]) == PER_ROUND for row in run.metrics()[1:])
    assert len(trained) > PER_ROUND
    for home in run.homes():
        rows = read_ledger(home / "ledger.sqlite").rows
        own = trained[home.name]
        assert [row.round for row in rows] == [
            row["round"] for row in run.metrics()[1:] if home.name in row["survivors"]
        ]
        assert {row.planned for row in rows} == ({own} if own else set())
        cost = run_epsilon(rows[0].event.times(own), many.privacy.delta) if own else 0.0
        assert result["epsilon"][home.name] == pytest.approx(cost)
    assert many.privacy.epsilon is not None
    assert max(result["epsilon"].values()) == pytest.approx(many.privacy.epsilon, rel=0.01)
    assert result["epsilon_of_a_company"]["max"] == max(result["epsilon"].values()) <= many.privacy.epsilon
    assert result["rounds_of_a_company"] == {
        "min": min(trained[home.name] for home in run.homes()),
        "median": float(np.median([trained[home.name] for home in run.homes()])),
        "max": max(trained.values()),
    }


def test_a_resumed_run_draws_the_same_cohorts(
    prepared: RunFolder, finished: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a draw, or a join, that depends on what this process has done before."""
    run = copy_of(prepared, tmp_path / "run")

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(run, [stop])
    simulate(run)
    assert final_digest(run) == final_digest(finished[0])
    assert [row.get("survivors") for row in run.metrics()] == [
        row.get("survivors") for row in finished[0].metrics()
    ]


def test_nothing_that_only_logs_or_evaluates_changes_a_bit(
    many: SimulationSettings, finished: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch noise that follows from the whole plan, and an evaluation that draws from a training's stream."""
    other = changed(
        many, training__evaluate_every=4, training__message_timeout=77.0, releases=False, workers=3,
        data__test_examples=11, audit__minutes=1.0, failed_rounds=1,
    )  # fmt: skip
    run = prepare(other, tmp_path / "other")
    told: list[Event] = []
    simulate(run, [told.append])
    assert [row["round"] for row in run.metrics() if "quality" in row] == [0, 4, 6]
    assert len(told) > ROUNDS
    assert any(finished[0].releases.glob("*"))
    assert not any(run.releases.glob("*"))
    assert final_digest(run) == final_digest(finished[0])
    # The control: the digest is of something that training changes.
    assert final_digest(run) != digest(
        *(lambda m: (m.shared, *m.blocks))(Checkpoint.load(run.checkpoints, 0).model)
    )


def test_a_company_takes_part_in_the_cohort_that_is_drawn_alone(
    finished: tuple[RunFolder, dict[str, Any]],
) -> None:
    """Would catch a coordinator that chooses cohorts: the difference of two sums may isolate a company."""
    run, _ = finished
    plan, names = run.plan(), [home.name for home in run.homes()]
    assert plan.drawn is not None
    drawn = plan.drawn.cohort(2, names)
    home = run.companies / drawn[0]
    company = Company(home, load_policy(home / "policy.toml"))
    session = Session(
        run=plan.run, round=2, label="block-1", model_digest=bytes(32), settings_digest=bytes(32), cohort=drawn,
        threshold=3, length=10, bits=22,
    )  # fmt: skip
    _check_cohort(company, plan, session)
    stranger = next(name for name in names if name not in drawn)
    others = (tuple(sorted((*drawn[1:], stranger))), drawn[:-1], tuple(sorted((*drawn, stranger))))
    for cohort in (*others, plan.drawn.cohort(3, names)):
        with pytest.raises(ProtocolError, match="cohort that the plan draws"):
            _check_cohort(company, plan, replace(session, cohort=cohort))


def test_real_companies_refuse_drawn_cohorts_by_name(
    many: SimulationSettings,
    prepared: RunFolder,
    finished: tuple[RunFolder, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Would catch a deployment whose cohorts change with every round."""
    run, _ = finished
    policy = load_policy(run.homes()[0] / "policy.toml")
    policy.check(run.plan())
    with pytest.raises(PolicyRefusal, match="simulations alone"):
        policy.model_copy(update={"simulation_seed": None}).check(run.plan())
    with pytest.raises(InputError, match=r"companies\.per_round"):
        for_companies(many, run.roster())
    # A transport that does not know who is where, and one of companies that come and go.
    run = copy_of(prepared, tmp_path / "run")
    with grid_of() as grid:
        with pytest.raises(InputError, match=r"companies\.count.*12 are not connected"):
            coordinate(grid, run)
        with pytest.raises(InputError, match=r"companies\.per_round.*simulate"):
            coordinate(grid, run, patience=Patience())


@contextmanager
def grid_of() -> Iterator[InProcessGrid]:
    grid = InProcessGrid(app, COMPANIES, {})
    try:
        yield grid
    finally:
        grid.close()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"companies__per_round": COMPANIES + 1}, "companies.per_round"),
        ({"companies__per_round": 2}, "companies.per_round"),
        ({"companies__count": 10_001}, "companies.count"),
        ({"companies__count": 1001, "companies__per_round": None}, "companies.count"),
        ({"companies__per_round": 4, "privacy__colluders": 4}, "privacy.colluders"),
        ({"evaluation": {"noise_multiplier": 30.0}}, "companies.per_round"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_field(
    many: SimulationSettings, changes: dict[str, Any], field: str
) -> None:
    """Would catch rules that look at all companies where a sum is of those of one round."""
    with pytest.raises(InputError) as refused:
        changed(many, **changes)
    assert field in str(refused.value)


def test_no_company_trains_on_what_another_holds_out(many: SimulationSettings) -> None:
    """Would catch quality that is measured on examples which somebody trained on."""
    inputs = read_inputs(many)
    assert {len(data) for data in inputs.companies.values()} == {32}
    rows = {name: set(own.tolist()) for name, own in inputs.rows.items()}
    assert all(len(own) == 32 for own in rows.values())
    assert len(set.union(*rows.values())) < 32 * COMPANIES  # 200 examples: some are at several companies
    trained = {digest({"x": each}) for data in inputs.companies.values() for each in data.inputs}
    held = {digest({"x": each}) for each in inputs.heldout.inputs}
    assert len(held) > 8
    assert not trained & held


def test_a_small_alpha_skews_what_a_company_draws(many: SimulationSettings) -> None:
    """Would catch draws that ignore the concentration, or fail where a class has no weight left."""
    labels = torch.arange(400) % 10
    data = Examples(torch.zeros(400, 1, 8, 8), labels)

    def classes(alpha: float) -> float:
        parts = deal(data, many.model, many.companies.model_copy(update={"alpha": alpha}), 0)
        out = held_out_pool(data, many.model, many.companies.holdout, 0)
        assert all(len(part) == len(set(part.tolist())) == 40 and int(out[part].sum()) == 8 for part in parts)
        return float(np.mean([len(np.unique(labels[part])) for part in parts]))

    assert classes(0.01) < 5 < 9 < classes(100.0)


def test_an_invented_company_alone_keeps_records_that_no_sync_forces_to_disk(
    finished: tuple[RunFolder, dict[str, Any]],
) -> None:
    """Would catch a real company whose steps or ledger a power cut may undo."""
    home = finished[0].homes()[0]
    policy = load_policy(home / "policy.toml")
    invented, real = (Company(home, policy.model_copy(update={"simulation_seed": s})) for s in (0, None))

    def synchronous(company: Company) -> tuple[int, int]:
        with company.steps._file() as steps, company.ledger() as ledger:
            found = [
                c.execute("PRAGMA synchronous").fetchone()[0] for c in (steps, ledger._store._connection)
            ]
        return found[0], found[1]

    assert synchronous(invented) == (0, 0)
    assert synchronous(real) == (3, 2)


def test_an_exponent_is_the_slope_over_companies() -> None:
    """Would catch a figure that does not tell linear from quadratic growth."""
    rows = [
        {"companies": n, "per_round": n, "seconds_per_round": 0.01 * n**1.5, "processor_seconds_per_round": 0.02 * n,
         "prepare_seconds": 1.0, "peak_mib": 700.0}
        for n in (5, 20, 100)
    ]  # fmt: skip
    drawn = rows[1] | {"companies": 1000, "seconds_per_round": 1.3 * rows[1]["seconds_per_round"]}
    found = summary([*rows, drawn])
    assert (found["exponent"], found["processor_exponent"]) == (1.5, 1.0)
    assert (found["ratio_1000_to_20"], found["peak_mib_1000"]) == (1.3, 700.0)
    assert exponent(rows[:1], "seconds_per_round") != exponent(rows, "seconds_per_round")


@pytest.mark.slow
def test_a_thousand_companies_take_no_more_memory_than_their_cohorts() -> None:
    """Would catch memory that grows with companies which take no part. Times are the bench's alone."""
    found = measure(rounds=2, drawn_rounds=20, all_of=(5, 20), drawn_of=(1000,))
    assert found["peak_mib_1000"] < 2048
