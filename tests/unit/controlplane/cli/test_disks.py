"""What people read of a disk: members, parents, sources, scrubs."""

from __future__ import annotations

from controlplane.cli import disks
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.unit.controlplane.cli.test_render import disk, text_of


def test_a_disks_status_has_every_slot():
    text = text_of(disks.disk_status(disk()))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["recorded"].split() == ["recorded", "generation", "2"]
    assert "nbd+unix:///block2?socket=/tmp/x" in lines["nbd_uri"]
    assert "8 GiB in blocks of 4096 bytes" in lines["size"]
    assert lines["0"].split()[:4] == ["0", "[::1]:8810", "active", "-"]
    assert "went away once" in lines["1"]
    assert lines["2"].split()[:4] == ["2", "127.0.0.1:8840", "live_repair", "replaced"]
    assert "12 % (16/128 extents" in lines["2"]
    assert "100 MiB/s" in lines["2"]


def test_a_disk_without_a_machine_says_so():
    text = text_of(disks.disk_status(disk_pb.Disk(name="block2", recorded_generation=1)))
    assert "no machine runs this disk" in text


def over_parent() -> disk_pb.Disk:
    """A disk over a region, a file and a URL."""
    found = disk()
    active = volume_pb.VolumeState.VOLUME_STATE_ACTIVE
    found.volume.regions.add(
        path="read_only_parent.sub_volumes[0]", generation=4, state=active, read_only=True,
        cipher="aes-256-gcm-siv",
    )  # fmt: skip
    found.volume.sources.add(path="sub_volumes[1]", type="file", total_bytes=1 << 20)
    found.volume.sources.add(
        path="read_only_parent.read_only_parent", type="url", total_bytes=3 << 20, failed=2,
        last_error="HTTP 503",
    )  # fmt: skip
    return found


def test_parents_are_marked_and_ciphers_named():
    lines = text_of(disks.disk_status(over_parent())).splitlines()
    assert "sub_volumes[0] active, session generation 1" in [line.rstrip() for line in lines]
    (parent,) = [line.rstrip() for line in lines if line.startswith("read_only_parent.sub")]
    assert parent == (
        "read_only_parent.sub_volumes[0] active, read-only parent, aes-256-gcm-siv,"
        " session generation 4"
    )


def test_a_read_only_region_that_is_no_parent_and_one_that_has_a_reason():
    found = disk()
    region = found.volume.regions[0]
    region.read_only, region.reason = True, "one member only"
    text = text_of(disks.disk_status(found))
    assert "sub_volumes[0] active, read-only, session generation 1: one member only" in text


def test_files_and_urls_with_what_failed():
    text = text_of(disks.disk_status(over_parent()))
    rows = [line.split() for line in text.splitlines()]
    assert ["sub_volumes[1]", "file", "1", "MiB", "0", "-"] in rows
    url = "read_only_parent.read_only_parent url 3 MiB 2 parent; HTTP 503"
    assert url.split() in rows


def test_scrubs_stand_at_the_end():
    found = over_parent()
    running = disk_pb.ScrubState.SCRUB_STATE_RUNNING
    found.scrubs.add(
        disk="block2", state=running, bytes_done=1, bytes_total=4, blocked_on="vmmd is away",
        bytes_per_second_max=50 << 20,
    )  # fmt: skip
    found.scrubs.add(disk="block2", path="sub_volumes[1]", state=disk_pb.SCRUB_STATE_DONE)
    first, second = text_of(disks.disk_status(found)).splitlines()[-2:]
    assert first.split()[:4] == ["volume", "running", "25", "%"]
    assert "50 MiB/s" in first
    assert "vmmd is away" in first
    assert second.split()[:2] == ["sub_volumes[1]", "done"]
