"""Why members are held: what holds, what is noted, and what the next one reads."""

from __future__ import annotations

from uuid import UUID

import pytest

from controlplane.core.held import Held

KEY = (UUID(int=1), "sub_volumes[0]", 2)
OTHER = (UUID(int=2), "", 0)


def test_a_reason_holds_until_its_time() -> None:
    held = Held()
    held.because(KEY, "no spare", 10.0)
    assert held.now(9.9) == {KEY: "no spare"}
    assert held.now(10.0) == {}
    held.because(KEY, "still no spare", 20.0)
    held.forget()
    assert held.now(0.0) == {}


def test_the_next_one_goes_on_with_what_was_noted() -> None:
    held = Held()
    held.because(KEY, 'no spare: "8840" has\nother blocks', 10.0)
    held.because(OTHER, "its machine does not answer", 5.0)
    read = Held.from_notes(held.notes(7.0))
    assert read.now(0.0) == {KEY: 'no spare: "8840" has\nother blocks'}
    # What no longer held was forgotten, not only left out.
    assert held.now(0.0) == read.now(0.0)
    assert Held.from_notes(Held().notes(0.0)).now(0.0) == {}


@pytest.mark.parametrize("notes", ["", "{", "[1]", '[["x", "", 0, "", 1]]', '[["a", "b"]]'])
def test_notes_of_something_else_are_an_error(notes: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Held.from_notes(notes)
