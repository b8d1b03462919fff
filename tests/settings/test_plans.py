"""Plans at and past their bounds: what is charged can be carried out; what decides a release decides its noise."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.coordinating import Coordinator

from fedblocks.blocks import build_model, split
from fedblocks.blocks.examples import Examples
from fedblocks.client.app import release_labels
from fedblocks.client.policy import Policy
from fedblocks.client.rehearsal import _rehearsed
from fedblocks.client.training import train_block
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.machine import check_device
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.privacy.randomness import Randomness
from fedblocks.protocol.messages import TRAIN, refused
from fedblocks.protocol.release import block_size
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import DataKind, Plan, SimulationSettings, validated

COMPANIES = 5
POLICY = Policy(
    company="company-0", epsilon_ceiling=1e9, delta=1e-5,
    data=DataKind(inputs=(1, 8, 8), targets=(), target_classes=10),
    largest_max_grad_norm=1e6, allow_interface=True, i_accept_no_dp=True, allow_shared_noise=True, least_colluders=0,
    simulation_seed=1,
)  # fmt: skip
EPOCHS = {"batches": "epochs", "local_steps": 4, "sampling_rate": 0.25}
MODES: dict[str, dict[str, Any]] = {
    "local": {"training": {"local_steps": 3}},
    "quantile": {"clip_quantile": 0.5, "training": {"local_steps": 3}},
    "banded": {"training": EPOCHS | {"noise_bands": 3}},
    "secure_step": {"mode": "secure_step", "dropouts": 1, "colluders": 1},
    "no noise": {"noise_multiplier": 0.0},
}


@pytest.fixture(scope="module")
def raw(small: SimulationSettings) -> dict[str, Any]:
    plan = make_plan(small, build_model(small.model, small.noise), "run")
    # Edges that are given would forbid any other range of noise.
    return changed(plan.model_dump(mode="json"), at("noise.edges", None))


def changed(raw: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(raw)
    for key, value in change.items():
        out[key] = (
            changed(raw[key], value) if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
        )
    return out


def at(path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    change: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        change = {parent: change}
    return change


# Another value of each field, with what it needs beside; "model.family" is another model altogether.
OTHERS: dict[str, Any] = {
    "run": "other",
    "model.hidden_size": 32, "model.layers": 4, "model.blocks": 1, "model.heads": 4, "model.mlp_ratio": 2.0,
    "model.features": "prefix", "model.image_size": 16, "model.channels": 3, "model.patch_size": 2,
    "model.classes": 4, "model.initializer_range": 0.1,
    "model.family": {"model": {"family": "dit", "hidden_size": 16, "heads": 2, "layers": 2, "blocks": 2}},
    "noise.P_mean": 1.1, "noise.P_std": 1.3, "noise.sigma_min": 0.003, "noise.sigma_max": 70.0,
    "noise.sigma_data": 0.6, "noise.rate_min": 0.01, "noise.partition": "uniform", "noise.edges": [80.0, 2.0, 0.002],
    "noise.refit_every": 7, "noise.overlap": 0.1, "noise.weight": "edm",
    "training.rounds": 9, "training.assignment": "all", "training.interface": True, "training.local_steps": 12,
    "training.local_learning_rate": 0.5, "training.sampling_rate": 0.2, "training.expected_batch_size": 30.0,
    "training.batches": {"training": EPOCHS}, "training.noise_bands": {"training": EPOCHS | {"noise_bands": 2}},
    "training.noise_draws": 3, "training.server_optimizer": "fedavg", "training.server_learning_rate": 0.5,
    "training.server_betas": [0.5, 0.5], "training.evaluate_every": 3, "training.message_timeout": 5.0,
    "training.blocks": [0],
    "training.group": "author",
    "training.records_per_group": {"training": {"group": "author", "records_per_group": 2}},
    "training.reserve": 2, "training.proximal": {"training": {"proximal": 0.1, "local_steps": 2}},
    "delta": 1e-6, "max_grad_norm": 2.0, "clipping": "per-layer", "clip_quantile": 0.7, "noise_multiplier": 40.0,
    "company_clip": 3.0, "mode": "secure_step", "dropouts": 2, "colluders": 2,
    "secure_aggregation.minimum_cohort": 4, "secure_aggregation.threshold": 5, "secure_aggregation.bits": 30,
    "evaluation": {"evaluation": {"noise_multiplier": 30.0}},
    "drawn": {"drawn": {"seed": 1, "companies": 9, "per_round": 5}},
}  # fmt: skip
BESIDE = {
    "run", "delta", "training.rounds", "training.assignment", "training.server_optimizer",
    "training.server_learning_rate", "training.server_betas", "training.evaluate_every",
    "training.message_timeout", "training.reserve", "secure_aggregation.minimum_cohort",
    "secure_aggregation.threshold", "evaluation", "drawn",
}  # fmt: skip


def leaves(part: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [prefix + name]


def other_plan(raw: dict[str, Any], path: str) -> Plan:
    other = OTHERS[path]
    if path == "model.family":
        return validated(Plan, raw | other)
    return validated(Plan, changed(raw, other if isinstance(other, dict) else at(path, other)))


def labels(
    plan: Plan, policy: Policy = POLICY, companies: int = COMPANIES, data: Examples | None = None
) -> Any:
    session: Any = SimpleNamespace(round=1, label="block-0", cohort=range(companies))
    data = data or examples()
    return release_labels(plan, session, b"block", b"shared", data.digest, policy)


def examples() -> Examples:
    g = torch.Generator().manual_seed(0)
    return Examples(torch.rand(12, 1, 8, 8, generator=g), torch.randint(10, (12,), generator=g))


def released(plan: Plan, policy: Policy = POLICY) -> Any:
    """Its residues from one stream, whatever its labels say."""
    torch.manual_seed(0)
    model = build_model(plan.model, plan.noise)
    return train_block(model, 0, examples(), plan, COMPANIES, Randomness.from_seed(0, "same"), policy)


def test_every_setting_of_a_plan_that_is_not_known_to_be_beside_a_release_changes_its_noise(
    raw: dict[str, Any],
) -> None:
    """Two releases that differ and share their noise can be subtracted. A new field has to be thought about here."""
    plan = validated(Plan, raw)
    assert set(OTHERS) == set(leaves(plan)) | {"noise.edges"}
    same = {path for path in OTHERS if labels(other_plan(raw, path)) == labels(plan)}
    assert same == BESIDE


@pytest.mark.parametrize("mode", MODES)
def test_what_is_beside_a_release_changes_none_of_its_bits(raw: dict[str, Any], mode: str) -> None:
    """Would catch a setting left out of the noise's seed on which the release does depend."""
    base = changed(raw, MODES[mode])
    expected = released(validated(Plan, base))
    # Without noise there is no evaluation either.
    beside = BESIDE - {"evaluation"} if mode == "no noise" else BESIDE
    moved = {path for path in beside if not np.array_equal(released(other_plan(base, path)), expected)}
    assert not moved
    # The control: what is not beside it does change them.
    assert not np.array_equal(released(other_plan(base, "training.noise_draws")), expected)


