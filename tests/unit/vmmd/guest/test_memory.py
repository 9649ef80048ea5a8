"""The guest's memory: views, the hole below 4 GiB, the allocator."""

from __future__ import annotations

import pytest

from stairlib.model.errors import LimitError
from vmmd.guest.memory import HIGH_START, LOW_END, GuestRam


def test_views_are_the_memory_itself() -> None:
    ram = GuestRam(8 << 20)
    view = ram.view(0x5000, 4)
    assert view is not None
    view[:] = b"abcd"
    again = ram.view(0x5001, 2)
    assert again is not None
    assert bytes(again) == b"bc"


@pytest.mark.parametrize(
    ("address", "length"),
    [(-1, 1), (8 << 20, 1), ((8 << 20) - 1, 2), (1 << 63, 1), (HIGH_START, 1), (0, -1)],
)
def test_what_is_no_memory_has_no_view(address: int, length: int) -> None:
    assert GuestRam(8 << 20).view(address, length) is None


def test_memory_above_three_gibibytes_goes_on_at_four() -> None:
    ram = GuestRam(LOW_END + 8192)
    assert ram.view(LOW_END - 1, 2) is None
    assert ram.view(LOW_END, 1) is None
    assert ram.view(HIGH_START, 8192) is not None
    assert ram.view(HIGH_START, 8193) is None


def test_allocation_is_aligned_distinct_and_zeroed_again() -> None:
    ram = GuestRam(8 << 20)
    first, second = ram.allocate(5000), ram.allocate(1)
    assert first % 4096 == second % 4096 == 0
    assert first > 0
    assert second >= first + 8192
    view = ram.view(first, 8192)
    assert view is not None
    view[:] = b"x" * 8192
    ram.free(first, 5000)
    assert ram.allocate(8192) == first
    assert not any(view)


def test_used_up_memory_is_said() -> None:
    ram = GuestRam(8 << 20)
    with pytest.raises(LimitError, match="used up"):
        ram.allocate(8 << 20)
    with pytest.raises(LimitError, match="8 MiB"):
        GuestRam(4096)
