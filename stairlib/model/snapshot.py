"""What a snapshot may be called."""

from __future__ import annotations

import re

from stairlib.model.errors import FieldViolation, InvalidRequestError

NAME_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def checked_name(name: str, field: str) -> str:
    """The name; InvalidRequestError SNAPSHOT_NAME, on `field`, unless it can be one."""
    if len(name) <= NAME_MAX and _NAME.fullmatch(name):
        return name
    text = (
        f'{name[:NAME_MAX]!r} is no name for a snapshot: 1 to {NAME_MAX} letters, digits, ".", "_" '
        'and "-", the first a letter or digit'
    )
    raise InvalidRequestError(
        text, (FieldViolation(field, text, "SNAPSHOT_NAME"),), reason="SNAPSHOT_NAME"
    )