def test_cohort_data_states_and_the_policy_that_decides_change_the_noise(raw: dict[str, Any]) -> None:
    plan = validated(Plan, raw)
    seen = [labels(plan), labels(plan, companies=4), labels(plan, data=examples()[:11])]
    for update in ({"largest_max_grad_norm": 2.0}, {"memory_mb": 1}, {"device": "cuda"}, {"threads": 2}):
        seen.append(labels(plan, POLICY.model_copy(update=update)))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("mode", MODES)
def test_a_policys_fields_that_are_no_part_of_the_noise_change_no_bit(raw: dict[str, Any], mode: str) -> None:
    others = {
        "epsilon_ceiling": 3.0, "delta": 1e-4, "minimum_cohort": 4, "minimum_noise_multiplier": 1.0,
        "largest_model": 2_000_000, "most_steps": 5000, "allow_interface": False, "i_accept_no_dp": False,
        "allow_shared_noise": False, "least_colluders": 1, "composition": "renyi", "most_joins": 7,
        "most_new_plans": 2, "answer_seconds": 9.0, "epsilon_ceiling_run": 1.0, "epsilon_ceiling_year": 1.0,
        "plans": ("0" * 64,), "shared_states": ("0" * 64,), "most_rounds_a_day": 1, "most_attempts": 3,
        "hours": ("08:00", "09:00"), "zone": "Europe/Berlin", "approval": "always", "largest_predicted_gain": 1.0,
        "group": "author", "pretrained": ("models",), "prefix_cache_mb": 0,
    }  # fmt: skip
    plan = validated(Plan, changed(raw, MODES[mode]))
    free = {n for n, v in others.items() if labels(plan, POLICY.model_copy(update={n: v})) == labels(plan)}
    entering = {
        "data",
        "company",
        "device",
        "memory_mb",
        "simulation_seed",
        "threads",
        "largest_max_grad_norm",
    }
    assert free == set(others)
    assert free | entering == set(Policy.model_fields)
    expected = released(plan)
    assert all(
        np.array_equal(released(plan, POLICY.model_copy(update={n: others[n]})), expected) for n in free
    )


