"""Bytes, rates and durations as people read and write them. Pure."""

from __future__ import annotations

import math
import re

_STEPS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?b?)(?:/s)?\s*$", re.IGNORECASE)
SIZE_MAX = 2**64 - 1


def format_bytes(count: float) -> str:
    """Three or four significant digits in the largest binary unit that leaves one: "512 MiB"."""
    value = float(count)
    for unit in _STEPS:
        if value < 1024 or unit == _STEPS[-1]:
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 100 or value == int(value) else 1
    return f"{value:.{digits}f} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """As "88.1 MiB/s"."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_limit(bytes_per_second: int) -> str:
    """A rate limit, where zero means none."""
    return format_rate(bytes_per_second) if bytes_per_second else "no limit"


def format_seconds(seconds: float) -> str:
    """A duration: "820 µs", "12.3 ms", "4.2 s", "3:07 min", "1:02:33 h"."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def parse_size(text: str) -> int:
    """Bytes from "512MiB", "512M", "1.5 GiB/s" or "1048576"; all units are binary.

    Raises ValueError with what would be right.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 50MiB, 1.5G or 1048576")
    number, letter, _ = match.groups()
    exponent = " kmgtp".index(letter.lower()) if letter else 0
    count = round(float(number) * (1 << 10 * exponent))
    if count > SIZE_MAX:
        raise ValueError(f"{text!r} is above {SIZE_MAX} bytes")
    return count


_DURATION = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|d|)\s*$", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds from "90", "90s", "10m", "1.5h" or "2d"; ValueError with what would be right."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 10m or 1.5h")
    number, unit = match.groups()
    return float(number) * _SECONDS[unit.lower()]
