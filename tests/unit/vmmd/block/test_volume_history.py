"""A volume's counters and meter as samples."""

from __future__ import annotations

from vmmd.block.volume_history import VolumeHistory
from vmmd.core.guest_meter import GuestMeter
from vmmd.core.request_figures import VolumeCounters


def test_each_sample_has_what_was_new():
    counters, meter, now = VolumeCounters(reads=5), GuestMeter(0.0), [100.0]
    history = VolumeHistory(counters, meter, lambda: now[0])
    counters.reads, counters.write_bytes, counters.failed = 7, 4096, 1
    meter.begun(2, 0.0)
    meter.ended(0, 2, 0.003, 0.003)
    history.tick(0.5, moved=10, members=1, rate=64)
    now[0] = 100.5
    history.tick(0.5, moved=0, members=0, rate=0)
    first, second = history.after(0.0)
    assert (first.end, first.reads, first.write_bytes, first.completed) == (100.0, 2, 4096, 2)
    assert first.longest == 0.003
    assert (first.repair_bytes, first.members_filled, first.rate_max) == (10, 1, 64)
    assert (second.end, second.reads, second.completed, second.longest) == (100.5, 0, 0, 0.0)
