"""Tables of series as people have them: order, gaps, daylight saving, several series, and what no window crosses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.client.data import load_examples
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.series.load import load_series
from fedblocks.client.data.series.table import Read, read_series
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.contract import SeriesContract, TextContract

FIELD = "data.private.source"
MODEL = ForecasterSettings(context_length=8, horizon=4, patch_size=4, channels=1)


def hours(rows: int = 100, start: str = "2024-01-01") -> pd.DataFrame:
    """Row i is worth i: a window tells which rows it holds."""
    return pd.DataFrame(
        {"time": pd.date_range(start, periods=rows, freq="h"), "value": np.arange(float(rows))}
    )


def saved(frame: pd.DataFrame, folder: Path, name: str = "t.csv", **options: Any) -> str:
    frame.to_csv(folder / name, index=False, **options)
    return str(folder / name)


def read(
    source: str, findings: Findings | None = None, columns: tuple[str, ...] | None = None, **told: Any
) -> Read:
    contract = SeriesContract.model_validate(told | {"least_examples": 1}) if told else None
    return read_series(FIELD, DataSource(source=source, columns=columns), contract, findings or Findings("t"))


def values(found: Read) -> list[list[float]]:
    """Of the first channel, the stretches between gaps."""
    return [
        part.tolist()
        for one in found.series
        for part in np.split(one.values[0], np.flatnonzero(one.first[1:]) + 1)
    ]


def load(source: str, findings: Findings | None = None, **told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    contract = SeriesContract.model_validate({"least_examples": 1} | told) if told else None
    return load_series(FIELD, DataSource(source=source), MODEL, contract=contract, findings=findings)


def test_no_window_crosses_missing_rows(tmp_path: Path) -> None:
    """Would catch a window whose first value is days before its last, which today's rows in order look like."""
    t = hours().drop(index=range(40, 63))
    said = Findings("t")
    found = read(saved(t, tmp_path), said)
    assert values(found) == [list(range(40)), list(range(63, 100))]
    assert "1 gap between rows; no window crosses one" in said.notes
    assert str(found.step) == "1h"
    inputs, targets = load(saved(t, tmp_path), said)
    # A straight line looks the same in every window; one with a jump in it does not.
    assert len(inputs) == (40 - 12) // 4 + 1 + (37 - 12) // 4 + 1
    assert torch.allclose(inputs, inputs[:1].expand_as(inputs), atol=1e-5)
    assert torch.allclose(targets, targets[:1].expand_as(targets), atol=1e-5)


def test_short_stretches_are_counted_and_if_nothing_is_left_the_error_says_why(tmp_path: Path) -> None:
    said = Findings("t")
    load(saved(hours().drop(index=[50, 60]), tmp_path), said)
    assert any(note.startswith("9 rows in 1 stretches between gaps give no example") for note in said.notes)
    t = hours().drop(index=range(5, 100, 6))
    with pytest.raises(
        InputError, match=r"no stretch of context_length \+ horizon = 12 steps.*longest is 5 steps"
    ):
        load(saved(t, tmp_path))


def test_offsets_that_change_with_daylight_saving_are_in_order(tmp_path: Path) -> None:
    index = pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    t = pd.DataFrame({"date": [time.isoformat() for time in index], "value": np.arange(60.0)})
    assert {text[-6:] for text in t.date} == {"+01:00", "+02:00"}
    for names in (None, ("value",)):
        assert values(read(saved(t, tmp_path), columns=names)) == [list(range(60))]


def test_days_by_local_clocks_need_their_zone(tmp_path: Path) -> None:
    """A day of 23 hours is one step where the zone is told."""
    index = pd.date_range("2024-03-20", periods=30, freq="D", tz="Europe/Berlin")
    source = saved(pd.DataFrame({"date": [t.isoformat() for t in index], "value": range(30)}), tmp_path)
    with pytest.raises(InputError, match=r"row 13 is no whole number of steps \(1d\).*zone"):
        read(source)
    assert values(read(source, zone="Europe/Berlin")) == [list(range(30))]


def test_an_hour_twice_in_autumn_is_named_or_read_as_told(tmp_path: Path) -> None:
    index = pd.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin").tz_localize(None)
    source = saved(pd.DataFrame({"date": index, "value": np.arange(60.0)}), tmp_path)
    row = int(np.flatnonzero(index.duplicated())[0])
    with pytest.raises(InputError, match=rf"row {row + 1} of 'date' has the time of the one before it again"):
        read(source, columns=("value",))
    assert values(read(source, zone="Europe/Berlin")) == [list(range(60))]
    for twice, kept in (("first", row - 1.0), ("last", float(row)), ("mean", row - 0.5)):
        found = values(read(source, twice=twice))
        assert found == [[*range(row - 1), kept, *range(row + 1, 60)]]


