"""What disks of a host are called, and which one a name means."""

from __future__ import annotations

import pytest

from stairlib.model.errors import NotFoundError, StateError
from stairlib.runtime.addresses import parse_address
from vmmd.core.lifecycle import Published
from vmmd.core.machine import MachineRecord
from vmmd.supervisor.nbd_exports import gateway_uri, name_of_disk, named_disk, shown_names


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


def test_the_name_that_is_told_is_the_shortest_that_means_the_disk() -> None:
    assert name_of_disk(TWO, "id1", "data") == "data"
    assert name_of_disk(TWO, "id2", "root") == "db/root"
    assert name_of_disk(TWO, "id2", "data") == name_of_disk(TWO, "id9", "root") == ""
    # Two machines of one name, each with a disk of that name: its id is its own.
    assert name_of_disk([*TWO, machine(3, "db", "root")], "id3", "root") == "id3/root"


@pytest.mark.parametrize(
    ("address", "tls", "told"),
    [
        ("10.0.0.5:10809", True, "nbds://10.0.0.5/web/my%20disk"),
        ("[fd00::5]:11000", True, "nbds://[fd00::5]:11000/web/my%20disk"),
        ("127.0.0.1:11000", False, "nbd://127.0.0.1:11000/web/my%20disk"),
    ],
)
def test_how_other_hosts_write_an_export(address: str, tls: bool, told: str) -> None:
    assert gateway_uri(parse_address(address), "web/my disk", tls=tls) == told


def test_a_listener_on_all_addresses_is_told_by_its_hosts_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "storage7")
    assert gateway_uri(parse_address("0.0.0.0:10809"), "one", tls=True) == "nbds://storage7/one"
