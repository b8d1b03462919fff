"""What a cheating company can do to a sum: past its clip nothing, and as a poisoned group it is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedblocks.blocks.state import digest
from fedblocks.client import app as client_app
from fedblocks.client.training import train_block
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.randomness import Randomness
from fedblocks.protocol.release import codec, mean_update, secure_step
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.influence import largest_mean
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings, validated
from fedblocks.threat_model.report import write_report

SIZE = 500


def plan_of(small: SimulationSettings, **changes: object) -> Plan:
    return Plan(
        run="r", model=small.model, noise=small.noise, training=small.training, delta=1e-5, max_grad_norm=1.0,
        noise_multiplier=1.0, company_clip=2.0, secure_aggregation=small.secure_aggregation, **changes,
    )  # fmt: skip


@given(companies=st.integers(3, 9), seed=st.integers(0, 2**32 - 1), alike=st.booleans())
@settings(max_examples=60, deadline=None)
def test_sums_of_companies_that_keep_to_their_clip_pass(companies: int, seed: int, alike: bool) -> None:
    """Would catch a limit that rounding alone can pass: all updates are at the clip, and often the same."""
    plan = plan_of(SimulationSettings(name="x"))
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((1 if alike else companies, SIZE)).repeat(companies if alike else 1, axis=0)
    updates *= plan.company_clip / np.linalg.norm(updates, axis=1, keepdims=True)
    encode = codec(plan, companies).encode
    total = np.sum([encode(u * (1 - 1e-12)) for u in updates], axis=0, dtype=np.uint32)
    mean = mean_update(plan, total & np.uint32(2**plan.bits - 1), companies, companies)
    assert np.linalg.norm(mean) <= largest_mean(plan, SIZE, companies, companies)


def test_one_company_past_its_clip_is_seen_in_the_sum(small: SimulationSettings) -> None:
    """Would catch a limit by coordinate alone, which lets a company weigh sqrt(P) times its clip."""
    plan = plan_of(small)
    bound = codec(plan, 5)
    cheat = np.full(SIZE, int(bound.bound * bound.scale), dtype=np.uint32)
    mean = mean_update(plan, cheat, 5, 5)
    assert np.linalg.norm(mean) > largest_mean(plan, SIZE, 5, 5)


def test_shared_noise_passes_and_a_company_beyond_its_bound_does_not(small: SimulationSettings) -> None:
    """Would catch a limit that forgets the noise in the sum of a secure step, or leaves room for anything."""
    plan = plan_of(small, mode="secure_step", colluders=1)
    step = secure_step(plan, SIZE, 5)
    rng, vectors = np.random.default_rng(0), []
    for _ in range(5):
        v = rng.standard_normal(SIZE)
        vectors.append(step.largest_sum * v / np.linalg.norm(v))
    vectors = [vectors[0]] * 5  # the longest possible sum
    noisy = [step.noise.encode(v, Randomness.from_seed(i, "t")) for i, v in enumerate(vectors)]
    modulus = np.uint32(2**plan.bits - 1)
    limit = largest_mean(plan, SIZE, 5, 5)
    honest = mean_update(plan, np.sum(noisy, axis=0, dtype=np.uint32) & modulus, 5, 5)
    assert np.linalg.norm(honest) <= limit
    far = step.noise.encode(np.full(SIZE, step.largest_sum), Randomness.from_seed(9, "t"))
    cheated = mean_update(plan, np.sum([*noisy[:4], far], axis=0, dtype=np.uint32) & modulus, 5, 5)
    assert np.linalg.norm(cheated) > limit


def with_settings(small: SimulationSettings, **parts: dict[str, object]) -> SimulationSettings:
    raw = small.model_dump(mode="json")
    for name, changes in parts.items():
        raw[name] |= changes
    return validated(SimulationSettings, raw)


def cheating(
    monkeypatch: pytest.MonkeyPatch, is_cheat: Callable[[int], bool], vector: Callable[[int], np.ndarray]
) -> None:  # type: ignore[type-arg]
    """Let the chosen calls of a round's training, in the companies' order, send `vector(size)` instead."""
    calls = iter(range(10**6))

    def train(*arguments: object, **named: object) -> np.ndarray:  # type: ignore[type-arg]
        honest = train_block(*arguments, **named)  # type: ignore[arg-type]
        return vector(len(honest)) if is_cheat(next(calls)) else honest

    monkeypatch.setattr(client_app, "train_block", train)


def test_an_oversized_sum_is_thrown_away_and_the_round_says_so(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a coordinator that applies whatever a sum holds."""
    run = prepare(with_settings(small, training={"rounds": 2}), tmp_path / "run")
    bound = codec(run.plan(), 5)
    n = run.settings().companies.count
    cheating(
        monkeypatch,
        lambda call: call == n - 1,
        lambda size: np.full(size, int(bound.bound * bound.scale), dtype=np.uint32),
    )
    result = simulate(run)
    assert result["rounds_failed"] == {"oversized_sum": 1}
    assert result["rounds_done"] == 1
    before, after = (Checkpoint.load(run.checkpoints, r).model.blocks[0] for r in (0, 1))
    assert digest(before) == digest(after)


@pytest.mark.parametrize("action", ["flag", "discard"])
def test_a_poisoned_group_is_flagged_and_left_out_if_asked(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Would catch a group whose harm is measured on the wrong block, or a discarded sum that stays in the model."""
    changed = with_settings(
        small,
        training={"assignment": "parallel", "rounds": 1, "server_optimizer": "fedavg", "server_learning_rate": 1.0},
        companies={"count": 6},
        privacy={"epsilon": None, "i_accept_no_dp": True, "company_clip": 100.0},
        influence={"leave_group_out": action},
        pretraining={"steps": 60},
    ).model_copy(update={"workers": 1})  # fmt: skip
    run = prepare(changed, tmp_path / "run")
    plan = run.plan()
    generator = torch.Generator().manual_seed(0)

    def poison(size: int) -> np.ndarray:  # type: ignore[type-arg]
        v = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
        return codec(plan, 3).encode(99.0 * v / np.linalg.norm(v))

    seen: list[int] = []
    original = client_app.train_block

    def train(model: object, block: int, *rest: object) -> np.ndarray:  # type: ignore[type-arg]
        honest = original(model, block, *rest)  # type: ignore[arg-type]
        seen.append(block)
        return poison(len(honest)) if block == 1 else honest

    monkeypatch.setattr(client_app, "train_block", train)
    result = simulate(run)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]
    effects = run.metrics()[1]["influence"]
    assert {e["block"]: e["flagged"] for e in effects} == {0: False, 1: True}
    assert result["groups_flagged"] == 1
    before, after = (Checkpoint.load(run.checkpoints, r).model.blocks for r in (0, 1))
    assert (digest(before[1]) == digest(after[1])) == (action == "discard")
    assert digest(before[0]) != digest(after[0])
    text = write_report(RunFolder.existing(run.path)).read_text("utf-8")
    assert "Flagged groups: round 1, block 1" in text
    assert ("left out" in text) == (action == "discard")
