"""Membership in the sums that a run has opened: who the members are, the attack is told by nobody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks import round_membership
from fedblocks.threat_model.attacks.round_membership import ATTACK, chosen_rounds
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.membership.rounds import Background, OpenedSum, log_ratios
from fedblocks.threat_model.membership.sums import Participation
from fedblocks.threat_model.releases import deviation, released
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.roc import auc
from fedblocks.threat_model.subject import Subject


def run_of(small: SimulationSettings, folder: Path, noise: float | None, rounds: int = 24) -> RunFolder:
    raw = small.model_dump()
    raw["privacy"] |= (
        {"epsilon": 1e12, "noise_multiplier": noise}
        if noise
        else {"epsilon": None, "noise_multiplier": None, "i_accept_no_dp": True}
    )
    raw["training"] |= {
        "rounds": rounds,
        "evaluate_every": rounds,
        "expected_batch_size": 6,
        "sampling_rate": 0.15,
    }
    run = prepare(validated(SimulationSettings, raw), folder / "run")
    simulate(run)
    return run


def result_of(run: RunFolder, seconds: float = 100.0) -> Result:
    subject = replace(Subject.of(run, block=0), clock=Clock(seconds))
    assert ATTACK.applies(subject) is None
    (result,) = [each for each in ATTACK.run(subject) if isinstance(each, Result)]
    return result


@pytest.mark.slow
def test_members_of_a_run_without_noise_are_told(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an attack that cannot say yes: a sum read in another order, with another round's state, its sign
    or scale lost."""
    monkeypatch.setattr(round_membership, "_ROUNDS", 120)
    found = result_of(run_of(small, tmp_path, None, rounds=240), 500.0)
    assert found.outcome == "found"
    assert found.control is not None
    assert found.control.low > 0.5


@pytest.fixture(scope="module")
def run(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_of(small, tmp_path_factory.mktemp("recorded"), 3.0, rounds=12)


def test_the_noise_hides_members_and_the_clock_is_told(run: RunFolder) -> None:
    """Would catch a finding made of who holds what (prior), and "not found" of rounds that were not read."""
    found = result_of(run)
    assert found.outcome != "found"
    assert found.value is not None
    assert found.value.low < 0.5 < found.value.high
    assert found.budget["rounds read"] == found.budget["rounds of the block"] == 6
    cut = result_of(run, 0.0)
    assert cut.outcome == "inconclusive"
    assert "0 of 6 rounds" in cut.reason


def test_without_a_transcript_it_does_not_apply(run: RunFolder) -> None:
    """Would catch an attack that makes up the rounds that a run did not record."""
    why = ATTACK.applies(replace(Subject.of(run, block=0), transcript=None))
    assert why is not None
    assert "releases = false" in why


def test_rounds_are_those_of_the_block_evenly(run: RunFolder) -> None:
    """Would catch another block's sums, and early rounds alone."""
    found = chosen_rounds(Subject.of(run, block=1), 1)
    assert {each.block for each in found} == {1}
    rounds = [each.round for each in found]
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == 12


def test_whitening_makes_the_background_white() -> None:
    """Oracle: sums drawn from the law. Would catch factors of a variance for those of a deviation, a count that is
    lost, or second moments of the examples at hand for those of others."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([8.0, 4.0, 2.0, 1.0] + [0.05] * 60, dtype=torch.float64)

    def gradients(n: int) -> torch.Tensor:
        return torch.randn(n, 64, generator=rng, dtype=torch.float64) * spread + spread

    background = Background.of(gradients(40), count=30, noise=0.7)
    sums = torch.stack([gradients(30).sum(0) + 0.7 * torch.randn(64, generator=rng) for _ in range(3000)])
    white = background.whitened(sums)
    # The second moment of the mean is in the model for one batch, not its square for many: the spread is what counts.
    deviation_ = (white - white.mean(0)).std(0) / background.deviation
    assert float(deviation_.median()) == pytest.approx(1.0, abs=0.15)
    assert float(deviation_.max()) < 2.0


def test_rounds_add_up(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a sum over rounds that drops one, or a member that is no better than another."""
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e5, "noise_multiplier": 0.05}
    run = prepare(validated(SimulationSettings, raw), tmp_path / "run")
    subject = Subject.of(run, block=0)
    victims, mechanism = subject.victims(24, "rounds"), subject.mechanism(0)
    problem, generator = subject.problem(0), torch.Generator().manual_seed(0)
    public = problem.gradient(problem.sample(problem.values_of(subject.public[:32]), generator), fast=True)
    background = Background.of(public / public.norm(dim=1, keepdim=True), 4.0, deviation(mechanism))
    totals, areas = np.zeros(24), []
    for i in range(12):
        sent = released(subject, 0, victims[:4], "r", i, noisy=True).vector
        summed = OpenedSum(sent, background, Participation(1, 1.0))
        totals += log_ratios([summed], problem, mechanism, victims, 4, generator)[0]
        areas.append(auc(totals[:4], totals[4:]).value)
    assert areas[-1] > 0.9
    assert areas[-1] > np.mean(areas[:4])
