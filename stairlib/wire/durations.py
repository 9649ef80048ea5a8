"""Seconds as protobuf durations."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

_NANOS = 1_000_000_000


def duration(seconds: float) -> Duration:
    """To the nanosecond, rounded."""
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return Duration(seconds=whole, nanos=nanos)


def seconds_of(message: Duration) -> float:
    """The other way."""
    return message.seconds + message.nanos / _NANOS
