"""The company's own limit on what an attack is expected to find: kept before anything is charged or sent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.coordinating import NODES, Coordinator

from fedblocks.blocks import build_model, digest
from fedblocks.blocks.examples import Examples
from fedblocks.client import predicted_gain
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.client.predicted_gain import check
from fedblocks.errors import InputError, PrivacyError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.protocol.messages import KEYS, TRAIN, KeysReply, KeysRequest, TrainRequest, refused
from fedblocks.protocol.release import sum_label
from fedblocks.settings import Plan, SimulationSettings
from fedblocks.threat_model.local_prediction import predicted_gain as predict


@pytest.fixture(scope="module")
def plan(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return prepare(small, tmp_path_factory.mktemp("limit") / "run").plan()


def data_of(plan: Plan, n: int = 40) -> Examples:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(n, *plan.model.kind.inputs, generator=rng)
    return Examples(images, torch.randint(10, (n,), generator=rng))


def test_a_company_above_its_limit_trains_nothing_and_pays_nothing(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a limit that is looked at after the charge, or by nobody."""
    run = prepare(small, tmp_path / "run")
    homes = run.homes()
    policy = homes[0] / "policy.toml"
    policy.write_text("largest_predicted_gain = -100.0\n" + policy.read_text())
    policy.chmod(0o600)
    (homes[1] / "policy.toml").write_text(
        "largest_predicted_gain = 100.0\n" + (homes[1] / "policy.toml").read_text()
    )
    simulate(run)
    said = (homes[0] / "company.log").read_text()
    assert "closer, above this company's -100.0" in said
    rows = []
    for home in homes[:2]:
        with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
            rows.append(len(ledger.rows()))
    assert rows[0] == 0
    assert rows[1] > 0


def test_a_run_that_was_refused_stays_refused_whatever_states_it_comes_with(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch an oracle: a bit of the data for each state in a session of its own, uncharged and uncounted."""
    run = prepare(small, tmp_path / "run")
    policy = run.homes()[0] / "policy.toml"
    lines = policy.read_text()
    policy.write_text("largest_predicted_gain = -100.0\n" + lines)
    app = Coordinator(run)
    channels = app.channels()
    codes = []
    for attempt in range(3):
        state = {name: value + 0.01 * attempt for name, value in app.model.blocks[0].items()}
        session = app.session(label=sum_label(0, f"{attempt:016x}"), model_digest=digest(state))
        keys = {n: app.ask(n, KEYS, KeysRequest(session, channels).to_record()) for n in NODES}
        if code := refused(keys[1]):
            codes.append(code)
            continue
        adverts = {f"company-{n - 1}": KeysReply.from_record(reply).advert for n, reply in keys.items()}
        request = TrainRequest.for_each(0, {0: state}, adverts)["company-0"]
        codes.append(refused(app.ask(1, TRAIN, request.to_record())) or "trained")
        policy.write_text("largest_predicted_gain = 100.0\n" + lines)  # what follows is not the limit's doing
    assert codes == ["privacy"] * 3
    log = (policy.parent / "company.log").read_text()
    assert log.count("refused train.block") == 1
    assert log.count("refused query.keys") == 2
    assert app.charges() == 0


def test_more_noise_means_less_to_be_found(plan: Plan) -> None:
    """Would catch a prediction of another plan's noise, and a gain of the wrong sign."""
    torch.manual_seed(0)
    model = build_model(plan.model, plan.noise)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    data = data_of(plan)
    gains = [predict(model, 0, data, plan.changed(noise_multiplier=z)) for z in (0.01, 30.0)]
    assert gains[0] > 3 > 1 > gains[1] > -1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"local_steps": 2}, "local_steps=2: a prediction is of one step"),
        ({}, "data=1: a prediction needs two"),
    ],
)
def test_what_cannot_be_predicted_is_refused(plan: Plan, change: dict[str, int], says: str) -> None:
    """Would catch a limit that passes what nobody has looked at."""
    training = plan.training.model_copy(update=change)
    other = plan.model_copy(update={"training": training})
    model = build_model(plan.model, plan.noise)
    with pytest.raises(PrivacyError, match=f"largest_predicted_gain=3.0 cannot be checked: .*{says}"):
        check(3.0, model, 0, data_of(plan, 2 if change else 1), other)
    with pytest.raises(InputError):
        predict(model, 0, data_of(plan, 2 if change else 1), other)


def test_without_a_predictor_or_with_nan_nothing_passes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an installation without the audit that keeps no limit, and a NaN that keeps every one."""
    model, data = build_model(plan.model, plan.noise), data_of(plan)
    monkeypatch.setattr(predicted_gain, "GROUP", "fedblocks.none")
    with pytest.raises(PrivacyError, match="needs one installed predictor, found 0"):
        check(3.0, model, 0, data, plan)
    monkeypatch.setattr(predicted_gain, "predictor", lambda: lambda *_: math.nan)
    with pytest.raises(PrivacyError, match="nan dB closer"):
        check(3.0, model, 0, data, plan)
