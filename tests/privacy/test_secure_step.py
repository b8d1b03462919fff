"""Secure steps: companies' shares of one noise, in whole runs, against the law and against bent plans."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.coordinating import Coordinator
from torch import nn

from fedblocks.blocks import build_model, digest, merge
from fedblocks.client import app as client_app
from fedblocks.client.company import Company
from fedblocks.client.policy import Policy, load_policy
from fedblocks.client.training import train_block
from fedblocks.errors import InputError, PrivacyError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.experiments.simulation.reference import prepare_reference
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.privacy.events import SkellamSteps
from fedblocks.privacy.mechanisms.skellam import SkellamNoise, default_scale
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.secure_step import SecureStep
from fedblocks.protocol.messages import refused
from fedblocks.protocol.release import block_size, mean_update, release_event, secure_step
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings, validated


def shared(small: SimulationSettings, **privacy: object) -> SimulationSettings:
    values = small.privacy.model_dump() | {"mode": "secure_step"} | privacy
    return small.model_copy(update={"privacy": type(small.privacy)(**values)})


@pytest.fixture(scope="module")
def run(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    found = prepare(shared(small), tmp_path_factory.mktemp("steps") / "run")
    result = simulate(found)
    assert result["rounds_done"] == 4
    return found


def step_of(companies: int = 4, tolerated: int = 1, noise: float = 2.0) -> SecureStep:
    return SecureStep(
        sampling_rate=1.0,
        noise=SkellamNoise(
            dimension=4000, clip=0.5, companies=companies, tolerated=tolerated, noise_multiplier=noise,
            scale=default_scale(4000, 0.5),
        ),
        colluders=tolerated, largest_sum=100.0, noise_draws=1,
    )  # fmt: skip


def summed(step: SecureStep, layer: nn.Linear, x: torch.Tensor, companies: int) -> np.ndarray:
    """The opened sum of companies that hold equal parts of x."""
    total = np.zeros(4000, dtype=np.uint32)
    for i, part in enumerate(x.chunk(companies)):
        total += step.encode(
            layer, lambda rows, draws, part=part: layer(part[rows]).sum(dim=1), examples=len(part),
            randomness=Randomness.from_seed(7, i),
        )  # fmt: skip
    return step.noise.decode_sum(total)


def test_the_sum_is_that_of_all_clipped_gradients_and_its_noise_that_of_the_account() -> None:
    """Oracle: clipping over all examples at once, and the normal limit of Skellam's law.

    Would catch a share of the wrong size, noise that companies have in common, or a sum before clipping.
    """
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 100, bias=False), torch.randn(20, 40)
    with PerExampleClipping(layer, max_grad_norm=0.5) as clipping:
        exact = clipping.sum(lambda part: layer(x[part]).sum(dim=1), examples=20).vector.numpy()
    step = step_of()
    noise = (summed(step, layer, x, 4) - exact) * step.noise.scale
    # Three honest companies carry the whole noise; the fourth, if it is honest too, a third more.
    sd = math.sqrt(step.event.variance * 4 / 3)
    assert stats.kstest(noise / sd, "norm").pvalue > 1e-3
    assert sd / step.noise.scale / 0.5 == pytest.approx(2.0 * math.sqrt(4 / 3), rel=1e-2)


def test_one_companys_sum_is_bounded() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 100, bias=False), torch.randn(20, 40)
    loud, quiet = step_of(noise=1e-3), step_of(noise=1e-3)
    quiet = SecureStep(**{**vars(quiet), "largest_sum": 0.1})
    assert np.linalg.norm(summed(loud, layer, x, 4)) > 1.0
    assert np.linalg.norm(summed(quiet, layer, x, 4)) <= 4 * 0.1 * 1.1


def test_every_company_is_charged_for_shared_noise_and_stays_within_epsilon(run: RunFolder) -> None:
    plan = run.plan()
    for home in sorted(run.companies.iterdir()):
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            rows = ledger.rows()
            ledger.verify()
        assert len(rows) == 4
        assert all(isinstance(row.event, SkellamSteps) for row in rows)
        assert 7.9 < epsilon([row.event for row in rows], plan.delta) <= 8.0


def test_the_charge_is_independent_of_how_many_take_part(run: RunFolder) -> None:
    """The account may count on honest noise alone, which every cohort's shares add up to."""
    plan = run.plan()
    assert release_event(plan, 500, 5) == release_event(plan, 500, 20) == release_event(plan, 500)