WILLING = """
epsilon_ceiling = 1e300
largest_max_grad_norm = 1e6
allow_interface = true
i_accept_no_dp = true
allow_shared_noise = true
least_colluders = 0
"""


@pytest.fixture(scope="module")
def willing(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose companies refuse next to nothing, so that what a plan may hold is found by its bounds alone."""
    run = prepare(small, tmp_path_factory.mktemp("willing") / "run")
    for home in run.companies.iterdir():
        path = home / "policy.toml"
        own = [line.split(" = ")[0] for line in WILLING.splitlines() if line]
        kept = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in own]
        path.write_text(WILLING + "\n".join(kept))
    return run.path


def outcome(willing: Path, folder: Path, plan: Plan) -> tuple[str | None, int]:
    """How one round of this plan ends for company-0, (refused with, charges), in a run of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(willing, folder)
    coordinator = Coordinator(RunFolder(folder))
    coordinator.plan = plan
    with suppress(InputError):  # what cannot be built here cannot be joined either
        model = build_model(plan.model, plan.noise)
        coordinator.model = split(model)
    code = next(filter(None, map(refused, coordinator.join(plan).values())), None)
    if code is None:
        session = coordinator.session(length=block_size(model, 0, plan.training), threshold=5)
        request = coordinator.train_request(session)
        code = refused(coordinator.ask(1, TRAIN, request.to_record()))
    coordinator.grid.close()
    return code, coordinator.charges()


# Every number that a plan brings, at its bounds.
CORNERS = {
    "noise_multiplier": (0.01, 1e6), "max_grad_norm": (1e-6, 1e6), "company_clip": (1e-6, 1e9), "delta": (1e-12, 0.5),
    "clip_quantile": (1e-9, 1 - 1e-9), "clipping": ("per-layer", "automatic"), "mode": ("secure_step",),
    "dropouts": (0, 2), "colluders": (0, 2),
    "training.local_learning_rate": (1e-6, 1e4), "training.sampling_rate": (1e-6, 1.0),
    "training.expected_batch_size": (1.0, 1e9), "training.local_steps": (1, 60), "training.noise_draws": (1, 64),
    "training.noise_bands": (2, 64), "training.batches": ("epochs",), "training.interface": (True,),
    "training.rounds": (1, 1_000_000), "training.assignment": ("all",),
    "secure_aggregation.bits": (16, 32), "secure_aggregation.threshold": (2, 5),
    "noise.sigma_min": (1e-6, 1.0), "noise.sigma_max": (3.0, 1e6), "noise.sigma_data": (1e-3, 1e3),
    "noise.P_mean": (-1.0, 3.0), "noise.P_std": (0.1, 5.0), "noise.weight": ("edm",), "noise.overlap": (0.0, 0.99),
    "model.mlp_ratio": (0.25, 16.0), "model.heads": (1, 16), "model.features": ("prefix",),
}  # fmt: skip
CLOSE = {
    "training": EPOCHS | {"local_steps": 64, "sampling_rate": 1 / 64, "noise_bands": 64},
}


def choices() -> st.SearchStrategy[dict[str, Any]]:
    one = {path: st.sampled_from(values) for path, values in CORNERS.items()}
    fields = st.lists(st.sampled_from(sorted(one)), min_size=1, max_size=6, unique=True)
    return fields.flatmap(lambda names: st.fixed_dictionaries({name: one[name] for name in names}))


@pytest.mark.parametrize("plans", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_plan_that_is_charged_is_carried_out(
    willing: Path, raw: dict[str, Any], tmp_path: Path, plans: int
) -> None:
    """The kind: whatever mechanism, codec or model would refuse is refused before the ledger is touched."""

    @settings(max_examples=plans, deadline=None, derandomize=True, database=None)
    @given(chosen=choices())
    def holds(chosen: dict[str, Any]) -> None:
        change = raw
        for path, value in chosen.items():
            change = changed(change, at(path, value))
        try:
            plan = validated(Plan, change)
        except InputError:
            return
        code, charges = outcome(willing, tmp_path / "run", plan)
        assert charges == (0 if code else 1), (code, charges)

    holds()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", [0, -1])
def test_the_ends_of_the_scale_are_joined_and_carried_out(
    willing: Path, raw: dict[str, Any], tmp_path: Path, mode: str, end: int
) -> None:
    """Not refused: or the property above would hold for nothing."""
    least = {} if mode == "secure_step" else {"company_clip": CORNERS["company_clip"][end]}
    scale = {
        "max_grad_norm": CORNERS["max_grad_norm"][end],
        "training": {"local_learning_rate": (1e-6, 1e4)[end]},
    }
    noise = (
        {}
        if mode == "no noise"
        else {"noise_multiplier": (20.0, 100.0 if mode == "secure_step" else 1e6)[end]}
    )
    plan = validated(Plan, changed(changed(raw, MODES[mode]), scale | noise | least))
    assert outcome(willing, tmp_path / "run", plan) == (None, 1)


PAST = {
    "noise_multiplier": (1e250, 1e7, 1e-3, 1e-200), "max_grad_norm": (1e7, 1e-7), "company_clip": (1e10, 1e-7),
    "training.local_learning_rate": (1e5, 1e-9, 1e-320), "training.sampling_rate": (1e-7, 1e-320, 1.5),
    "training.expected_batch_size": (0.5, 1e10, 1e308), "training.local_steps": (0, 10**5),
    "training.server_betas": ([1.5, 0.9], [0.9, 1.0]), "training.server_learning_rate": (1e300,),
    "training.noise_draws": (65,), "training.message_timeout": (1e300,), "training.rounds": (10**7,),
    "noise.sigma_min": (1e-320,), "noise.sigma_max": (1e300,), "noise.sigma_data": (1e-300, 1e300),
    "dropouts": (10**400,), "colluders": (10**400,), "secure_aggregation.minimum_cohort": (10**400,),
    "secure_aggregation.bits": (15, 33), "model.mlp_ratio": (1e-300,), "delta": (0.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in PAST.items() for value in values]
)
def test_a_plan_past_its_bounds_is_no_plan(raw: dict[str, Any], path: str, value: object) -> None:
    with pytest.raises(InputError):
        validated(Plan, changed(raw, at(path, value)))


def test_bands_and_batches_are_bounded_together(raw: dict[str, Any]) -> None:
    most = changed(raw, CLOSE)
    validated(Plan, most)
    with pytest.raises(InputError, match="noise_bands"):
        validated(
            Plan, changed(most, {"training": {"local_steps": 65, "sampling_rate": 1 / 65, "noise_bands": 65}})
        )


def test_a_model_that_builds_but_cannot_be_trained_costs_nothing(
    willing: Path, raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in the release itself fails in its rehearsal: here a layer."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("fedblocks.blocks.transformer.Layer.forward", broken)
    _rehearsed.cache_clear()
    plan = validated(Plan, raw)
    assert outcome(willing, tmp_path / "run", plan) == ("privacy", 0)


def test_text_models_whose_heads_rotary_positions_cannot_turn_are_refused() -> None:
    with pytest.raises(InputError, match="heads"):
        load_settings("ar-text", ["model.hidden_size=20", "model.heads=4"])


def test_settings_refuse_before_public_pretraining_what_a_plan_would_refuse(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a run that trains its public model first, and then cannot be offered to anybody."""
    training = small.training.model_copy(update={"local_learning_rate": 1e4})
    privacy = small.privacy.model_copy(update={"max_grad_norm": 1e6})
    settings = small.model_copy(update={"training": training, "privacy": privacy})
    steps: list[int] = []
    with pytest.raises(InputError, match="company_clip"):
        prepare(settings, tmp_path / "run", on_step=steps.append)
    assert not steps
    assert not list(tmp_path.iterdir())


def test_public_pretraining_that_ends_in_nan_stops_the_run(small: SimulationSettings, tmp_path: Path) -> None:
    pretraining = small.pretraining.model_copy(update={"learning_rate": 1e30, "steps": 4})
    with pytest.raises(InputError, match=r"pretraining\.learning_rate"):
        prepare(small.model_copy(update={"pretraining": pretraining}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["meta", "hpu", "cuda:77", "xla"])
def test_a_device_without_values_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        check_device(device)
