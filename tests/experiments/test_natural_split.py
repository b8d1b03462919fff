"""Companies with data of their own: a file each, or a column that says whose a row is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError
from fedblocks.experiments.interface import simulate
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import read_inputs

SMALL: dict[str, object] = {
    "model.hidden_size": 16, "model.layers": 2, "model.blocks": 2, "model.heads": 2, "pretraining.steps": 2,
    "training.rounds": 1, "data.test_examples": 30, "workers": 1,
}  # fmt: skip
SIZES = {"acme": 300, "bolt": 12, "crux": 40}


def images(folder: Path) -> dict[str, str]:
    """Very unequal companies; bolt has one class alone."""
    rng = np.random.default_rng(0)
    found = {}
    for name, size in SIZES.items():
        labels = np.full(size, 3) if name == "bolt" else rng.integers(0, 10, size)
        found[name] = str(folder / f"{name}.npz")
        np.savez(found[name], images=rng.random((size, 8, 8)), labels=labels)
    return found


def test_each_company_has_its_own_file_and_its_own_name(tmp_path: Path) -> None:
    """Would catch rows of one company in another's home, or a company that is known by a number."""
    run = simulate("digits", SMALL | {"data.private.sources": images(tmp_path)}, runs_dir=tmp_path / "runs")
    homes = run.homes()
    assert [home.name for home in homes] == ["acme", "bolt", "crux"]
    assert [load_policy(home / "policy.toml").company for home in homes] == ["acme", "bolt", "crux"]
    kept = {home.name: len(np.load(home / "data.npz")["targets"]) for home in homes}
    held = {name: max(1, int(size * 0.2)) for name, size in SIZES.items()}
    assert kept == {name: size - held[name] for name, size in SIZES.items()}
    assert set(np.load(run.companies / "bolt" / "data.npz")["targets"].tolist()) == {3}
    result = json.loads((run.path / "result.json").read_text())
    assert result["rounds_done"] == 1
    assert set(result["epsilon"]) == {"acme", "bolt", "crux"}


def test_the_number_of_companies_is_that_of_the_sources(tmp_path: Path) -> None:
    settings = load_settings("digits", {"data.private.sources": images(tmp_path)})
    assert settings.companies.count == 3
    few = dict(list(images(tmp_path).items())[:2])
    with pytest.raises(InputError, match=r"companies\.count=2: must reach"):
        load_settings("digits", {"data.private.sources": few})
    with pytest.raises(InputError, match=r"data\.private\.sources\.\.\./up"):
        load_settings("digits", {"data.private.sources": {"../up": "x.npz", "b": "y.npz", "c": "z.npz"}})


def test_a_company_with_too_few_examples_is_named(tmp_path: Path) -> None:
    sources = images(tmp_path)
    np.savez(sources["bolt"], images=np.random.default_rng(0).random((4, 8, 8)), labels=np.arange(4))
    with pytest.raises(InputError, match=r"data\.private\.sources\.bolt=.*4 examples, expected at least 10"):
        read_inputs(load_settings("digits", {"data.private.sources": sources}))


def test_a_column_names_the_company(tmp_path: Path) -> None:
    """Would catch rows dealt at random although the table says whose they are."""
    rows = ["shop,size,bought"]
    rows += [f"{shop},{i % 9},{'yes' if i % 2 else 'no'}" for shop, n in SIZES.items() for i in range(n)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    (tmp_path / "contract.toml").write_text(
        'kind = "table"\nlabel = "bought"\nlabels = ["no", "yes"]\ncompany = "shop"\n[numeric]\nsize = [0, 8]\n'
    )
    data: dict[str, object] = {
        "data.contract": str(tmp_path / "contract.toml"), "data.public.source": str(tmp_path / "t.csv"),
        "data.private.source": str(tmp_path / "t.csv"), "model.numeric": 1, "companies.count": 3,
    }  # fmt: skip
    inputs = read_inputs(load_settings("tabular-cancer", SMALL | data))
    assert [len(own) for own in inputs.companies.values()] == [
        SIZES[name] - max(1, int(SIZES[name] * 0.3)) for name in sorted(SIZES)
    ]
    with pytest.raises(InputError, match=r"companies\.count=5: column 'shop' names 3 companies"):
        read_inputs(load_settings("tabular-cancer", SMALL | data | {"companies.count": 5}))
