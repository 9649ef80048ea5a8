"""The serial history: first and latest part, the gap, positions to read on from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.errors import InvalidRequestError
from vmmd.hw.uart.history import HistoryBuffer


def filled(text: bytes, part: int = 4) -> HistoryBuffer:
    history = HistoryBuffer(part)
    history.append(text)
    return history


def test_everything_while_there_is_no_gap() -> None:
    history = filled(b"abcdefgh")
    assert history.read_from(0) == (b"abcdefgh", 8)
    assert history.read_from(3, 3) == (b"def", 6)
    assert history.read_from(6) == (b"gh", 8)


def test_first_and_latest_with_a_gap() -> None:
    history = filled(b"abcdefghijkl")
    assert history.read_from(0) == (b"abcd", 4)
    assert history.read_from(2, 1) == (b"c", 3)
    assert history.read_latest(4) == (b"ijkl", 12)
    with pytest.raises(InvalidRequestError, match="0 to 4 and 8 to 12"):
        history.read_from(4)


def test_the_latest_that_is_kept_when_more_is_asked_for() -> None:
    assert filled(b"abcdefghijkl").read_latest(6) == (b"ijkl", 12)


def test_beyond_both_ends() -> None:
    history = filled(b"abc")
    assert history.read_from(3) == (b"", 3)
    assert history.read_from(99) == (b"", 3)
    assert history.read_latest(99) == (b"abc", 3)
    assert history.read_latest(0) == (b"", 3)


@given(st.lists(st.binary(max_size=12), max_size=20), st.integers(1, 8), st.integers(0, 200))
def test_what_can_be_read_is_what_was_said(chunks: list[bytes], part: int, start: int) -> None:
    history = HistoryBuffer(part)
    for chunk in chunks:
        history.append(chunk)
    said = b"".join(chunks)
    assert history.total == len(said)
    try:
        data, end = history.read_from(start)
    except InvalidRequestError:
        assert part <= start < len(said) - part
        return
    if start < len(said):
        assert data
        assert said[start:end] == data
    else:
        assert (data, end) == (b"", len(said))
