"""Decoders against bytes and records of any kind: no foreign exception, no hang, no unbounded memory."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.secagg_fuzz import Target, attempt, mutated, targets

from fedblocks.blocks.state_bytes import TYPES, to_bytes
from fedblocks.errors import FedblocksError, InputError, ProtocolError
from fedblocks.protocol import messages as protocol
from fedblocks.protocol.identity import load_identity, load_roster

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
    data=st.binary(max_size=200)
    | st.sampled_from([to_bytes({"w": torch.zeros(2, dtype=dtype)}) for dtype in TYPES.values()]),
) | st.sampled_from([Array(np.zeros(3, np.uint8)), Array(np.zeros((2, 2), np.float32))])
records = st.builds(
    lambda fields, tensors, name: RecordDict(
        {"message": ConfigRecord(fields)} | ({name: ArrayRecord(tensors)} if name else {})
    ),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6),
    st.dictionaries(st.sampled_from(["masked", "shared", "block-0", "block--1", "w"]), arrays, max_size=2),
    st.sampled_from(["", "arrays", "arrays", "message", "other"]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parse=st.sampled_from(RECORDS), record=records)
@example(
    parse=protocol.TrainRequest.from_record,
    record=RecordDict({"message": ConfigRecord({"block": -(2**63), "companies": [""], "adverts": [b""]})}),
)
@example(
    parse=protocol.TrainReply.from_record,
    record=RecordDict({"arrays": ArrayRecord({"masked": Array("uint8", (), "numpy.ndarray", b"")})}),
)
def test_records_raise_nothing_but_the_packages_own_errors(
    parse: Callable[[RecordDict], Any], record: RecordDict
) -> None:
    with suppress(FedblocksError):
        parse(record)


def test_what_flower_says_of_an_array_is_not_believed() -> None:
    """Would catch a reader that goes by a type, a shape or NumPy's header of the sender's choice."""
    for array in (
        Array("float64", (10**12,), "numpy.ndarray", b"\1\2"),
        Array("object", (-1, 2), "nonsense", b"\1\2"),
    ):
        reply = protocol.TrainReply.from_record(RecordDict({"arrays": ArrayRecord({"masked": array})}))
        assert reply.masked.dtype == np.uint8
        assert reply.masked.tolist() == [1, 2]
    file = BytesIO()
    np.save(file, np.zeros(2, np.float32))
    record = RecordDict({"message": ConfigRecord({"block": 0, "companies": [], "adverts": []})})
    record["arrays"] = ArrayRecord({"block-0": Array("float32", (2,), "numpy.ndarray", file.getvalue())})
    with pytest.raises(ProtocolError, match="malformed"):
        protocol.TrainRequest.from_record(record)


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
