"""An encoding of Flower's records: a small head with the fields' names, types and sizes, then their bytes.

A message of a run has few typed fields, most of its size in bytes fields. Flower's own encoding nests a message for
every value, and a field of three bytes becomes an object of hundreds: 17 MB of empty records took 680 MB of memory.
Here only the head (`Head` in `frames.proto`) is parsed, after its size is checked; so a message takes its own length
and a constant.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from ...errors import ProtocolError
from .frames_pb2 import Field, Head

# The two records of a message; see `protocol.messages`.
MESSAGE, ARRAYS = "message", "arrays"
LARGEST_HEAD = 1 << 20
_LENGTH = 4  # bytes that say how long the head is


def encode(record: RecordDict) -> bytes:
    """Encode a record, which may hold fields and arrays of bytes (`bytes_array`) and nothing else.

    Raises:
        ProtocolError: "malformed" for any other record, "too_large" for more fields and text than fit in a head.
    """
    head, parts = Head(), [b"", b""]
    for name, values in record.items():
        if name == MESSAGE and isinstance(values, ConfigRecord):
            for key, value in values.items():
                _add(head.fields.add(name=key), value, parts)
        elif name == ARRAYS and isinstance(values, ArrayRecord):
            for key, array in values.items():
                head.fields.add(name=key, array_size=len(array.data))
                parts.append(array.data)
        else:
            raise ProtocolError("malformed", f"messages of a run have no {type(values).__name__} {name}")
    parts[1] = head.SerializeToString()
    if len(parts[1]) > LARGEST_HEAD:
        raise ProtocolError(
            "too_large", f"a head of {len(parts[1])} bytes, at most {LARGEST_HEAD} are allowed"
        )
    parts[0] = len(parts[1]).to_bytes(_LENGTH, "big")
    return b"".join(parts)


def _add(field: Field, value: object, parts: list[bytes]) -> None:
    """Set a field to `value`; bytes are appended to `parts`."""
    match value:
        case bool():
            field.truth = value
        case int():
            field.integer = value
        case float():
            field.number = value
        case str():
            field.text = value
        case bytes():
            field.bytes_size = len(value)
            parts.append(value)
        case list() if value and all(isinstance(each, str) for each in value):
            field.texts.values.extend(value)
        case list() if all(isinstance(each, bytes) for each in value):
            field.bytes_sizes.values.extend(map(len, value))
            parts.extend(value)
        case _:
            raise ProtocolError("malformed", f"messages of a run have no field of this type: {field.name}")


def decode(content: bytes) -> RecordDict:
    """Decode a record.

    Raises:
        ProtocolError: "malformed" for bytes that are not a record, "too_large" for a head above its limit.
    """
    size = int.from_bytes(content[:_LENGTH], "big")
    start = _LENGTH + size
    if start > len(content):  # also where the length itself is incomplete
        raise ProtocolError("malformed", "a record that ends within its head")
    if size > LARGEST_HEAD:
        raise ProtocolError("too_large", f"a head of {size} bytes, at most {LARGEST_HEAD} are allowed")
    try:
        head = Head.FromString(content[_LENGTH:start])
    except DecodeError:
        raise ProtocolError("malformed", "a head that cannot be read") from None
    return _Reader(content, start).record(head)


class _Reader:
    """Takes the fields' bytes one after another."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content = content
        self._place = start

    def record(self, head: Head) -> RecordDict:
        message, arrays = ConfigRecord(), ArrayRecord()
        for field in head.fields:
            if field.name in message or field.name in arrays:
                raise ProtocolError("malformed", "two fields of one name")
            if field.WhichOneof("value") == "array_size":
                arrays[field.name] = bytes_array(self._take(field.array_size))
            else:
                message[field.name] = self._value(field)
        if self._place != len(self._content):
            raise ProtocolError("malformed", "more bytes than the fields have")
        return RecordDict({MESSAGE: message, ARRAYS: arrays} if arrays else {MESSAGE: message})

    def _value(self, field: Field) -> bool | int | float | str | bytes | list[str] | list[bytes]:
        match field.WhichOneof("value"):
            case "text":
                return field.text
            case "integer":
                return field.integer
            case "number":
                return field.number
            case "truth":
                return field.truth
            case "texts":
                return list(field.texts.values)
            case "bytes_size":
                return self._take(field.bytes_size)
            case "bytes_sizes":
                return [self._take(size) for size in field.bytes_sizes.values]
        raise ProtocolError("malformed", "a field without a value")

    def _take(self, size: int) -> bytes:
        start, self._place = self._place, self._place + size
        if self._place > len(self._content):
            raise ProtocolError("malformed", "a field of more bytes than were received")
        return self._content[start : self._place]


def bytes_array(data: bytes) -> Array:
    """Bytes as a Flower array, which Flower sends in chunks; a field it does not."""
    return Array(dtype="uint8", shape=(len(data),), stype="bytes", data=data)


def stamp_messages() -> None:
    """Set the task identity that Flower needs to make messages, unless Flower itself has set one."""
    try:
        _ = TaskIdentity.task_id
    except RuntimeError:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
