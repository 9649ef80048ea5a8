"""Sizes, rates and durations in both directions."""

import math

import pytest

from controlplane.cli.units import (
    format_bytes,
    format_limit,
    format_rate,
    format_seconds,
    parse_size,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (512 << 20, "512 MiB"),
        (8 << 30, "8 GiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


def test_rates_and_limits():
    assert format_rate(88.1 * 2**20) == "88.1 MiB/s"
    assert format_limit(0) == "no limit"
    assert format_limit(1 << 20) == "1 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00082, "820 µs"),
        (0.0123, "12.3 ms"),
        (4.2, "4.2 s"),
        (187, "3:07 min"),
        (3753, "1:02:33 h"),
        (-1, "?"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512mb", 512 << 20),
        ("1.5 GiB/s", 3 << 29),
        (" 7 k ", 7168),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_sizes_are_read(text, count):
    if count < 2**53:
        assert parse_size(text) == count
    else:
        with pytest.raises(ValueError, match="above"):
            parse_size(text)


@pytest.mark.parametrize("text", ["", "fast", "-1", "1e9", "5 parsecs", "1TiBB", "0x10"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
