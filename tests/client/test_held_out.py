"""Which examples are held out depends on each of them and on the home's own secret; nothing is trained on them."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedblocks.blocks.examples import Examples
from fedblocks.cli.main import app
from fedblocks.client.company import Company
from fedblocks.client.doctor import examine
from fedblocks.client.held_out import HELD_OUT_FILE, KEY_FILE, fingerprint, held_out_places, split
from fedblocks.client.home import make_home
from fedblocks.client.policy import load_policy
from fedblocks.client.readiness import data_fingerprint
from fedblocks.errors import InputError

CONTRACT = """
kind = "table"
label = "y"
labels = ["0", "1"]
[numeric]
a = [0, 1000]
b = [0, 1000]
"""
KEY = bytes(range(32))


def made(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, 2, generator=generator)
    return Examples(inputs, torch.randint(5, (count,), generator=generator))


def home_of(tmp_path: Path, rows: list[tuple[int, int, int]], *options: str, name: str = "acme") -> Path:
    """A home that has imported these rows."""
    home = tmp_path / name
    if not home.exists():
        make_home(home, "acme", epsilon_ceiling=8.0, delta=1e-5)
    (tmp_path / "contract.toml").write_text(CONTRACT)
    text = "a,b,y\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows)
    (tmp_path / "rows.csv").write_text(text)
    words = ["company", "import", str(tmp_path / "rows.csv"), str(home)]
    done = CliRunner().invoke(app, [*words, "--contract", str(tmp_path / "contract.toml"), *options])
    if done.exception is not None:
        raise done.exception
    return home


ROWS = [(i, (7 * i) % 1000, i % 2) for i in range(400)]


def rows_in(home: Path, name: str) -> set[tuple[float, ...]]:
    data = Examples.load(home / name)
    return {(*x.tolist(), float(y)) for x, y in zip(data.inputs, data.targets, strict=True)}


@pytest.mark.parametrize("at", [0, 17, 199])
def test_one_example_more_or_less_moves_no_other(at: int) -> None:
    """Adjacency: would catch a split by order, by shuffling, or to an exact number of examples."""
    data = made(200)
    whole = held_out_places(data, 0.3, KEY)
    rest = np.delete(np.arange(200), at)
    assert np.array_equal(held_out_places(data[rest], 0.3, KEY), whole[rest])


def test_equal_examples_are_on_one_side_wherever_they_stand() -> None:
    """Would catch an example that is trained on and judged by, under two places in the file."""
    data = made(100)
    order = np.random.default_rng(1).permutation(300) % 100
    again = held_out_places(data[order], 0.3, KEY)
    assert np.array_equal(again, held_out_places(data, 0.3, KEY)[order])
    zero = Examples(torch.tensor([[0.0], [-0.0]]), torch.tensor([1, 1]))
    for key in (bytes([i] * 32) for i in range(20)):
        assert len(set(held_out_places(zero, 0.5, key).tolist())) == 1


def test_the_share_is_about_what_was_asked_for_and_grows_without_exchange() -> None:
    """Would catch a share of something else, and examples that return to training as more are held out."""
    data = made(4000)
    few, more = (held_out_places(data, share, KEY) for share in (0.1, 0.3))
    assert abs(few.mean() - 0.1) < 0.02
    assert abs(more.mean() - 0.3) < 0.03
    assert not (few & ~more).any()
    assert held_out_places(data, 0.0, KEY).sum() == 0


def test_who_has_another_key_holds_out_others() -> None:
    """Would catch a split that anybody can compute, and so choose an example that is never trained on."""
    data = made(1000)
    first, second = (held_out_places(data, 0.5, key) for key in (KEY, bytes(32)))
    assert 0.4 < (first != second).mean() < 0.6


def test_every_example_is_in_exactly_one_part_in_its_order() -> None:
    data = made(300)
    train, out = split(data, 0.2, KEY)
    places = held_out_places(data, 0.2, KEY)
    assert torch.equal(train.inputs, data.inputs[~torch.from_numpy(places)])
    assert torch.equal(out.targets, data.targets[torch.from_numpy(places)])


def test_an_import_holds_out_a_tenth_and_never_the_other_way(tmp_path: Path) -> None:
    """From the command to the files: would catch overlap, a key that changes, files that others may read."""
    home = home_of(tmp_path, ROWS)
    train, out = rows_in(home, "data.npz"), rows_in(home, HELD_OUT_FILE)
    assert not train & out
    assert len(train | out) == 400
    assert 15 < len(out) < 75
    modes = {name: stat.S_IMODE((home / name).stat().st_mode) for name in (HELD_OUT_FILE, KEY_FILE)}
    assert modes == {HELD_OUT_FILE: 0o600, KEY_FILE: 0o600}
    home_of(tmp_path, [*ROWS[1:], (999, 999, 1)], "--replace")
    moved = rows_in(home, "data.npz") & out | rows_in(home, HELD_OUT_FILE) & train
    assert not moved
    told = json.loads((home / "data.json").read_text())
    assert told["held_out"] == len(rows_in(home, HELD_OUT_FILE))


def test_nothing_is_held_out_where_none_is_wanted(tmp_path: Path) -> None:
    """Would catch examples of an earlier import that stay held out and are trained on too."""
    home = home_of(tmp_path, ROWS)
    home_of(tmp_path, ROWS, "--replace", "--held-out", "0")
    assert not (home / HELD_OUT_FILE).exists()
    assert len(rows_in(home, "data.npz")) == 400
    company = Company(home, load_policy(home / "policy.toml"))
    assert company.held_out() is None
    assert data_fingerprint(company) == company.data().digest


@pytest.mark.parametrize("share", ["-0.1", "0.6", "nan"])
def test_a_share_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, share: str) -> None:
    home = make_home(tmp_path / "acme", "acme", epsilon_ceiling=8.0, delta=1e-5).parent
    with pytest.raises(InputError, match="--held-out"):
        home_of(tmp_path, ROWS, "--held-out", share)
    assert [path.name for path in home.iterdir()] == ["policy.toml"]


def test_the_fingerprint_tells_of_both_parts() -> None:
    """Would catch held-out examples that are exchanged in mid-run unnoticed, or moved from one part to the other."""
    train, out = split(made(100), 0.3, KEY)
    found = {fingerprint(train, None), fingerprint(train, out), fingerprint(train, out[slice(1, None)])}
    assert len(found | {fingerprint(out, train)}) == 4


def test_the_check_sees_an_example_that_is_on_both_sides(tmp_path: Path) -> None:
    """Would catch held-out figures that training has spoilt, as after files are copied together by hand."""
    home = home_of(tmp_path, ROWS)
    assert not [f for f in examine(home, None, connect=False) if f.name == "held_out"]
    shutil.copy(home / "data.npz", home / HELD_OUT_FILE)
    found = [f for f in examine(home, None, connect=False) if f.name == "held_out"]
    assert [f.level for f in found] == ["error"]


def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path) -> None:
    """Would catch a new key, under which examples that were held out would be trained on."""
    home = home_of(tmp_path, ROWS)
    (home / KEY_FILE).write_bytes(b"short")
    with pytest.raises(InputError, match="not a key"):
        home_of(tmp_path, ROWS, "--replace")
