"""States of every type: digested, sent and read back, and what is no state refused."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from fedblocks.blocks.settings import MOST_BLOCKS
from fedblocks.blocks.state import State, digest
from fedblocks.blocks.state_bytes import LARGEST_HEADER, MOST_TENSORS, TYPES, from_bytes, to_bytes
from fedblocks.errors import InputError, ProtocolError
from fedblocks.protocol.messages import TrainRequest
from fedblocks.protocol.transport.records import bytes_array, decode, encode

SHAPES = [(), (0,), (3,), (0, 4), (2, 3), (4, 1, 2), (1,) * 8]


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    values = torch.randint(0, 2, shape) if dtype in (torch.bool, torch.uint8) else 3 * torch.randn(shape)
    return values.to(dtype)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_an_empty_tensor_of_numpys_has_a_digest_too() -> None:
    """NumPy gives an empty array other strides than torch. Would catch a company without data that cannot train."""
    empty = torch.from_numpy(np.load(_saved(np.zeros(0, dtype=np.int64))))
    assert digest({"targets": empty}) == digest({"targets": torch.zeros(0, dtype=torch.int64)})


def _saved(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_a_state_of_any_type_arrives_bit_for_bit(dtype: torch.dtype) -> None:
    """Would catch a type that NumPy does not have, an order of axes or an empty tensor that gets lost."""
    state = {f"w{i}": tensor_of(dtype, shape) for i, shape in enumerate(SHAPES)}
    state["turned"] = tensor_of(dtype, (4, 5)).T
    back = from_bytes(to_bytes(state))
    assert same(back, state)
    assert digest(back) == digest(state)
    request = TrainRequest(1, {0: state, 1: back}, {})
    received = TrainRequest.from_record(decode(encode(request.to_record())))
    assert same(received.states[0], state)
    assert same(received.states[1], state)
    received.states[1]["w2"].fill_(0)  # what arrives may be trained in place
    assert torch.equal(received.states[0]["w2"], state["w2"])


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_every_bit_of_a_tensor_is_in_its_digest(dtype: torch.dtype) -> None:
    state = {"w": torch.zeros(2, dtype=dtype)}
    seen = {digest(state), digest({"w": torch.zeros(1, 2, dtype=dtype)}), digest({"v": state["w"]})}
    raw = state["w"].view(torch.uint8)
    for i in range(len(raw)):
        raw[i] = 1
        seen.add(digest(state))
        raw[i] = 0
    assert len(seen) == 3 + len(raw)


def test_two_parts_may_share_a_name() -> None:
    """Only a sender of states makes such; would catch a comparison of tensors, an error that is none of ours."""
    zeros, ones = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert len({digest(zeros, ones), digest(ones, zeros), digest(zeros), digest(ones)}) == 4


def test_digests_of_earlier_versions_hold() -> None:
    """Golden, from when digests were made through NumPy: checkpoints and what companies signed up to name them."""
    state = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(3),
        "c": torch.tensor(2.5),
        "d": torch.arange(6.0).reshape(2, 3).T,
        "e": torch.zeros(0, 4),
    }
    assert digest(state).hex() == "9e8c2163aa8808b4246ca044976b7c37bdc199ea5d1c162fbafd3d0bfe127e0c"


def test_a_type_that_no_state_may_have_is_not_sent() -> None:
    for dtype in (torch.complex64, torch.int32, torch.float8_e5m2):
        with pytest.raises(InputError, match=r"state\.w"):
            to_bytes({"w": torch.zeros(2, dtype=dtype)})
    with pytest.raises(InputError, match="tensors travel"):
        to_bytes({str(i): torch.zeros(0) for i in range(MOST_TENSORS + 1)})


def blob(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], end: int, start: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def padding(size: int) -> dict[str, object]:
    return {"__metadata__": {"x": "y" * size}}


def many() -> bytes:
    return blob({f"{i}": entry("U8", [0], 0) for i in range(MOST_TENSORS + 1)})


BAD = {
    "nothing": b"",
    "no header": bytes(7),
    "a header that ends early": (9).to_bytes(8, "little") + b"{}",
    "a header of no JSON": blob(b"[1, 2"),
    "a header that is no table": blob([1, 2]),
    "a longer header than allowed": blob({"w": entry("U8", [1], 1)} | padding(LARGEST_HEADER), b"1"),
    "more tensors than allowed": many(),
    "more values than bytes": blob({"w": entry("F32", [10**12], 4)}, bytes(4)),
    "bytes behind the last tensor": blob({"w": entry("F32", [1], 4)}, bytes(5)),
    "a hole": blob({"w": entry("U8", [1], 1), "v": entry("U8", [1], 3, 2)}, bytes(3)),
    "two tensors on the same bytes": blob({"w": entry("U8", [1], 1), "v": entry("U8", [1], 1)}, bytes(1)),
    "one name twice": blob(
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        bytes(2),
    ),
    "a negative size": blob({"w": entry("F32", [-1], 0)}),
    "a size that overflows": blob({"w": entry("F32", [0, 2**63], 0)}),
    "sizes that overflow together": blob({"w": entry("F32", [0, 2**40, 2**40], 0)}),
    "65 dimensions": blob({"w": entry("U8", [1] * 65, 1)}, bytes(1)),
    "an unknown type": blob({"w": entry("nonsense", [1], 4)}, bytes(4)),
    "a type of no state": blob({"w": entry("I32", [1], 4)}, bytes(4)),
    "a half of a byte": blob({"w": entry("F4", [2], 1)}, bytes(1)),
    "a truth value of 2": blob({"w": entry("BOOL", [2], 2)}, b"\1\2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_state_is_malformed_and_takes_no_room(name: str) -> None:
    """Would catch a reader that allocates what a header declares: a terabyte, because it says so."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as error:
            from_bytes(BAD[name])
        assert error.value.code == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_what_is_refused_is_close_to_what_is_accepted() -> None:
    """The limits themselves pass; else the tests above might refuse for another reason."""
    most = {f"{i}": entry("U8", [0], 0) for i in range(MOST_TENSORS)}
    assert len(from_bytes(blob(most))) == MOST_TENSORS
    assert from_bytes(blob({"w": entry("BOOL", [2], 2)}, b"\1\0"))["w"].tolist() == [True, False]
    assert from_bytes(blob({"w": entry("U8", [1] * 16, 1)}, bytes(1)))["w"].dim() == 16
    padded = {"w": entry("U8", [1], 1)} | padding(LARGEST_HEADER - 200)
    assert from_bytes(blob(padded, b"\5"))["w"].item() == 5


