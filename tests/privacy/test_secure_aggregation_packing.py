"""Packed residues: exact at every width and length, in the documented layout, and small. And what sums cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.secagg import refused
from typer.testing import CliRunner

from fedblocks.cli.bench import bench
from fedblocks.experiments.bench.secagg import measure
from fedblocks.privacy.secure_aggregation import packing

LENGTHS = st.integers(1, 300) | st.sampled_from(
    [packing.BLOCK - 1, packing.BLOCK, packing.BLOCK + 1, 2 * packing.BLOCK + 77]
)


def values(length: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, length, dtype=np.uint64).astype(np.uint32)


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 32), length=LENGTHS, seed=st.integers(0, 2**32))
def test_packing_and_back_is_exact_and_adds_mod_two_to_the_bits(bits: int, length: int, seed: int) -> None:
    x, y = values(length, bits, seed), values(length, bits, seed + 1)
    packed = packing.pack(x, bits)
    assert packed.nbytes == packing.packed_size(length, bits)
    assert np.array_equal(packing.unpack(packed, length, bits), x)
    total = y.copy()
    packing.add_packed(total, packed, bits)
    largest = (1 << bits) - 1
    assert np.array_equal(total & np.uint32(largest), (x.astype(np.uint64) + y) & np.uint64(largest))


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 32), length=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_the_layout_is_the_documented_one(bits: int, length: int, seed: int) -> None:
    """Oracle: columns as Python's integers. Would catch a layout that only its own inverse understands."""
    x = [int(v) for v in values(length, bits, seed)]
    g = int(np.gcd(bits, 32))
    lanes, words = 32 // g, bits // g
    columns = -(-length // lanes)
    x += [0] * (lanes * columns - length)
    numbers = [sum(x[lane * columns + c] << (bits * lane) for lane in range(lanes)) for c in range(columns)]
    expected = [numbers[c] >> (32 * w) & 0xFFFFFFFF for w in range(words) for c in range(columns)]
    packed = packing.pack(np.array(x[:length], np.uint32), bits)
    assert packed.view("<u4").tolist() == expected


@pytest.mark.parametrize("bits", range(1, 33))
def test_a_long_vector_takes_bits_over_eight_bytes_a_value(bits: int) -> None:
    assert packing.packed_size(10**6, bits) / 10**6 == pytest.approx(bits / 8, rel=1e-4)
    assert packing.packed_size(10**6, 22) <= 2.8e6


def test_another_size_is_refused_before_anything_is_allocated() -> None:
    refused("bad_vector", packing.unpack, np.zeros(3, np.uint8), 2**40, 22)
    for packed in (np.zeros(87, np.uint8), np.zeros(89, np.uint8), np.zeros(22, np.uint32), bytes(88)):
        refused("bad_vector", packing.unpack, packed, 30, 22)
    refused("bad_vector", packing.unpack, np.zeros(176, np.uint8)[::2], 30, 22)


def test_the_bench_measures_whole_sessions_and_draws_them(tmp_path: Path) -> None:
    result = measure(values=5000, repeats=3, cohorts=(3, 5), figure=tmp_path / "growth.png")
    assert {"speedup_vs_flower", "client_ms_n5", "bytes_per_value", "by_n"} <= result.keys()
    assert [row["n"] for row in result["by_n"]] == [3, 5]
    assert result["bytes_per_value"] < 2.8
    json.dumps(result)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_measurement(tmp_path: Path) -> None:
    for name in ("growth.txt", "missing/growth.png"):
        done = CliRunner().invoke(bench, ["secagg", "--figure", str(tmp_path / name)])
        assert "--figure" in str(done.exception)
