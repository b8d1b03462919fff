"""Columns of times: every way of writing an instant gives the same one, and two meanings are never chosen between."""

from __future__ import annotations

from datetime import date, datetime, time
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedblocks.client.data.findings import Findings
from fedblocks.client.data.series import steps
from fedblocks.client.data.series.times import Times, columns_of_times, local, read_times
from fedblocks.errors import InputError
from fedblocks.settings.contract import SeriesContract

WRONG = partial(InputError, "data", "t.csv")


def read(column: list[Any], findings: Findings | None = None, **told: Any) -> Times:
    frame = pd.DataFrame({"t": column}, index=range(1, len(column) + 1))
    return read_times(WRONG, frame, ("t",), SeriesContract.model_validate(told), findings or Findings("t"))


def microseconds(*times: str) -> list[int]:
    return np.array(times, "datetime64[us]").astype(np.int64).tolist()


@pytest.mark.parametrize(
    "cell",
    [
        "2024-03-20 14:05", "2024-03-20T14:05:00", "2024-03-20 14:05:00.000", "2024/03/20 14:05", "2024.03.20 14:05",
        "20.03.2024 14:05", "03/20/2024 2:05 PM", "20/3/2024, 2:05 pm", "20 March 2024 14:05", "20-Mar-2024 14:05:00",
        "Mar 20, 2024 14:05", " 2024-3-20 14:05 ", "20240320 14:05", datetime(2024, 3, 20, 14, 5),
        "2024-03-20T14:05Z", "2024-03-20T15:05+01:00", "2024-03-20 09:05:00-0500", "2024-03-20T16:05+02",
        pd.Timestamp("2024-03-20 15:05", tz="Europe/Berlin"),
    ],
)  # fmt: skip
def test_one_instant_in_every_form(cell: object) -> None:
    assert read([cell, cell]).instants.tolist() == microseconds("2024-03-20T14:05") * 2


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([20240131, 20240201], ("2024-01-31", "2024-02-01")),
        (["2024-12-31 24:00", "2025-01-01 01:00"], ("2025-01-01", "2025-01-01T01:00")),
        ([202412, 202501], ("2024-12-01", "2025-01-01")),
        (["2024-12", "2025-01"], ("2024-12-01", "2025-01-01")),
        (["Dec 2024", "January 2025"], ("2024-12-01", "2025-01-01")),
        (["2024Q4", "2025-Q1"], ("2024-10-01", "2025-01-01")),
        ([date(2024, 2, 29), date(2024, 3, 1)], ("2024-02-29", "2024-03-01")),
    ],
)
def test_days_months_and_quarters(column: list[Any], expected: tuple[str, str]) -> None:
    assert read(column).instants.tolist() == microseconds(*expected)


