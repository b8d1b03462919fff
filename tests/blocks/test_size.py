"""How large a model is, told without building it: against models that are built."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from support.presets import quick_settings
from support.private_training import FAMILIES

from fedblocks.blocks import build_model
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import ModelSettings, family_names
from fedblocks.blocks.size import parameters_of
from fedblocks.client.policy import Policy, load_policy
from fedblocks.errors import PrivacyError
from fedblocks.experiments.presets import preset_names
from fedblocks.experiments.simulation.preparation import write_home
from fedblocks.settings import NoiseSettings, Plan, SimulationSettings, validated


def settings_of(family: str, **changes: Any) -> ModelSettings:
    raw = {"name": "test", "model": {"family": family} | changes}
    return validated(SimulationSettings, raw).model


def test_all_families_are_looked_at() -> None:
    own = {name for name in family_names() if not name.startswith("pretrained-")}
    assert set(FAMILIES) == own  # the sizes of a pretrained model are those of its checkpoint


# Every depth up to three periods of layers, and each other setting that moves a size.
GRID: list[dict[str, Any]] = [
    *({"layers": n, "blocks": 1} for n in range(1, 13)),
    *({"layers": n, "blocks": 1} for n in (19, 24, 33)),
    {"hidden_size": 24, "layers": 27, "blocks": 3},
    {"hidden_size": 48, "heads": 6, "mlp_ratio": 1.3, "layers": 20, "blocks": 2},
    {"hidden_size": 16, "heads": 2, "mlp_ratio": 0.25, "layers": 8, "blocks": 8},
    {"vocabulary": 300, "tokenizer": "mine.json", "layers": 4, "blocks": 2},
    {"recurrences": 9, "layers": 9, "blocks": 1},
    {"image_size": 12, "channels": 3, "patch_size": 4, "classes": 7, "layers": 4, "blocks": 2},
    {"context_length": 48, "horizon": 12, "channels": 5, "patch_size": 4, "layers": 4, "blocks": 2},
    {"features": "prefix", "layers": 4, "blocks": 2},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_told_is_that_of_the_model_built(family: str) -> None:
    """Oracle: the model itself. Would catch a layer, table, bias or rounding that the count misses."""
    seen = 0
    for changes in GRID:
        kind = type(settings_of(family))
        known = changes.keys() <= kind.model_fields.keys()
        if not known or (family == "recurrent-lm" and changes["blocks"] > 1):
            continue
        if changes.get("features") == "prefix" and family in (
            "dit",
            "masked-lm",
        ):  # they have no clean stream
            continue
        model = settings_of(family, **changes)
        built = build_model(model, NoiseSettings())
        assert parameters_of(model) == sum(t.numel() for t in built.state_dict().values()), changes
        seen += 1
    assert seen >= 16


LARGEST: dict[str, Any] = {"hidden_size": 8192, "layers": 256, "mlp_ratio": 16.0}
LARGE: dict[str, dict[str, Any]] = {
    "vit": {"blocks": 64, "classes": 8192, "image_size": 512, "patch_size": 1, "channels": 16},
    "dit": {"blocks": 1, "classes": 10**6, "image_size": 512, "patch_size": 512, "channels": 16},
    "ar-lm": {"blocks": 4, "vocabulary": 10**6, "tokenizer": "mine.json"},
    "masked-lm": {"blocks": 1, "vocabulary": 10**6, "tokenizer": "mine.json"},
    "recurrent-lm": {"blocks": 1, "vocabulary": 10**6, "tokenizer": "mine.json"},
    "tabular": {"blocks": 1, "numeric": 4096, "categories": [1_000_000] * 4096, "classes": 8192},
    "forecaster": {"blocks": 2, "context_length": 65536, "horizon": 8192, "patch_size": 1, "channels": 4096},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_settings_cost_neither_time_nor_memory(family: str) -> None:
    """Would catch a policy's check that a plan can stall: every message of a run is held against it."""
    model = settings_of(family, **LARGEST, **LARGE[family])
    parameters_of(settings_of(family))  # what is imported, and set up once
    tracemalloc.start()
    try:
        began = time.process_time()  # whatever else the machine does meanwhile
        assert parameters_of(model) > 10**11
        assert time.process_time() - began < 0.5
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_policy_s_limit_counts_embeddings_and_readouts() -> None:
    """Would catch a limit on layers alone, under which a vocabulary of a million is a small model."""
    model = settings_of("ar-lm", vocabulary=50_000, tokenizer="mine.json", layers=1, blocks=1)
    count = sum(t.numel() for t in build_model(model, NoiseSettings()).state_dict().values())
    assert count > 3_000_000
    plan = Plan.model_validate(
        {
            "run": "r", "model": model, "noise": {}, "training": {}, "delta": 1e-6, "max_grad_norm": 1.0,
            "noise_multiplier": 1.0, "company_clip": 1.0, "colluders": 1, "secure_aggregation": {},
        }
    )  # fmt: skip
    policy = Policy(company="a", epsilon_ceiling=1.0, delta=1e-5, data=model.kind, largest_model=count)
    policy.check(plan)
    with pytest.raises(PrivacyError, match=f"{count} parameters"):
        policy.model_copy(update={"largest_model": count - 1}).check(plan)


@pytest.mark.parametrize("preset", preset_names())
def test_a_simulated_company_is_willing_to_train_its_preset_s_model(preset: str, tmp_path: Path) -> None:
    """Would catch a preset of a large model that its own companies refuse when they join."""
    settings = quick_settings(preset)
    home = tmp_path / "companies" / "company-0"
    write_home(home, "company-0", settings, Examples(torch.zeros(1), torch.zeros(1)))
    limit = load_policy(home / "policy.toml").largest_model
    assert limit >= max(parameters_of(settings.model), 100_000_000)