def test_a_session_that_opens_with_fewer_shares_of_noise_is_refused(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """The attack: four of five may open the sum, which the protocol allows, where the noise needs all five.

    Would catch the loss of the one check that keeps the noise of an opened sum whole.
    """
    app = Coordinator(prepare(shared(small), tmp_path / "run"))
    assert app.plan.threshold(5) == 5
    whole = app.session(threshold=5, length=1)
    for node, reply in app.keys(replace(whole, threshold=4)).items():
        assert refused(reply) == "low_threshold", node
    assert {refused(reply) for reply in app.keys(whole).values()} == {None}


def test_a_companys_own_release_is_noised_by_its_share(run: RunFolder) -> None:
    """The same company, twice: what differs is noise of variance total / (companies - tolerated)."""
    wide = run.plan().secure_aggregation.model_copy(update={"bits": 32})
    plan = run.plan().model_copy(update={"noise_multiplier": 50.0, "secure_aggregation": wide})
    home = run.companies / "company-0"
    start = Checkpoint.load(run.checkpoints, 0).model
    model = build_model(plan.model, plan.noise)
    merge(model, start.shared, *start.blocks)
    policy = load_policy(home / "policy.toml")
    data = Company(home, policy).data()
    one, two = (
        train_block(model, 0, data, plan, 5, Randomness.from_seed(0, label), policy) for label in ("a", "b")
    )
    size = block_size(model, 0, plan.training)
    noise = secure_step(plan, size, 5).noise
    difference = noise.decode_sum(one - two) * noise.scale
    assert np.std(difference) == pytest.approx(math.sqrt(2 * noise.variance_total / 4), rel=0.1)
    rate = plan.training.local_learning_rate / plan.training.expected_batch_size
    mean = mean_update(plan, one, 5, 4)
    assert mean == pytest.approx(-rate / 4 * noise.decode_sum(one), rel=1e-12)
    assert np.std(mean) == pytest.approx(
        rate / 4 * math.sqrt(noise.variance_total / 4) / noise.scale, rel=0.1
    )


def test_a_sum_with_too_few_shares_is_never_opened(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a threshold below what the account counts on: with one company lost, noise is missing."""
    lossy = shared(small)
    companies = lossy.companies.model_copy(
        update={"dropout": lossy.companies.dropout.model_copy(update={"rate": 0.5, "phase": "train"})}
    )
    strict = prepare(lossy.model_copy(update={"companies": companies}), tmp_path / "strict")
    simulate(strict)
    rows = strict.metrics()[1:]
    short = [row for row in rows if row["absent"]]
    assert short
    assert all(row["status"] != "done" for row in short)
    assert all(len(row["survivors"]) == 5 for row in rows if row["status"] == "done")


def test_without_noise_the_twin_of_a_run_moves_as_in_local_mode(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference run has no shares to add; it falls back to plain sums, bit for bit those of local mode.

    A release's randomness depends on the whole plan, the mode included; here both have the same.
    """
    monkeypatch.setattr(
        client_app, "release_labels", lambda plan, session, *_: (session.round, session.label)
    )
    twin = prepare_reference(prepare(shared(small), tmp_path / "run"))
    plan = twin.plan()
    assert not plan.secure_step
    local = RunFolder(Path(shutil.copytree(twin.path, tmp_path / "local")))
    local.write_settings(twin.settings(), plan.model_copy(update={"mode": "local"}))
    ends = []
    for each in (twin, local):
        start = Checkpoint.load(each.checkpoints).model
        assert simulate(each)["rounds_done"] == 4
        end = Checkpoint.load(each.checkpoints).model
        assert all(digest(a) != digest(b) for a, b in zip(start.blocks, end.blocks, strict=True))
        ends.append(digest(end.shared, *end.blocks))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("line", "reason"), [("allow_shared_noise", "shared"), ("least_colluders", "colluders=1 is below")]
)
def test_a_policy_decides_whether_noise_may_be_shared(run: RunFolder, line: str, reason: str) -> None:
    policy = load_policy(run.companies / "company-0" / "policy.toml")
    policy.check(run.plan())
    changed = {"allow_shared_noise": False} if line == "allow_shared_noise" else {"least_colluders": 2}
    with pytest.raises(PrivacyError, match=reason):
        policy.model_copy(update=changed).check(run.plan())


def test_by_default_no_company_shares_noise() -> None:
    assert not Policy.model_fields["allow_shared_noise"].default


@pytest.mark.parametrize(
    ("companies", "dropouts", "colluders"), [(5, 0, 1), (5, 2, 1), (12, 3, 2), (40, 7, 0)]
)
def test_a_sum_is_opened_only_with_as_many_shares_as_its_noise_counts_on(
    run: RunFolder, companies: int, dropouts: int, colluders: int
) -> None:
    """Would catch a threshold one too low: the honest shares of the fewest who may be summed carry all the noise."""
    plan = run.plan().model_copy(update={"dropouts": dropouts, "colluders": colluders})
    threshold = plan.threshold(companies)
    assert threshold == companies - dropouts
    noise = secure_step(plan, 500, companies).noise
    share = noise.variance_total / (companies - noise.tolerated)
    assert (threshold - colluders) * share >= noise.variance_total > (threshold - 1 - colluders) * share
    assert plan.model_copy(update={"mode": "local"}).threshold(companies) is None


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("training.local_steps=2", "training.local_steps"),
        ("privacy.colluders=5", "privacy.colluders"),
        ("secure_aggregation.threshold=4", "secure_aggregation.threshold"),
    ],
)
def test_settings_that_shares_do_not_protect_are_refused(override: str, field: str) -> None:
    with pytest.raises(InputError, match=field.replace(".", r"\.")):
        load_settings("digits", ["privacy.mode=secure_step", override])


def test_a_plan_of_several_steps_is_no_plan_for_shares(run: RunFolder) -> None:
    raw = run.plan().model_dump()
    raw["training"]["local_steps"] = 2
    with pytest.raises(InputError, match="single steps"):
        validated(Plan, raw)


@pytest.mark.parametrize(
    ("companies", "assignment"), [(5, "sequential"), (40, "sequential"), (9, "parallel")]
)
def test_residues_are_as_narrow_as_the_noise_allows(companies: int, assignment: str) -> None:
    """Would catch residues of which a fourth is empty, and ones in which a sum of clipped gradients wraps."""
    settings = load_settings(
        "digits",
        ["privacy.mode=secure_step", f"companies.count={companies}", f"training.assignment={assignment}"],
    )
    model = build_model(settings.model, settings.noise)
    plan = make_plan(settings, model, "r")
    size, largest = block_size(model, 0, plan.training), 3 if assignment == "parallel" else companies
    assert settings.largest_group == largest
    noise = secure_step(plan, size, largest).noise
    assert noise.limit >= 8 * plan.max_grad_norm
    with pytest.raises(InputError, match="wrap"):
        # Four bits fewer leave less than a clip.
        replace(noise, bits=plan.bits - 4)
    assert plan.bits <= {5: 22, 40: 25, 9: 22}[companies]
