"""The compiled part of the frame loop (`fast.pyx`), of the log (`log.pyx`) and of encrypted blocks
(`aead.pyx`), where there is one.

    from stairlib import native
    if native.compiled: ...

It is built at install where there is a C compiler, and is not needed: whoever uses it has the same
in Python. STAIRWELL_NATIVE=0 in the environment has the Python form serve although there is one.
"""

from __future__ import annotations

import os

SWITCH = "STAIRWELL_NATIVE"

try:
    if os.environ.get(SWITCH) == "0":
        raise ImportError(SWITCH)  # noqa: TRY301 - as if it had not been built
    from stairlib.native.aead import seal, unseal
    from stairlib.native.fast import (
        Spans,
        as_told,
        new_bytes,
        plain_contexts,
        request_head,
        requests,
        serve_reads,
        serve_writes,
        summary,
    )
    from stairlib.native.log import Appender, record_front, stamped, stored

    compiled = True
except ImportError:
    compiled = False

    class Spans:  # type: ignore[no-redef]
        """Never made."""

    class Appender:  # type: ignore[no-redef]
        """Never made."""


def describe() -> str:
    """For people: which form serves, and why."""
    if compiled:
        return "native"
    return "Python" if os.environ.get(SWITCH) != "0" else f"Python ({SWITCH}=0)"


__all__ = [
    "Appender",
    "Spans",
    "as_told",
    "compiled",
    "describe",
    "new_bytes",
    "plain_contexts",
    "record_front",
    "request_head",
    "requests",
    "seal",
    "serve_reads",
    "serve_writes",
    "stamped",
    "stored",
    "summary",
    "unseal",
]