@pytest.mark.parametrize("count", [MOST_BLOCKS, MOST_BLOCKS + 1, 5 * MOST_BLOCKS])
def test_no_more_states_are_read_than_a_model_has_blocks(count: int) -> None:
    """Tensors take ten times what declares them: 26 MB of small states took 264 MB, and 1 GB would be let in."""
    rows = [f'"{i:04}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(100)]
    state = blob(f"{{{','.join(rows)}}}".encode())
    held = ArrayRecord({f"block-{b}": bytes_array(state) for b in range(count)})
    fields = ConfigRecord({"block": count - 1, "companies": list[str](), "adverts": list[bytes]()})
    content = encode(RecordDict({"message": fields, "arrays": held}))
    record = decode(content)
    if count == MOST_BLOCKS:
        assert len(TrainRequest.from_record(record).states) == count
        return
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="malformed"):
            TrainRequest.from_record(record)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def read(data: bytes) -> str | None:
    try:
        from_bytes(data)
    except ProtocolError as error:
        return error.code
    return None


@settings(max_examples=1000, deadline=None)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=60).map(blob)
    | st.binary(max_size=60).map(lambda data: blob(data, b"x"))
)
def test_bytes_of_any_kind_end_in_a_state_or_a_code(data: bytes) -> None:
    assert read(data) in (None, "malformed")


@pytest.mark.parametrize("change", [0x01, 0x20, 0x55, 0xFF])
def test_a_cut_or_altered_blob_is_another_state_or_malformed(change: int) -> None:
    whole = save({"w": torch.ones(2, dtype=torch.bfloat16), "mask": torch.ones(3, dtype=torch.bool)})
    damaged: list[Callable[[int], bytes]] = [
        lambda i: whole[:i],
        lambda i: whole[:i] + bytes([whole[i] ^ change]) + whole[i + 1 :],
    ]
    for i in range(len(whole)):
        for make in damaged:
            assert read(make(i)) in (None, "malformed")
