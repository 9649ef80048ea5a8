"""Whether JSON data fits a protobuf message, with every misfit found at once and named. Pure.

protobuf's own parser stops at the first problem and names types of the wire. This looks at the
same rules from the writer's side: unknown keys (with the nearest known one), wrong kinds of value,
numbers out of range.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from controlplane.cli.positions import join

_WRAPPERS = {f"google.protobuf.{name}Value" for name in ("String", "Float")}
_UNSIGNED = {FieldDescriptor.TYPE_UINT32: 32, FieldDescriptor.TYPE_UINT64: 64}


@dataclass(frozen=True, slots=True)
class Misfit:
    """One place where the data does not fit, and what would."""

    path: str
    text: str


def misfits(data: Any, descriptor: Descriptor, path: str = "") -> Iterator[Misfit]:
    """Every place in `data` that the message cannot take."""
    if not isinstance(data, dict):
        yield Misfit(path, f"expected an object, found {kind_of(data)}")
        return
    for key, value in data.items():
        field = descriptor.fields_by_name.get(key) or descriptor.fields_by_camelcase_name.get(key)
        here = join(path, key)
        if field is None:
            yield Misfit(here, f"unknown key {key!r}{_suggestion(key, descriptor)}")
        elif value is not None:
            yield from _field(value, field, here)


def _field(value: Any, field: FieldDescriptor, path: str) -> Iterator[Misfit]:
    if not field.is_repeated:
        yield from _single(value, field, path)
    elif not isinstance(value, list):
        yield Misfit(path, f"expected an array, found {kind_of(value)}")
    else:
        for index, item in enumerate(value):
            yield from _single(item, field, f"{path}[{index}]")


def _single(value: Any, field: FieldDescriptor, path: str) -> Iterator[Misfit]:
    if field.message_type is not None and field.message_type.full_name in _WRAPPERS:
        # A scalar that may be null: JSON writes the value itself.
        field = field.message_type.fields_by_name["value"]
    if field.message_type is not None:
        yield from misfits(value, field.message_type, path)
        return
    expected = _expected(value, field)
    if expected:
        yield Misfit(path, f"expected {expected}, found {kind_of(value)}")


def _expected(value: Any, field: FieldDescriptor) -> str:
    """What the scalar field wants, when `value` is not that; empty when it fits."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return "" if isinstance(value, str) else "a string"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "" if isinstance(value, bool) else "true or false"
    if field.type in _UNSIGNED:
        bits = _UNSIGNED[field.type]
        return "" if _fits(value, bits) else f"a whole number from 0 to {2**bits - 1}"
    if field.type in {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number else "a number"
    return ""


def _fits(value: Any, bits: int) -> bool:
    """Whether the value is an unsigned number of that width; digits in a string count."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**bits


def kind_of(value: Any) -> str:
    """The value as a message names it: its JSON kind, and itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        # The text itself may be a secret that stands in the wrong place.
        return "a string"
    return f"the number {value}"


def _suggestion(key: str, descriptor: Descriptor) -> str:
    known = [field.name for field in descriptor.fields]
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
