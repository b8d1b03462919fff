"""Decoders against bytes and records of any kind: no foreign exception, no hang, no unbounded memory."""

from __future__ import annotations

import random
import resource
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from secagg_fuzz import Target, attempt, mutated, targets

from fedblocks.client import protocol
from fedblocks.client.identity import load_identity, load_roster
from fedblocks.errors import FedblocksError, InputError, ProtocolError

TARGETS = targets()
INPUTS = 1_000_000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_valid_messages_are_accepted(target: Target) -> None:
    assert all(attempt(target, message) for message in target.corpus)


@settings(max_examples=600, deadline=None)
@given(target=st.sampled_from(TARGETS), data=st.binary(max_size=300), at=st.integers(0, 400))
def test_junk_after_a_valid_beginning(target: Target, data: bytes, at: int) -> None:
    attempt(target, data)
    for message in target.corpus:
        attempt(target, message[:at] + data)
        attempt(target, message[:at] + data + message[at + len(data) :])


def test_mutations_from_a_seed() -> None:
    fuzz(20_000, seed=1)


@pytest.mark.slow
def test_a_million_mutations_from_a_seed() -> None:
    """About a minute; none may take a second, and all of them together no more than 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, seconds = fuzz(INPUTS, seed=0)
    assert slowest < 1.0
    assert seconds < 900
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def fuzz(inputs: int, seed: int) -> tuple[float, float]:
    """Seconds of the slowest input and of all; mutants that are accepted become corpus."""
    draw = random.Random(seed)
    corpora = [list(target.corpus) for target in TARGETS]
    everything = [message for corpus in corpora for message in corpus]
    slowest, started = 0.0, time.perf_counter()
    for _ in range(inputs):
        which = draw.randrange(len(TARGETS))
        corpus = corpora[which]
        data = mutated(draw.choice(corpus), draw.choice(everything), draw)
        began = time.perf_counter()
        accepted = attempt(TARGETS[which], data)
        slowest = max(slowest, time.perf_counter() - began)
        if accepted and len(corpus) < 50:
            corpus.append(data)
    return slowest, time.perf_counter() - started


# Records, as Flower hands them over

RECORDS: list[Callable[[RecordDict], Any]] = [
    protocol.JoinRequest.from_record,
    protocol.JoinReply.from_record,
    protocol.KeysRequest.from_record,
    protocol.KeysReply.from_record,
    protocol.TrainRequest.from_record,
    protocol.TrainReply.from_record,
    protocol.ConfirmRequest.from_record,
    protocol.ConfirmReply.from_record,
    protocol.UnmaskRequest.from_record,
    protocol.UnmaskReply.from_record,
    protocol.refused,
]
FIELDS = (
    "plan", "company", "channel", "signature", "session", "companies", "channels", "signatures", "block", "adverts",
    "advert", "survivors", "confirmation", "confirmations", "shares", "refused",
)  # fmt: skip
MESSAGES = [message for target in TARGETS for message in target.corpus]
some_bytes = st.binary(max_size=60) | st.sampled_from(MESSAGES)
some_names = st.text(max_size=6) | st.sampled_from(["ada", "bob"])
values = st.one_of(
    some_bytes, some_names, st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(),
    st.lists(some_bytes, max_size=3), st.lists(some_names, max_size=3), st.lists(st.integers(-5, 5), max_size=3),
)  # fmt: skip
arrays = st.builds(
    Array,
    dtype=st.sampled_from(["uint8", "uint32", "float32", "object", "<U9", "nonsense"]),
    shape=st.lists(st.integers(-1, 2**40), max_size=3).map(tuple),
    stype=st.sampled_from(["numpy.ndarray", "nonsense"]),
    data=st.binary(max_size=200),
) | st.sampled_from([Array(np.zeros(3, np.uint8)), Array(np.zeros((2, 2), np.float32))])
records = st.builds(
    lambda fields, tensors, name: RecordDict(
        {"message": ConfigRecord(fields)} | ({name: ArrayRecord(tensors)} if name else {})
    ),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6),
    st.dictionaries(st.sampled_from(["masked", "w"]), arrays, max_size=2),
    st.sampled_from(["", "state", "masked", "block-0", "block--1", "other"]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parse=st.sampled_from(RECORDS), record=records)
@example(
    parse=protocol.TrainRequest.from_record,
    record=RecordDict({"message": ConfigRecord({"block": -(2**63), "companies": [""], "adverts": [b""]})}),
)
@example(
    parse=protocol.TrainReply.from_record,
    record=RecordDict({"masked": ArrayRecord({"masked": Array("uint8", (), "numpy.ndarray", b"")})}),
)
def test_records_raise_nothing_but_the_packages_own_errors(
    parse: Callable[[RecordDict], Any], record: RecordDict
) -> None:
    with suppress(FedblocksError):
        parse(record)


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def state_of(data: bytes) -> Any:
    record = RecordDict({"message": ConfigRecord({"block": 0, "companies": [], "adverts": []})})
    record["block-0"] = ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)})
    return protocol.TrainRequest.from_record(record).states[0]["w"]


def test_arrays_arrive_as_they_were_sent() -> None:
    """Would catch an order of axes, an empty array or a number that the reader of headers gets wrong."""
    for array in (
        np.float32(3.5),
        np.zeros((0, 4), np.float32),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(5),
    ):
        assert np.array_equal(state_of(npy(np.asarray(array))).numpy(), array)


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(1, 2)", "(0, 99999999999999999999)", "(-4,)"])
def test_a_header_that_declares_more_than_what_came_allocates_nothing(shape: str) -> None:
    """Would catch NumPy's own reader, which takes a terabyte because a header says so."""
    whole = npy(np.zeros(1, np.float32))
    header = whole[10:-4].replace(b"(1,)", shape.encode())
    header = header.rstrip() + b" " * max(0, len(whole) - 14 - len(header.rstrip()))
    forged = whole[:8] + len(header).to_bytes(2, "little") + header + whole[-4:]
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="malformed"):
        state_of(forged)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, ">f4"), np.zeros(2, [("a", "f4")])])
def test_arrays_that_no_tensor_can_hold_are_malformed(array: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        state_of(npy(array))


# Files of the company's own


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=80)
    | st.dictionaries(
        st.text(min_size=1, max_size=4), st.sampled_from(["00" * 32, "zz", "11" * 31, "58" + "66" * 31]), max_size=3
    ).map(lambda rows: "[companies]\n" + "".join(f'"{n}" = "{v}"\n' for n, v in rows.items()))
)  # fmt: skip
def test_rosters_and_identities_are_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    for read in (load_roster, load_identity):
        with suppress(InputError):
            read(path)


def test_every_type_and_shape_that_numpy_writes_is_read() -> None:
    """Would catch a header of NumPy's own that the reader of messages does not know."""
    for dtype in ("u1", "b1", "i2", "u4", "i8", "f2", "f4", "f8"):
        for shape in ((), (0,), (3,), (2, 3), (4, 1, 2), (1,) * 8):
            array = np.ones(shape, dtype)
            whole = protocol.TrainReply if dtype == "u1" and array.ndim == 1 else None
            read = protocol._numpy(Array("any", shape, "numpy.ndarray", npy(array)))
            assert read.dtype == array.dtype
            assert read.shape == array.shape
            assert np.array_equal(read, array)
            if whole is not None:
                record = RecordDict({"masked": ArrayRecord({"masked": Array(array)})})
                assert np.array_equal(whole.from_record(record).masked, array)
