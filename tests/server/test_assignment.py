"""Block assignment: who trains what, no group too small, and each company charged its own part."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fedblocks.blocks.state import digest
from fedblocks.client.app import app as client_app
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.ledger_file import LedgerRow
from fedblocks.privacy.secure_aggregation import Session
from fedblocks.protocol.release import block_of, sum_label
from fedblocks.server.assignment import assign, groups
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.coordinator import coordinate
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings, validated


def with_training(settings: SimulationSettings, **changes: object) -> SimulationSettings:
    """Changed and validated anew."""
    raw = settings.model_dump(mode="json")
    for key, value in changes.items():
        part, name = key.split("__")
        raw[part][name] = value
    return validated(SimulationSettings, raw)


def plan_of(small: SimulationSettings, assignment: str, blocks: int) -> Plan:
    changed = with_training(
        small, training__assignment=assignment, model__blocks=blocks, model__layers=blocks
    )
    return Plan(
        run="r", model=changed.model, noise=changed.noise, training=changed.training, delta=1e-5,
        max_grad_norm=1.0, noise_multiplier=1.0, company_clip=1.0,
        secure_aggregation=changed.secure_aggregation,
    )  # fmt: skip


def test_sequential_visits_every_block_in_turn_with_the_whole_cohort(small: SimulationSettings) -> None:
    plan, names = plan_of(small, "sequential", 3), tuple("abcde")
    tasks = [assign(r, names, plan) for r in range(1, 8)]
    assert [[t.block for t in round_] for round_ in tasks] == [[0], [1], [2], [0], [1], [2], [0]]
    assert all(t.companies == names for round_ in tasks for t in round_)


@given(companies=st.integers(3, 40), blocks=st.integers(1, 6), minimum=st.integers(3, 6))
def test_parallel_groups_are_disjoint_large_enough_and_fixed(
    companies: int, blocks: int, minimum: int
) -> None:
    """Would catch a group below the minimum cohort, or cohorts that change, which isolates a company."""
    if companies < minimum:
        with pytest.raises(InputError, match="minimum_cohort"):
            groups(companies, blocks, minimum)
        return
    count = groups(companies, blocks, minimum)
    names = tuple(f"c{i:02d}" for i in range(companies))
    parts = [names[g::count] for g in range(count)]
    assert 1 <= count <= blocks
    assert min(len(part) for part in parts) >= minimum
    assert sorted(name for part in parts for name in part) == sorted(names)


def test_parallel_trains_different_blocks_at_once_and_every_group_visits_them_all(
    small: SimulationSettings,
) -> None:
    plan, names = plan_of(small, "parallel", 3), tuple(f"c{i}" for i in range(9))
    rounds = [assign(r, names, plan) for r in range(1, 4)]
    for tasks in rounds:
        assert sorted(t.block for t in tasks) == [0, 1, 2]
    for name in names:
        assert sorted(t.block for tasks in rounds for t in tasks if name in t.companies) == [0, 1, 2]


def ledger_rows(run: RunFolder, company: int) -> list[LedgerRow]:
    home = run.companies / f"company-{company}"
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        return list(ledger.rows())


@pytest.mark.parametrize("assignment", ["parallel", "all"])
@pytest.mark.parametrize("features", ["raw", "prefix"])
def test_a_run_of_either_assignment_charges_what_each_company_trained(
    small: SimulationSettings, tmp_path: Path, assignment: str, features: str
) -> None:
    """Would catch a ledger that charges for blocks of others, or a plan check that counts rounds alone."""
    settings = with_training(
        small,
        training__assignment=assignment,
        training__rounds=2,
        companies__count=6,
        model__features=features,
    )
    run = prepare(settings, tmp_path / "run")
    result = simulate(run)
    assert result["rounds_done"] == 2
    each = 4 if assignment == "all" else 2
    assert settings.total_steps == each * settings.training.local_steps
    rows = ledger_rows(run, 3)
    assert len(rows) == each
    assert {row.block for row in rows} == {"block-0", "block-1"}
    assert all(7.9 < spent <= 8 for spent in result["epsilon"].values())
    before, after = Checkpoint.load(run.checkpoints, 0).model, Checkpoint.load(run.checkpoints).model
    assert all(digest(a) != digest(b) for a, b in zip(before.blocks, after.blocks, strict=True))
    assert digest(before.shared) == digest(after.shared)


class MeetingGrid(InProcessGrid):
    """Delivers the messages of a phase of a round once those of the other group are there too."""

    groups: ClassVar = threading.Barrier(2, timeout=20)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        if sent[0].metadata.group_id.startswith("round"):
            self.groups.wait()
        return super().send_and_receive(sent, timeout=timeout)


def test_parallel_groups_train_at_the_same_time_and_to_the_same_model(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch groups that wait for each other, and state that they share while they run."""
    settings = with_training(small, training__assignment="parallel", training__rounds=2, companies__count=6)
    run = prepare(settings, tmp_path / "run")
    again = RunFolder.existing(Path(shutil.copytree(run.path, tmp_path / "again" / "run")))
    simulate(run)
    grid = MeetingGrid(client_app, 6, {"run-dir": str(again.path)}, workers=2)
    try:
        coordinate(grid, again)
    finally:
        grid.close()
    states = [Checkpoint.load(r.checkpoints).model.blocks for r in (run, again)]
    assert digest(*states[0]) == digest(*states[1])


def test_the_interface_is_trained_only_where_plan_and_policy_say_so(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch embeddings that move, and leak most, without anybody having asked for it."""
    for interface in (False, True):
        settings = with_training(small, training__interface=interface, training__rounds=2)
        run = prepare(settings, tmp_path / f"run-{interface}")
        simulate(run)
        before, after = Checkpoint.load(run.checkpoints, 0).model, Checkpoint.load(run.checkpoints).model
        moved = {
            name for name, value in after.blocks[0].items() if not torch.equal(value, before.blocks[0][name])
        }
        assert any(".layers." in name for name in moved)
        assert any(".interface." in name for name in moved) == interface


def test_only_the_chosen_blocks_are_assigned_and_accepted(small: SimulationSettings) -> None:
    """Would catch a round on a block that the plan leaves alone, a charge for it, and a company that takes part."""
    names = tuple(f"company-{i}" for i in range(6))
    for assignment, releases in (("sequential", 6), ("parallel", 6), ("all", 12)):
        whole = plan_of(small, assignment, 3)
        training = whole.training.model_dump() | {"blocks": (0, 2), "rounds": 6}
        chosen = whole.changed(training=training)
        assert chosen.most_releases == releases
        tasks = [task for round_ in range(1, 7) for task in assign(round_, names, chosen)]
        assert {task.block for task in tasks} == {0, 2}
        assert block_of(chosen, session(sum_label(2), names)) == 2
        with pytest.raises(ProtocolError):
            block_of(chosen, session(sum_label(1), names))
        for blocks in ((3,), (), (1, 0)):
            with pytest.raises(InputError, match=r"training\.blocks"):
                whole.changed(training=training | {"blocks": blocks})
        assert whole.changed(training=whole.training.model_dump()).digest() == whole.digest()


def session(label: str, names: tuple[str, ...]) -> Session:
    return Session(
        run="r", round=1, label=label, model_digest=bytes(32), settings_digest=bytes(32), cohort=names,
        threshold=len(names), length=8,
    )  # fmt: skip