def test_a_day_is_told_from_a_month_by_rows_with_one_meaning_or_by_the_contract() -> None:
    """Would catch the 3rd of April read as the 4th of March, in silence."""
    both = ["03/04/2024", "04/04/2024"]
    with pytest.raises(InputError, match=r"row 1 of column 't' has two meanings.*day_first"):
        read(both)
    assert read(both, day_first=True).instants.tolist() == microseconds("2024-04-03", "2024-04-04")
    assert read(both, day_first=False).instants.tolist() == microseconds("2024-03-04", "2024-04-04")
    said = Findings("t")
    assert read([*both, "13/04/2024"], said).instants.tolist()[0] == microseconds("2024-04-03")[0]
    assert said.notes == ["dates in column 't' have the day first"]
    with pytest.raises(InputError, match="row 1 of column 't' has the day first, and row 2 the month"):
        read(["13/04/2024", "04/13/2024"])
    with pytest.raises(InputError, match="two meanings"):
        read(["13/04/24", "14/04/24"])  # a year of two digits may stand first
    assert read(["13/04/24"], day_first=True).instants.tolist() == microseconds("2024-04-13")


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (["2024-01-01", "soon"], "row 2 of column 't' is no time that can be read"),
        (["2024-01-31", "2024-02-30"], "row 2 of column 't' is no time: there is no such day"),
        (["2024-01-01 25:00"], "no such day or hour"),
        (["12:30", "13:30"], "a time of day without a date"),
        (["2024-01-01T00:00+01:00", "2024-01-01T01:00"], "row 2 of column 't' has no offset from UTC"),
        (["2024-01-01T00:00", "2024-01-01T01:00Z"], "row 2 of column 't' has an offset from UTC"),
        ([0.5, 1.5], "not whole"),
    ],
)
def test_what_is_no_time_is_refused_by_its_row(column: list[Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        read(column)
    assert "soon" not in str(caught.value)


def test_numbers_are_counts_unless_a_unit_is_told() -> None:
    assert read([1990, 1991]).counted
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        found = read([1710943500 * scale, 1710943560 * scale], unit=unit)
        assert found.aware
        assert found.instants.tolist() == microseconds("2024-03-20T14:05", "2024-03-20T14:06")


def test_columns_of_times_are_found_by_their_form() -> None:
    """Would catch names, numbers or versions taken for times."""
    frame = pd.DataFrame(
        {
            "name": ["May", "Sat"], "n": [20240101, 20240102], "version": ["1.2", "1.10"],
            "Date": [date(2024, 1, 1)] * 2, "Time": [time(0), time(1)],
        }
    )  # fmt: skip
    assert columns_of_times(frame) == [("Date", "Time")]
    assert columns_of_times(frame.drop(columns="Time")) == [("Date",)]
    assert columns_of_times(frame.drop(columns="Date")) == []


def test_an_hour_that_comes_twice_is_told_apart_by_its_order() -> None:
    """Would catch a step of an hour lost, or one of two hours, as the clocks are put back."""
    naive = [f"2024-10-27 {h}" for h in ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")]
    times, wall = local(WRONG, read(naive), np.arange(1, 7), "Europe/Berlin")
    assert (np.diff(times.instants) == 30 * 60 * 10**6).all()
    assert wall.tolist() == read(naive).instants.tolist()
    once = read(["2024-10-27 01:00", "2024-10-27 02:00", "2024-10-27 03:00"])
    assert np.diff(local(WRONG, once, np.arange(3), "Europe/Berlin")[0].instants).tolist() == [
        36 * 10**8,
        72 * 10**8,
    ]
    with pytest.raises(InputError, match="row 2: clocks in Europe/Berlin never showed this time"):
        local(WRONG, read(["2024-03-31 01:30", "2024-03-31 02:30"]), np.arange(1, 3), "Europe/Berlin")


@pytest.mark.parametrize(
    ("freq", "shown"),
    [
        ("h", "1h"), ("15min", "15min"), ("D", "1d"), ("W", "1w"), ("MS", "1month"), ("ME", "1month"),
        ("QS", "1quarter"), ("YE", "1year"), ("B", "weekday"), ("28D", "4w"), ("90s", "90s"), ("250ms", "0.25s"),
    ],
)  # fmt: skip
def test_the_step_is_found_and_counts_what_lies_between(freq: str, shown: str) -> None:
    """Would catch months taken for 31 days, and a weekend for a gap."""
    every = pd.date_range("2023-01-01", periods=60, freq=freq).to_numpy("datetime64[us]").astype(np.int64)
    step = steps.found([every], counted=False)
    assert step is not None
    assert str(step) == shown
    assert (step.between(every) == 1).all()
    missing = np.delete(every, [10, 11, 12, 30])
    again = steps.found([missing], counted=False)
    assert again == step
    expected = np.ones(len(missing) - 1)
    expected[9], expected[26] = 4, 2
    np.testing.assert_array_equal(again.between(missing), expected)
    moved = every.copy()
    moved[20] += 1
    assert np.flatnonzero(np.isnan(step.between(moved))).tolist() == [19, 20]
    if "." not in shown:
        assert steps.told(shown) == step
