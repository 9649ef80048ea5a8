"""From messages to plain data for `--output json`.

The shape is the message's own: field names as in the .proto, every field present so that a reader
need not know defaults. Three things differ from protobuf's JSON: whole numbers are numbers, enum
values are short lower-case names ("started_already"), and an absent optional field is null. A
construction request is left in the form it is written in files: only the fields that are set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

SPARSE_PACKAGE = "stairwell.vcr."


def plain(message: Message) -> Any:
    """The message as dicts, lists, strings, numbers and None, ready for json.dumps."""
    if isinstance(message, Timestamp):
        return message.ToJsonString() if message.seconds or message.nanos else None
    sparse = message.DESCRIPTOR.full_name.startswith(SPARSE_PACKAGE)
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            if not sparse:
                out[field.name] = None
            continue
        value = getattr(message, field.name)
        if sparse and field.is_repeated and not value:
            continue
        out[field.name] = _field(cast("FieldDescriptor", field), value)
    return out


def _field(field: FieldDescriptor, value: Any) -> Any:
    """One field's value, whichever cardinality it has."""
    if isinstance(value, Mapping):
        return {str(key): _single(field, item) for key, item in sorted(value.items())}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    """One element of a field."""
    if isinstance(value, Message):
        return plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return enum_word(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def enum_word(descriptor: EnumDescriptor, number: int) -> str:
    """An enum value without its type's prefix, lower case: REPLACE_RESULT_STARTED → "started".

    A number that this version has no name for comes back as its digits.
    """
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    return _without_prefix(descriptor, value.name).lower()


def _without_prefix(descriptor: EnumDescriptor, name: str) -> str:
    """The value's name after the prefix that its enum's style rule puts before it."""
    zero = descriptor.values_by_number[0].name
    return name.removeprefix(zero.removesuffix("UNSPECIFIED"))


def dump(data: Any, *, lines: bool = False) -> str:
    """JSON text: indented as one document, or compact as one line of a stream."""
    return json.dumps(data, indent=None if lines else 2, ensure_ascii=False)
