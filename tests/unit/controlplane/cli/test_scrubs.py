"""Scrubs as lines."""

from __future__ import annotations

import pytest

from controlplane.cli import scrubs
from stairwell.controlplane.v1.disk_service_pb2 import Disk, Scrub, ScrubState

MIB = 1 << 20
STATE = ScrubState


def scrub(state: int = STATE.SCRUB_STATE_RUNNING, **more) -> Scrub:
    values = {
        "disk": "block2", "bytes_done": 256 * MIB, "bytes_total": 512 * MIB, "updated_at": 1010.0,
    }  # fmt: skip
    return Scrub(**{"state": state, **values, **more})


def test_a_line_has_share_bytes_rate_and_time_left():
    line = scrubs.progress_line(scrub(), 64.0 * MIB)
    assert line.split("  ") == [
        "running", " 50 %", "256 MiB of 512 MiB", "64 MiB/s", "ETA 4.0 s",
    ]  # fmt: skip


def test_a_line_says_what_it_waits_for_or_what_went_wrong():
    assert scrubs.progress_line(scrub(blocked_on="vmmd is away")).endswith("waiting: vmmd is away")
    failed = scrubs.progress_line(scrub(last_error="unreadable"))
    assert failed.endswith("trying again after: unreadable")
    assert scrubs.progress_line(scrub(bytes_total=0)) == "running"


def test_the_rate_is_that_since_the_first_look():
    speed = scrubs.Speed()
    assert speed.of(scrub(updated_at=1000.0, bytes_done=0)) == 0
    assert speed.of(scrub(updated_at=1010.0, bytes_done=20 * MIB)) == 2 * MIB


@pytest.mark.parametrize(("columns", "cells"), [(200, 24), (30, 6)])
def test_the_bar_leaves_room_for_the_words(columns, cells):
    line = scrubs.live_line(scrub(), columns)
    assert len(line.split()[0]) == cells
    assert line.count("━") == cells // 2


def test_how_it_ended():
    done = scrubs.closing_line(scrub(STATE.SCRUB_STATE_DONE, recorded_generation=7))
    assert done.startswith("done: block2 has all its blocks itself")
    assert "generation 7" in done
    stopped = scrubs.closing_line(scrub(STATE.SCRUB_STATE_STOPPED, path="sub_volumes[1]"))
    assert stopped.startswith("stopped: block2, sub_volumes[1] keeps its parent")
    failed = scrub(STATE.SCRUB_STATE_FAILED, last_error="block 7 is damaged")
    assert scrubs.closing_line(failed) == "failed: block 7 is damaged"


def test_the_newest_of_a_volume():
    disk = Disk(scrubs=[scrub(path=""), scrub(path="sub_volumes[1]", bytes_done=1)])
    found = scrubs.scrub_at(disk, "sub_volumes[1]")
    assert found is not None
    assert found.bytes_done == 1
    assert scrubs.scrub_at(disk, "sub_volumes[2]") is None
