"""For tests that hold the compiled form beside the Python form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from stairlib import native

needs_compiled = pytest.mark.skipif(
    not native.compiled, reason="there is no compiled form here: no C compiler at install"
)


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """The Python form serves meanwhile."""
    native.compiled = False
    try:
        yield
    finally:
        native.compiled = True
