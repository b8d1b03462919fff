"""Flower's records as bytes, in Flower's own encoding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from ...errors import ProtocolError


def encode(record: RecordDict) -> bytes:
    """As Flower serialises it; arrays are copied once, where Flower's own code copies them four times."""
    message = ProtoRecordDict()
    for name, values in record.items():
        if not isinstance(values, ArrayRecord):
            message.items.extend(recorddict_to_proto(RecordDict({name: values})).items)
            continue
        item = message.items.add(key=name)
        item.array_record.SetInParent()
        for key, array in values.items():
            held = item.array_record.items.add(key=key).value
            held.dtype, held.stype, held.data = array.dtype, array.stype, array.data
            held.shape.extend(array.shape)
    content: bytes = message.SerializeToString()
    return content


def decode(content: bytes) -> RecordDict:
    """The record; ProtocolError for bytes that are none, or that would take far more room than they are long."""
    try:
        _Budget().spend(memoryview(content), ProtoRecordDict.DESCRIPTOR)
        return recorddict_from_proto(ProtoRecordDict.FromString(content))
    except ProtocolError:
        raise
    # Flower's decoder was not written for hostile bytes: what it raises is no promise.
    except Exception as error:
        raise ProtocolError("malformed", f"not a record ({type(error).__name__})") from None


@dataclass
class _Budget:
    """What a message may hold beside plain `bytes`, which take as much room as they are long.

    A field of three bytes becomes a Python object of hundreds, a packed number of one byte an `int` of 28: without a
    bound, a message of 17 MB took 680.
    """

    fields: int = 1 << 18
    text: int = 1 << 20  # bytes of strings and packed numbers

    def spend(self, data: memoryview, kind: Any) -> None:
        """Walk the encoding (protobuf.dev, "Encoding") of a message of `kind` without decoding it."""
        known, place = _fields(kind), 0
        while place < len(data):
            tag, place = _varint(data, place)
            inner, plain = known[tag >> 3]  # KeyError: a field that the message does not have
            self.fields -= 1
            match tag & 7:
                case 0:
                    _, place = _varint(data, place)
                case 1:
                    place += 8
                case 5:
                    place += 4
                case 2:
                    size, start = _varint(data, place)
                    place = start + size
                    if place > len(data):
                        raise ValueError("a field that is longer than its message")
                    if inner is not None:
                        self.spend(data[start:place], inner)
                    elif not plain:
                        self.text -= size
                case other:
                    raise ValueError(f"wire type {other}")
            if self.fields < 0 or self.text < 0:
                raise ProtocolError("too_large", "more fields or text than any message of a run has")


@lru_cache(maxsize=64)
def _fields(kind: Any) -> dict[int, tuple[Any, bool]]:
    """By number: the message type of a field, if it is one, and whether it is `bytes`."""
    return {field.number: (field.message_type, field.type == field.TYPE_BYTES) for field in kind.fields}


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        byte = data[place + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, place + i + 1
    raise ValueError("a number of more than ten bytes")


def stamp_messages() -> None:
    """Let this process make Flower messages outside of Flower; inside, its own stamp stays."""
    try:
        _ = TaskIdentity.task_id
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