def test_date_and_time_of_day_may_stand_apart(tmp_path: Path) -> None:
    """Would catch a column of days refused, since each of them comes again and again."""
    t = hours()
    t = pd.DataFrame({"Date": t.time.dt.date, "Time": t.time.dt.strftime("%H:%M"), "value": t.value})
    source = saved(t, tmp_path)
    for found in (read(source), read(source, columns=("value",)), read(source, time=["Date", "Time"])):
        assert values(found) == [list(range(100))]
        assert str(found.step) == "1h"
    parts = hours().assign(year=2024, month=1, day=lambda t: t.time.dt.day, hour=lambda t: t.time.dt.hour)
    source = saved(parts.drop(columns="time"), tmp_path)
    assert values(read(source, time=["year", "month", "day", "hour"], channels=["value"])) == [
        list(range(100))
    ]


def test_rows_out_of_order_are_refused_or_sorted(tmp_path: Path) -> None:
    source = saved(hours()[::-1], tmp_path)
    with pytest.raises(InputError, match=r"time order, row 2 of 'time' is earlier.*order = \"sort\""):
        read(source)
    assert values(read(source, order="sort")) == [list(range(100))]


def test_several_series_of_one_table_stay_apart(tmp_path: Path) -> None:
    """Would catch windows of two shops, and rows of one put among those of the other."""
    shops = [
        hours(30).assign(shop=name, value=lambda t, i=i: t.value + 100 * i) for i, name in enumerate("ab")
    ]
    for order in (pd.concat(shops), pd.concat(shops).sort_values("time", kind="stable")):
        source = saved(order, tmp_path)
        assert values(read(source, series="shop")) == [list(range(30)), list(range(100, 130))]
        inputs, _ = load(source, series="shop")
        assert len(inputs) == 2 * ((30 - 12) // 4 + 1)
    with pytest.raises(InputError, match="numbers"):
        read(source)
    with pytest.raises(InputError, match=r"has the time of the one before it again.*series"):
        read(source, channels=["value"])


def test_rows_between_two_steps_are_named_or_brought_to_a_grid(tmp_path: Path) -> None:
    t = hours()
    t.loc[49, "time"] += pd.Timedelta("7min")
    source = saved(t, tmp_path)
    with pytest.raises(
        InputError, match=r"row 50 is no whole number of steps \(1h\).*nor is 1 other row.*resample"
    ):
        read(source)
    assert values(read(source, step="1h", resample="mean")) == [list(range(100))]
    assert values(read(source, step="row")) == [list(range(100))]


@pytest.mark.parametrize(("how", "expected"), [("mean", 1.5), ("sum", 6.0), ("first", 0.0), ("last", 3.0)])
def test_a_grid_is_made_of_the_rows_within_each_step(how: str, expected: float, tmp_path: Path) -> None:
    t = pd.DataFrame(
        {"time": pd.date_range("2024-01-01", periods=40, freq="15min"), "value": np.arange(40.0)}
    )
    said = Findings("t")
    found = values(read(saved(t, tmp_path), said, step="1h", resample=how))
    assert found == [[expected + (16 if how == "sum" else 4) * i for i in range(10)]]
    assert f"rows are brought to one a 1h: the {how} of those that fall into it" in said.notes
    cut = saved(t.drop(index=range(16, 24)), tmp_path)
    assert [len(part) for part in values(read(cut, step="1h", resample=how))] == [4, 4]


def test_a_value_reaches_only_its_own_step_of_the_grid(tmp_path: Path) -> None:
    """Would catch a grid that is filled from its neighbours, or from all of the series."""
    t = pd.DataFrame(
        {"time": pd.date_range("2024-01-01", periods=400, freq="15min"), "value": np.arange(400.0)}
    )
    told = {"step": "1h", "resample": "mean"}
    before = torch.cat(load(saved(t, tmp_path), **told), dim=2)
    t.loc[161, "value"] = 1e4
    changed = (torch.cat(load(saved(t, tmp_path), **told), dim=2) != before).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [8, 9, 10]  # windows 4 i to 4 i + 11 with hour 40


def test_missing_values_are_refused_or_gaps_as_told(tmp_path: Path) -> None:
    t = hours()
    t.loc[[20, 70], "value"] = np.nan
    source = saved(t, tmp_path)
    with pytest.raises(
        InputError, match=r"row 21 of column 'value' is empty; fill it, or say missing = \"gap\""
    ):
        load(source)
    said = Findings("t")
    inputs, _ = load(source, said, missing="gap")
    assert len(inputs) == (20 - 12) // 4 + 1 + (49 - 12) // 4 + 1 + (29 - 12) // 4 + 1
    assert said.facts["missing"] == "2 values are missing; no window holds one"
    t.loc[5, "time"] = None
    source = saved(t, tmp_path)
    with pytest.raises(InputError, match="row 6 of column 'time' is empty"):
        read(source, columns=("value",))
    assert "1 row without a time, or a series, left out" in (read(source, said, missing="gap"), said.notes)[1]


@pytest.mark.parametrize("rest", [0.0, 20.0, 1e6])
def test_contexts_that_only_rounding_moves_are_left_out(rest: float, tmp_path: Path) -> None:
    """Would catch targets of 1e9, which a step after a rest becomes in units of the rest's rounding."""
    rng = np.random.default_rng(0)
    t = hours(400)
    t.value = rest + rng.normal(0, 1e-15 * max(rest, 1e6), 400)
    t.loc[::57, "value"] += 1.0
    said = Findings("t")
    inputs, targets = load(saved(t, tmp_path), said)
    assert targets.abs().max() < 100
    assert len(inputs) < (400 - 12) // 4 + 1
    assert any("left out: their context is constant but for rounding" in note for note in said.notes)


def test_a_resolution_says_what_is_rounding(tmp_path: Path) -> None:
    t = hours(200)
    t.value = np.where(np.arange(200) < 100, np.random.default_rng(0).normal(0, 0.05, 200), np.arange(200.0))
    source = saved(t, tmp_path)
    said = Findings("t")
    assert len(load(source, said, resolution=0.2)[0]) < len(load(source)[0])
    assert not any("are over 1,000 deviations" in note for note in said.notes)
    load(source, said)
    assert any("are over 1,000 deviations from their context" in note for note in said.notes)


def test_decimal_commas_are_told_never_guessed(tmp_path: Path) -> None:
    """Would catch the digits behind the comma taken for the series."""
    t = hours().assign(value=lambda t: t.value + 0.25)
    source = saved(t, tmp_path, sep=";", decimal=",")
    with pytest.raises(InputError, match="its columns are separated by semicolons"):
        read(source)
    with pytest.raises(InputError, match=r"decimal commas: say decimal"):
        read(source, separator=";")
    assert values(read(source, separator=";", decimal=","))[0][:2] == [0.25, 1.25]
    (tmp_path / "u.csv").write_text(
        "date;value, kWh\n" + "".join(f"2024-01-0{d};5,{d}\n" for d in range(1, 9))
    )
    with pytest.raises(InputError, match="separator in its name"):
        read(str(tmp_path / "u.csv"))


def test_the_contract_names_what_is_read(tmp_path: Path) -> None:
    """Settings' columns may be those of the preset's own data."""
    source = saved(hours().assign(other=1.0), tmp_path)
    said = Findings("t")
    found = read(source, said, columns=("45 Queen Street",), channels=["value"])
    assert found.names == ["value"]
    assert "data.private.columns is not used: the contract says what is read" in said.notes
    with pytest.raises(InputError, match="column 'when' is missing"):
        read(source, time="when")
    with pytest.raises(InputError, match="'z': no such column"):
        read(source, channels=["z"])
    wrong = DataSource(source=source, contract=TextContract())
    with pytest.raises(InputError, match=r"data\.private\.contract\.kind"):
        load_examples(FIELD, wrong, MODEL, False)
    with pytest.raises(InputError, match=r"23 windows can be used, contract\.least_examples=50"):
        load(source, channels=["value"], least_examples=50)


def test_every_format_of_a_table_gives_the_same_series(tmp_path: Path) -> None:
    t = hours()
    saved(t, tmp_path, "a.csv")
    t.to_parquet(tmp_path / "a.parquet")
    t.set_index("time").rename_axis(None).to_parquet(tmp_path / "unnamed.parquet")
    t.convert_dtypes().to_feather(tmp_path / "a.feather")
    t.to_csv(tmp_path / "a.csv.gz", index=False)
    t.to_excel(tmp_path / "a.xlsx", index=False)
    for name in ("a.csv", "a.parquet", "unnamed.parquet", "a.feather", "a.csv.gz", "a.xlsx"):
        found = read(str(tmp_path / name))
        assert values(found) == [list(range(100))], name
        assert str(found.step) == "1h", name


def test_what_is_no_file_of_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    for source, complaint in (
        (tmp_path, "is a folder; name one file"), (tmp_path / "a.png", "expected a table"),
        (tmp_path / ("x" * 999), "not readable"), (tmp_path / "none.csv", "built-in sets: pedestrians"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=complaint) as caught:
            read(str(source))
        assert len(str(caught.value).splitlines()) == 1
