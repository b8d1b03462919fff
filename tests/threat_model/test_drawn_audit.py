"""An audit and a report of a run whose cohorts are drawn each round: whose sums, whose examples, whose account."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.client import app as client_app
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.composition import run_epsilon
from fedblocks.privacy.group_privacy import group_epsilon
from fedblocks.server.events import Event, RoundFinished
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings, validated
from fedblocks.threat_model import made_up
from fedblocks.threat_model.attacks import made_up_for_one, round_membership
from fedblocks.threat_model.attacks.sum_membership import rounds_of
from fedblocks.threat_model.ceilings import releases_of
from fedblocks.threat_model.report.assemble import assemble
from fedblocks.threat_model.report.facts import read_facts
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.transcript import OpenedRelease

COMPANIES, PER_ROUND, ROUNDS = 14, 4, 4


@pytest.fixture(scope="module")
def drawn(small: SimulationSettings) -> SimulationSettings:
    raw = small.model_dump()
    raw["companies"] |= {"count": COMPANIES, "per_round": PER_ROUND, "examples": 40}
    raw["training"] |= {"rounds": ROUNDS, "expected_batch_size": 6, "sampling_rate": 0.15}
    raw["privacy"] |= {"epsilon": 1e12, "noise_multiplier": 3.0}
    return validated(SimulationSettings, raw)


@pytest.fixture(scope="module")
def run(drawn: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(drawn, tmp_path_factory.mktemp("drawn") / "run")
    simulate(run)
    return run


def summed(run: RunFolder) -> list[tuple[int, int, tuple[str, ...]]]:
    """Round, block and companies of each sum, as the run itself has recorded them."""
    return [
        (t["round"], t["block"], tuple(t["survivors"])) for row in run.metrics()[1:] for t in row["tasks"]
    ]


def test_the_cohort_of_a_block_is_that_of_its_last_sum(run: RunFolder) -> None:
    """Oracle: the run's own metrics. Would catch all companies of the run taken for a round's, with the noise of so
    many, and examples of companies of which nothing was released."""
    subject, sums = Subject.of(run), summed(run)
    for block in (0, 1):
        assert subject.cohort(block) == next(names for _, b, names in reversed(sums) if b == block)
        of = Counter(name for _, b, names in sums if b == block for name in names)
        assert rounds_of(subject, block) == releases_of(subject, block) == max(of.values())
    took_part = {name for _, _, names in sums for name in names}
    assert set(subject.private) == took_part
    assert len(took_part) < COMPANIES == len(subject.names)


def test_a_company_may_be_drawn_whenever_it_is_one_blocks_turn(run: RunFolder) -> None:
    """Would catch the releases of a block as the run's over the blocks: of 4 rounds in 12 over 2 blocks one company
    is drawn 4 times for block 0 with some seed."""
    subject, found = Subject.of(run), 0
    assert subject.plan.drawn is not None
    for seed in range(40):
        plan = subject.plan.changed(
            drawn=subject.plan.drawn.model_dump() | {"seed": seed},
            training=subject.plan.training.model_dump() | {"rounds": 12},
        )
        other = replace(subject, plan=plan)
        most = [releases_of(other, block) for block in (0, 1)]
        assert max(most) <= plan.most_releases <= sum(most)
        found += max(most) > -(-plan.most_releases // 2)
    assert found > 10


def test_membership_is_asked_of_the_sums_that_a_candidates_company_is_in(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch ratios of sums that a company was not in, which are of noise alone, and members of companies that
    were never drawn."""
    subject = Subject.of(run, block=0)
    sums = [names for _, b, names in summed(run) if b == 0]
    weights = {names: 10.0**i for i, names in enumerate(sums)}
    owners: list[str] = []
    original = Subject.victims_of

    def noted(self: Subject, companies: object, count: int, *names: object) -> object:
        found = original(self, companies, count, *names)  # type: ignore[arg-type]
        owners[:] = found[1]
        return found

    def ratios(
        subject: Subject, release: OpenedRelease, pool: object, n: int, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.full(2 * n, weights[release.survivors]), np.arange(2.0 * n)

    seen: list[np.ndarray] = []
    judged = round_membership.judged

    def watched(members: np.ndarray, others: np.ndarray, **more: object) -> object:
        seen.extend((members, others))
        return judged(members, others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Subject, "victims_of", noted)
    monkeypatch.setattr(round_membership, "_round", ratios)
    monkeypatch.setattr(round_membership, "judged", watched)
    (result,) = round_membership.ATTACK.run(subject)
    assert isinstance(result, Result)
    expected = [sum(weights[names] for names in sums if owner in names) for owner in owners]
    assert set(owners) <= {name for names in sums for name in names}
    assert min(expected) > 0
    assert len(set(expected)) > 1
    assert seen[0].tolist() == seen[1].tolist() == expected


def test_what_is_made_up_is_tried_on_the_companies_of_a_sum(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch attempts that end because some companies are not drawn, and a company of a drawn cohort that takes
    part in another one."""
    found = {each.statistic: each.outcome for each in made_up_for_one.ATTACK.run(Subject.of(run))}
    assert len(found) == len(made_up.ATTEMPTS)
    assert set(found.values()) == {"held"}
    with made_up.rebuilt(run, Subject.of(run).model, 0) as coordinator:
        assert tuple(sorted(coordinator.nodes)) == summed(run)[0][2]
        monkeypatch.setattr(client_app, "_check_cohort", lambda *given: None)
        attempt, _ = made_up.ATTEMPTS["another cohort in a later round"]
        assert attempt(coordinator) is None


def test_the_reports_account_is_of_the_company_that_is_drawn_most_often(
    run: RunFolder, drawn: SimulationSettings, tmp_path: Path
) -> None:
    """Oracle: the draw, composed here. Would catch the account of whoever was drawn so far, or of a company with
    fewer rounds, and bytes of all rounds charged to one company."""
    plan = run.plan()
    assert plan.drawn is not None
    most = max(Counter(name for _, _, names in summed(run) for name in names).values())
    facts = read_facts(run)
    report = assemble(run, facts, None, None)
    event = max(facts.spending, key=lambda s: s.spent).events[0]
    assert plan.most_releases == most < ROUNDS
    assert report.promise.epsilon == pytest.approx(run_epsilon(event.times(most), plan.delta))
    assert f"{most} releases" in report.promise.trust[0]
    assert "no privacy is gained" in report.promise.trust[0]
    assert report.costs.bytes_up_a_company * PER_ROUND * ROUNDS == report.costs.bytes_all_companies * most
    assert "companies drawn for a round" in report.left[0]
    # Before the company that is drawn most often has been drawn at all.
    names = [home.name for home in run.homes()]
    draws = (plan.drawn.model_copy(update={"seed": seed}) for seed in range(100))
    seed = next(
        d.seed
        for d in draws
        if max(d.rounds_of(n, names, ROUNDS) for n in d.cohort(1, names)) < d.most_rounds(ROUNDS)
    )
    early = prepare(drawn.model_copy(update={"seed": seed}), tmp_path / "early")

    def stop(told: Event) -> None:
        if isinstance(told, RoundFinished) and told.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(early, [stop])
    facts, whole = read_facts(early), event.times(early.plan().most_releases)
    unfinished = assemble(early, facts, None, None)
    assert max(s.spent for s in facts.spending) < run_epsilon(whole, plan.delta)
    assert unfinished.promise.epsilon == pytest.approx(run_epsilon(whole, plan.delta))
    assert unfinished.promise.groups[0].epsilon == pytest.approx(group_epsilon(whole, 2, plan.delta))
