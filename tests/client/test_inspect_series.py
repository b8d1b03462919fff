"""Looking at series: what is said of them, and that a draft reads them from file to a finished private run."""

from __future__ import annotations

import json
import tomllib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.cli.main import app
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.series.inspect import inspect_series
from fedblocks.client.data.series.load import load_series
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import SeriesContract

MODEL = ForecasterSettings(context_length=16, horizon=4, patch_size=4, channels=1)


def drafted(source: Path | str) -> tuple[SeriesContract, Findings]:
    found = inspect_series(str(source))
    return SeriesContract.model_validate(tomllib.loads(found.draft)), found.findings


def air(weeks: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Carbon dioxide by week as Mauna Loa measures it: a trend, a year's swing, empty weeks and weeks that lack."""
    rng = np.random.default_rng(seed)
    year = np.arange(weeks) * 7 / 365.25
    values = 315 + 1.3 * year + 3 * np.sin(2 * np.pi * year) + rng.normal(0, 0.3, weeks)
    t = pd.DataFrame({"date": pd.date_range("1958-03-29", periods=weeks, freq="7D"), "co2": values.round(1)})
    t.loc[[30, 31, 400], "co2"] = np.nan
    return t.drop(index=[*range(100, 104), 700])


def test_a_weekly_series_with_gaps_is_described_and_its_draft_reads_it(tmp_path: Path) -> None:
    air().to_csv(tmp_path / "air.csv", index=False)
    contract, said = drafted(tmp_path / "air.csv")
    assert said.facts["step"] == "1w"
    assert said.facts["gaps"] == "2, of together 5 steps"
    assert said.facts["rows"] == "995"
    assert said.facts["times"].startswith("1958-03-29 00:00:00 to ")
    assert said.facts["co2"].endswith(", 3 missing")
    assert said.facts["longest stretch"].startswith("299 steps")
    assert contract.time == "date"
    assert contract.channels == ("co2",)
    assert contract.missing == "gap"
    inputs, _ = load_series("data", DataSource(source=str(tmp_path / "air.csv")), MODEL, contract=contract)
    windows = [(n - 20) // 4 + 1 for n in (30, 68, 296, 299, 299)]
    assert len(inputs) == sum(windows)


def test_a_shops_export_of_several_series(tmp_path: Path) -> None:
    """Semicolons, decimal commas, days first, newest first, one day twice: all told by the draft."""
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    shops = [
        pd.DataFrame({"Tag": days, "Filiale": name, "Umsatz": np.arange(60) + 0.5})
        for name in ("Nord", "Süd")
    ]
    t = pd.concat([*shops, shops[0][59:]])[::-1]
    t.assign(Tag=t.Tag.dt.strftime("%d.%m.%Y")).to_csv(
        tmp_path / "shop.csv", index=False, sep=";", decimal=",", encoding="cp1252"
    )
    contract, said = drafted(tmp_path / "shop.csv")
    assert contract.separator == ";"
    assert contract.decimal == ","
    assert contract.order == "sort"
    assert contract.twice == "mean"
    assert contract.channels == ("Umsatz",)
    assert any("row" in note and "earlier" in note for note in said.notes)
    assert contract.series == "Filiale"
    assert said.facts["series"] == "2"
    source = DataSource(source=str(tmp_path / "shop.csv"))
    assert len(load_series("data", source, MODEL, contract=contract)[0]) == 2 * ((60 - 20) // 4 + 1)


@pytest.mark.parametrize(
    ("change", "note", "field"),
    [
        (lambda t: t.assign(v=t.v.where(t.index % 9 != 0, -999.0)), "'v' is -999 in 12 rows", {}),
        (lambda t: t.assign(v=t.v.where(t.index < 60, 7.0)), "'v' does not change for 40 steps", {}),
        (lambda t: t.assign(t=t.t.dt.strftime("%d/%m/%Y"))[:12], "dates have two meanings", {"day_first": True}),
        (lambda t: t.assign(t=t.t + t.index**2 * pd.Timedelta("1s")), "not evenly spaced", {"resample": "mean"}),
        (lambda t: t.drop(columns="t"), "no column holds times", {"time": None}),
    ],
)  # fmt: skip
def test_what_looks_odd_is_said(change, note: str, field: dict[str, object], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    t = pd.DataFrame(
        {"t": pd.date_range("2024-01-01", periods=100, freq="D"), "v": np.arange(100) % 17 + 1.0}
    )
    change(t).to_csv(tmp_path / "t.csv", index=False)
    contract, said = drafted(tmp_path / "t.csv")
    assert note in "\n".join(said.notes)
    for name, value in field.items():
        assert getattr(contract, name) == value


def test_seconds_since_1970_are_recognised(tmp_path: Path) -> None:
    t = pd.DataFrame({"timestamp": 1_700_000_000 + 60 * np.arange(50), "v": np.arange(50.0) % 7})
    t.to_csv(tmp_path / "t.csv", index=False)
    contract, said = drafted(tmp_path / "t.csv")
    assert contract.unit == "s"
    assert said.facts["step"] == "1min"
    assert said.facts["times"].startswith("2023-11-14")


def test_what_holds_no_series_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", "a,b\nx,y\n"), ("a.png", "x"), ("b.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            inspect_series(str(tmp_path / name))
    with pytest.raises(InputError, match="no such file"):
        inspect_series(str(tmp_path / "none.csv"))


def test_from_a_file_with_gaps_to_a_finished_private_run(tmp_path: Path) -> None:
    """One contract file and no code: each of six companies, and the public, by weeks with gaps."""
    air(1500, seed=1).to_csv(tmp_path / "public.csv", index=False)
    air(2200, seed=2).to_csv(tmp_path / "private.csv", index=False)
    (tmp_path / "contract.toml").write_text(inspect_series(str(tmp_path / "private.csv")).draft, "utf-8")
    words = [
        "simulate", "forecast-series", "--runs-dir", str(tmp_path / "runs"), "--json",
        "--set", f"data.public.source={tmp_path / 'public.csv'}",
        "--set", f"data.private.source={tmp_path / 'private.csv'}",
        "--set", f"data.contract={tmp_path / 'contract.toml'}",
        "--set", "model.context_length=24", "--set", "model.horizon=6", "--set", "model.patch_size=6",
        "--set", "model.hidden_size=16", "--set", "model.heads=2", "--set", "pretraining.steps=2",
        "--set", "training.rounds=2", "--set", "training.expected_batch_size=20",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rounds_done"] == 2
    assert len(found["epsilon"]) == 6
    assert all(0 < epsilon <= 8 for epsilon in found["epsilon"].values())


def test_decimals_of_a_database_are_numbers(tmp_path: Path) -> None:
    t = pd.DataFrame(
        {"t": pd.date_range("2024-01-01", periods=40, freq="D"), "v": [Decimal(i % 7) for i in range(40)]}
    )
    t.to_parquet(tmp_path / "t.parquet")
    contract, said = drafted(tmp_path / "t.parquet")
    assert contract.channels == ("v",)
    assert said.facts["v"] == "0 to 6"


def test_a_date_of_two_meanings_is_drafted_by_what_is_even(tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=72, freq="h")
    for form, first in (("%m/%d/%Y %I:%M %p", False), ("%d/%m/%Y %H:%M", True)):
        pd.DataFrame({"t": hours.strftime(form), "v": range(72)}).to_csv(tmp_path / "t.csv", index=False)
        contract, said = drafted(tmp_path / "t.csv")
        assert contract.day_first is first
        assert said.facts["step"] == "1h"
        assert any("you must check" in note for note in said.notes)
