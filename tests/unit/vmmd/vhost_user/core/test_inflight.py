"""Notes of what is in flight, as the next process finds them: killed at each point."""

from __future__ import annotations

import pytest

from vmmd.vhost_user.core.inflight import InflightRing, ring_bytes


def area(entries: int = 8) -> memoryview:
    return memoryview(bytearray(ring_bytes(entries)))


def reopened(view: memoryview, used: int, entries: int = 8) -> list[int]:
    return InflightRing(memoryview(bytearray(view)), entries).open(used)


def test_a_new_area_has_nothing_in_flight() -> None:
    view = area()
    assert InflightRing(view, 8).open(5) == []
    assert reopened(view, 5) == []


def test_what_was_taken_is_found_oldest_first() -> None:
    view = area()
    ring = InflightRing(view, 8)
    ring.open(0)
    for head in (5, 1, 7):
        ring.taken(head)
    assert reopened(view, 0) == [5, 1, 7]
    again = InflightRing(view, 8)
    assert again.open(0) == [5, 1, 7]
    again.taken(2)
    assert reopened(view, 0) == [5, 1, 7, 2], "counted on from there"


@pytest.mark.parametrize("point", ["before", "noted", "used", "cleared", "done"])
def test_a_kill_while_a_batch_is_given_back(point: str) -> None:
    """Before the used ring is moved all are in flight, after it none of the batch is."""
    view = area()
    ring = InflightRing(view, 8)
    ring.open(10)
    for head in (3, 4, 6):
        ring.taken(head)
    ring.batch([3])
    ring.given_back([3], 11)
    ring.taken(3)
    used = 11
    if point != "before":
        ring.batch([4, 3])
    if point in ("used", "cleared", "done"):
        used = 13
    if point == "cleared":
        view[16 + 16 * 4] = 0
    if point == "done":
        ring.given_back([4, 3], 13)
    expected = [6] if used == 13 else [4, 6, 3]
    assert reopened(view, used) == expected


def test_nonsense_in_the_area_harms_nobody() -> None:
    view = area()
    InflightRing(view, 8).open(0)
    view[:] = b"\xff" * len(view)
    view[8:10] = (1).to_bytes(2, "little")
    assert sorted(reopened(view, 77)) == list(range(8))
