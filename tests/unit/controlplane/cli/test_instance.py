"""Where a wait that takes long tells the user to look."""

from __future__ import annotations

import pytest

from controlplane.cli.commands.instance import Wanted, where_to_look


@pytest.mark.parametrize("wanted", [Wanted.RUN, Wanted.STOP, Wanted.REBOOT])
def test_machines_wait_for_their_disks(wanted: Wanted) -> None:
    assert "`stairwell disk status`" in where_to_look(wanted, "crub")


def test_a_guest_that_ignores_its_power_button_can_be_ended() -> None:
    text = where_to_look(Wanted.SHUTDOWN, "crub")
    assert "`stairwell state stop crub`" in text
    assert "`stairwell serial crub`" in text
