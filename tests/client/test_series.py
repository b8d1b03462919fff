"""Series connector: windows are what a plain loop cuts, nothing crosses a border, bad tables are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedblocks.blocks.families.forecaster import ForecasterSettings
from fedblocks.client.data import load_examples
from fedblocks.client.data.series.load import BUILT_IN, Part, load_series
from fedblocks.errors import InputError
from fedblocks.settings import DataSource

SMALL = ForecasterSettings(context_length=8, horizon=4, patch_size=4, channels=2)
ONE = SMALL.model_copy(update={"channels": 1})


def table(rows: int = 100, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    dates = pd.date_range("2020-01-01", periods=rows, freq="h").astype(str)
    return pd.DataFrame({"date": dates, "a": rng.normal(5, 2, rows), "b": rng.normal(-50, 9, rows)})


def by_hand(values: np.ndarray, context: int = 8, horizon: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(C, T) -> normalised windows, one at a time."""
    inputs, targets = [], []
    for start in range(0, values.shape[1] - context - horizon + 1, horizon):
        past = values[:, start : start + context]
        future = values[:, start + context : start + context + horizon]
        mean, scale = past.mean(axis=1, keepdims=True), past.std(axis=1, ddof=1, keepdims=True)
        inputs.append((past - mean) / scale)
        targets.append((future - mean) / scale)
    return np.stack(inputs), np.stack(targets)


def load(
    path: Path | str, model: ForecasterSettings = SMALL, part: Part = "all", **options: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    return load_series("data.private.source", DataSource(source=str(path), **options), model, part)


@pytest.mark.parametrize(
    ("part", "rows"), [("all", (0, 100)), ("train", (0, 60)), ("validation", (60, 80)), ("test", (80, 100))]
)
def test_windows_are_those_of_a_loop_within_the_part(
    tmp_path: Path, part: Part, rows: tuple[int, int]
) -> None:
    """Would catch a wrong stride or scale, a window across a split, or a reader that differs by format."""
    t = table()
    t.to_csv(tmp_path / "t.csv", index=False)
    t.assign(date=pd.to_datetime(t.date)).to_parquet(tmp_path / "t.parquet")
    t.set_index("date").to_parquet(tmp_path / "indexed.parquet")
    expected = by_hand(t[["a", "b"]].to_numpy().T[:, slice(*rows)])
    for name in ("t.csv", "t.parquet", "indexed.parquet"):
        for found, wanted in zip(load(tmp_path / name, part=part), expected, strict=True):
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_named_columns_are_series_of_their_own_for_one_channel(tmp_path: Path) -> None:
    """Would catch windows that run from the end of one column into the next."""
    t = table(50)
    t.to_csv(tmp_path / "t.csv", index=False)
    inputs, _ = load(tmp_path / "t.csv", ONE, columns=("b", "a"))
    expected = [by_hand(t[[name]].to_numpy().T)[0] for name in ("b", "a")]
    np.testing.assert_allclose(inputs.numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_a_value_changes_only_the_windows_that_hold_it(tmp_path: Path) -> None:
    """Would catch a statistic of the whole series, against which example-level privacy does not protect."""
    t = table()
    t.to_csv(tmp_path / "t.csv", index=False)
    before = torch.cat(load(tmp_path / "t.csv"), dim=2)
    t.loc[40, "a"] = 1e4
    t.to_csv(tmp_path / "t.csv", index=False)
    changed = (torch.cat(load(tmp_path / "t.csv"), dim=2) != before).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [8, 9, 10]  # windows 4 i to 4 i + 11 with row 40


def test_large_offsets_keep_their_precision(tmp_path: Path) -> None:
    """Would catch float32 before the mean is taken off."""
    t = table()
    t.to_csv(tmp_path / "t.csv", index=False)
    near = load(tmp_path / "t.csv")[1]
    t.assign(a=t.a + 1e8).to_csv(tmp_path / "far.csv", index=False)
    torch.testing.assert_close(load(tmp_path / "far.csv")[1], near, rtol=1e-3, atol=1e-4)


def test_ett_is_split_by_its_months(tmp_path: Path) -> None:
    """Would catch a split of all 17,420 hours rather than of the 20 months that the literature uses."""
    names = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(17_420, 7))
    dates = pd.date_range("2016-07-01", periods=17_420, freq="h")
    pd.DataFrame(values, columns=names).assign(date=dates)[["date", *names]].to_csv(
        tmp_path / "ETTh1.csv", index=False
    )
    model = SMALL.model_copy(update={"channels": 7})
    month = 30 * 24
    for part, low, high in (("train", 0, 12), ("validation", 12, 16), ("test", 16, 20)):
        inputs, _ = load(tmp_path / "ETTh1.csv", model, part)
        expected = by_hand(values[low * month : high * month].T)[0]
        assert inputs.shape == expected.shape
        np.testing.assert_allclose(inputs[[0, -1]].numpy(), expected[[0, -1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda t: t.assign(a=t.a.where(t.index != 7)), r"row 8 of column 'a'.*finite"),
        (lambda t: t.assign(b=np.where(t.index == 3, np.inf, t.b)), r"row 4 of column 'b'.*finite"),
        (lambda t: t.assign(a=np.where(t.index == 3, "none", t.a.astype(str))), r"'a'.*expected numbers"),
        (lambda t: t[:11], r"context_length \+ horizon = 12"),
        (lambda t: t[::-1], "time order"),
        (lambda t: t.assign(date=t.date[0]), "time order"),
        (lambda t: t.assign(a=1.0), "constant"),
        (lambda t: t.assign(c=t.a), r"3 numeric columns.*channels=2"),
        (lambda t: t[["date", "a"]], r"1 numeric columns.*channels=2"),
        (lambda t: t[["date"]], r"0 numeric columns"),
    ],
)
def test_bad_tables_are_refused_with_the_rule(tmp_path: Path, change, rule: str) -> None:  # type: ignore[no-untyped-def]
    for name in ("t.csv", "t.parquet"):
        bad = change(table())
        bad.to_csv(tmp_path / name, index=False) if name == "t.csv" else bad.to_parquet(tmp_path / name)
        with pytest.raises(InputError, match=r"data\.private\.source") as caught:
            load(tmp_path / name)
        assert caught.match(rule)
        assert "\n" not in str(caught.value)


def test_unreadable_files_and_unknown_columns_are_refused(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.csv", "x.txt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError):
            load(tmp_path / name)
    with pytest.raises(InputError, match="built-in sets: pedestrians"):
        load(tmp_path / "none.csv")
    table().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"columns='z': no such column"):
        load(tmp_path / "t.csv", columns=("a", "z"))
    with pytest.raises(InputError, match="expected numbers"):
        load(tmp_path / "t.csv", columns=("a", "date"))
    with pytest.raises(InputError, match=r"expected model\.channels=3"):
        load(tmp_path / "t.csv", SMALL.model_copy(update={"channels": 3}), columns=("a", "b"))


def test_built_in_series_keep_out_sensors_that_were_out() -> None:
    """Would catch days of zeros, which a sensor that was out has written, among the examples."""
    model = ForecasterSettings(context_length=168, horizon=24, patch_size=24)
    sensors = BUILT_IN["pedestrians"]()
    name = "107 Quay Street"
    assert sensors[name].isna().sum() > 25_000
    data = load_examples("f", DataSource(source="pedestrians", columns=(name,)), model, False)
    days = sensors[name].notna().sum() / 24
    assert 0.9 * days < len(data) < days
    whole = load_examples("f", DataSource(source="pedestrians"), model, False)
    assert len(whole) > 45_000
