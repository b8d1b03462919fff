"""The tabular family: its tokens, its two networks, and that they learn what a table tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedblocks.blocks import BlockObjective, Schedule, build_model, train
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families.tabular import Columns, TabularClassifier, TabularRegressor, TabularSettings
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.settings import NoiseSettings, validated


def settings(**changes: Any) -> TabularSettings:
    values: dict[str, Any] = {"numeric": 3, "categories": (3, 2), "layers": 2, "blocks": 2, "hidden_size": 16}
    return validated(TabularSettings, values | {"heads": 2} | changes)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    codes = [torch.randint(most, (count, 1), generator=g) for most in (3, 2)]
    return torch.cat([2 * torch.rand(count, 3, generator=g) - 1, *codes], dim=1).float()


def test_tokens_are_those_of_the_paper() -> None:
    """Oracle: FT-Transformer, section 3.3. Would catch codes read from another column's rows of the table."""
    torch.manual_seed(0)
    columns, x = Columns(3, (3, 2), 8), rows(5)
    found = columns(x)
    assert found.shape == (5, 5, 8)
    for j in range(3):
        assert torch.allclose(found[:, j], x[:, j, None] * columns.scale.weight[j] + columns.place.weight[j])
    assert torch.equal(found[:, 3], columns.value.weight[x[:, 3].long()])
    assert torch.equal(found[:, 4], columns.value.weight[3 + x[:, 4].long()])


def trained(model: TabularSettings, targets: torch.Tensor) -> float:
    x = rows(400)
    torch.manual_seed(0)
    network = build_model(model, NoiseSettings(P_mean=1.0))
    train(
        network, x[:300], targets[:300], objective=BlockObjective(),
        schedule=Schedule(steps=150, batch_size=64, learning_rate=5e-3), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return network.chain_quality(x[300:], targets[300:], torch.Generator().manual_seed(1))[-1]


def test_a_classifier_learns_a_rule_of_numbers_and_categories() -> None:
    """Would catch a network that reads only one kind of column: either alone stays near 75%."""
    x = rows(400)
    targets = ((x[:, 0] > 0) ^ (x[:, 4] == 1)).long()
    assert trained(settings(), targets) > 0.9


def test_a_regressor_learns_a_number() -> None:
    """The mean alone has an error of about 0.3."""
    x = rows(400)
    targets = 0.5 * x[:, 1] + 0.4 * (x[:, 3] - 1)
    assert trained(settings(classes=None), targets) < 0.12


def test_the_settings_choose_the_network() -> None:
    assert isinstance(build_model(settings(), NoiseSettings()), TabularClassifier)
    assert isinstance(build_model(settings(classes=None), NoiseSettings()), TabularRegressor)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"numeric": 0, "categories": ()}, "a row must have a column"),
        ({"categories": (3, 0)}, r"categories\.1=0: input should be greater than or equal to 1"),
        ({"classes": 17}, "must not exceed hidden_size"),
    ],
)
def test_impossible_rows_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        settings(**changes)


@pytest.mark.parametrize("bad", [-1.0, 2.0, 0.5])
def test_codes_out_of_range_are_refused_before_training(bad: float) -> None:
    """Would catch a company's home whose codes would index past the table, or into another column's rows."""
    x = rows(4)
    x[2, 4] = bad
    with pytest.raises(InputError, match=r"column 4.*expected codes 0 to 1"):
        Examples(x, torch.zeros(4, dtype=torch.int64)).check("data", settings().kind)


def test_a_contract_settles_the_model() -> None:
    """Would catch a model of other columns than the contract's, found out only when a tensor does not fit."""
    preset = load_settings("tabular-cancer")
    assert isinstance(preset.model, TabularSettings)
    assert (preset.model.numeric, preset.model.classes) == (30, 2)
    with pytest.raises(InputError, match=r"model\.numeric=29: data\.public\.contract says 30"):
        load_settings("tabular-cancer", ["model.numeric=29"])
