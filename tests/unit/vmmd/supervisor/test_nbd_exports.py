"""What disks of a host are called, and which one a name means."""

from __future__ import annotations

import pytest

from stairlib.model.errors import NotFoundError, StateError
from vmmd.core.lifecycle import Published
from vmmd.core.machine import MachineRecord
from vmmd.supervisor.nbd_exports import named_disk, shown_names


def machine(number: int, name: str, *disks: str) -> MachineRecord:
    return MachineRecord(f"id{number}", name, "none", disks, Published())


TWO = [machine(1, "web", "root", "data"), machine(2, "db", "root")]


def test_names_are_as_short_as_they_may_be() -> None:
    assert shown_names(TWO) == ["web/root", "data", "db/root"]
    assert shown_names([]) == []


def test_every_name_shown_means_its_disk() -> None:
    found = [named_disk(TWO, name) for name in shown_names(TWO)]
    assert found == [("id1", "root"), ("id1", "data"), ("id2", "root")]


@pytest.mark.parametrize("name", ["web/data", "id1/data"])
def test_the_long_name_is_good_too(name: str) -> None:
    assert named_disk(TWO, name) == ("id1", "data")


def test_a_name_of_two_disks_means_none() -> None:
    with pytest.raises(StateError, match="MACHINE/DISK"):
        named_disk(TWO, "root")
    # Also where a disk's own name looks like a long one.
    with pytest.raises(StateError):
        named_disk([*TWO, machine(3, "odd", "web/data")], "web/data")


def test_the_empty_name_is_the_only_disk() -> None:
    assert named_disk([machine(1, "web", "root")], "") == ("id1", "root")
    with pytest.raises(StateError):
        named_disk(TWO, "")
    with pytest.raises(NotFoundError):
        named_disk([], "")


def test_no_such_disk() -> None:
    with pytest.raises(NotFoundError, match="gone"):
        named_disk(TWO, "gone")
