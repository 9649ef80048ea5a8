"""What is shown of a model."""

from __future__ import annotations

import json

import pytest

from controlplane.cli.top import rows
from controlplane.cli.top.model import Away, HistoryNews, Model, ReplacementNews
from stairwell.controlplane.v1.disk_service_pb2 import Disk
from stairwell.controlplane.v1.fleet_service_pb2 import Downstairs
from stairwell.controlplane.v1.replacement_service_pb2 import ReplacementState
from stairwell.vmmd.v1.volume_service_pb2 import RepairProgress, SlotState
from tests.unit.controlplane.cli.top.test_model import (
    ACTIVE,
    REPAIR,
    T0,
    disk,
    instance,
    inventory,
    replacement,
    sample,
)

LONG = "a-name-that-nobody-would-give-a-disk-but-somebody-will-some-day-[red]"


@pytest.fixture
def model():
    """One disk whose slot 2 is being filled."""
    found = Model()
    filling = disk((ACTIVE, ACTIVE, REPAIR), "r1")
    filling.volume.regions[0].slots[2].repair.CopyFrom(
        RepairProgress(bytes_done=41, bytes_total=100)
    )
    spare = Downstairs(address="10.0.0.3:8810", role=1, host="h3")
    found.take(inventory(T0, [filling], [instance()], [spare]))
    found.take(
        ReplacementNews(
            T0,
            replacement(
                old_target="10.0.0.2:8810", new_target="10.0.0.3:8810", bytes_done=41 << 20,
                bytes_total=100 << 20, bytes_per_second=920 * 2.0**20, eta_seconds=5.2,
                blocked_on="the guest",
            ),
        )
    )  # fmt: skip
    found.take(
        HistoryNews("block2", (sample(1, 0, 0.0), sample(2, 500, 2.5, repair_bytes=1 << 20)))
    )
    return found


def test_the_first_line_counts_what_there_is(model):
    line = rows.header(model, "127.0.0.1:55400")
    assert line.split("  ") == [
        "127.0.0.1:55400", "1 machine", "1 disk", "1 downstairs", "1 replacement", "13:46:40Z",
    ]  # fmt: skip
    model.take(Away(T0, "gone"))
    assert rows.header(model, "127.0.0.1:55400").endswith("NO ANSWER")


def test_a_disk_has_its_slots_its_guest_and_its_replacement_in_a_row(model):
    ((key, texts),) = rows.disks_table(model).rows
    assert key == "block2"
    assert texts == (
        "block2", "active", "2", "●●◐", "500", "0 B/s", "2.5 ms", "repair 41 %",
    )  # fmt: skip


def test_a_disk_without_a_machine_says_so():
    model = Model()
    model.take(inventory(disks=[Disk(name="block2")]))
    ((_key, texts),) = rows.disks_table(model).rows
    assert texts[1:4] == ("no machine", "0", "-")
    assert rows.detail(model, "block2")[0] == "block2: no machine answers for it"


def test_a_replacement_tells_how_far_how_fast_and_what_it_waits_for(model):
    ((_key, texts),) = rows.replacements_table(model).rows
    assert texts == ("block2", "2", "repair", "41 %", "920 MiB/s", "5.2 s", "the guest")


def test_one_disk_in_detail(model):
    lines = rows.detail(model, "block2")
    assert lines[0] == "● 0 10.0.0.0:8810         active"
    assert lines[2].startswith("◐ 2 10.0.0.2:8810         live_repair  ━━━━━━──────────  41 %"[:50])
    assert lines[3] == "slot 2: 10.0.0.2:8810 -> 10.0.0.3:8810"
    assert "920 MiB/s" in lines[4]
    assert lines[5] == "waits for the guest"
    assert [line.split()[0] for line in lines[6:]] == ["guest", "guest", "repair"]
    assert rows.detail(model, "no such disk") == []


def test_slots_that_do_not_serve_say_why():
    model = Model()
    away = disk((ACTIVE, ACTIVE, SlotState.SLOT_STATE_WAIT_CONNECT))
    away.volume.regions[0].slots[2].last_error = "connection refused"
    model.take(inventory(disks=[away]))
    assert rows.detail(model, "block2")[2].endswith("wait_connect  connection refused")


def test_regions_of_one_disk_are_told_apart():
    model = Model()
    two = disk()
    two.volume.regions.add(path="sub_volumes[1]").slots.extend(two.volume.regions[0].slots)
    model.take(inventory(disks=[two]))
    lines = rows.detail(model, "block2")
    assert [line for line in lines if line.startswith("sub_volumes")] == [
        "sub_volumes[0]  generation 0", "sub_volumes[1]  generation 0",
    ]  # fmt: skip
    assert rows.glance(two) == "●●● ●●●"


def test_nothing_is_wider_than_a_terminal(model):
    two = disk(name=LONG)
    two.volume.regions[0].slots[0].address = "a-host-with-a-name.example.com:12345"
    model.take(inventory(T0 + 1, [two, *model.inventory.disks], [instance(reason="x" * 100)]))
    for line in rows.as_text(model, "127.0.0.1:55400").splitlines():
        assert len(line) <= rows.COLUMNS, line
    for make in (rows.disks_table, rows.machines_table, rows.replacements_table):
        table = make(model)
        assert len(table.columns) == len(table.widths)
        assert all(len(texts) == len(table.columns) for _key, texts in table.rows)


def test_the_whole_as_text(model):
    text = rows.as_text(model, "127.0.0.1:55400")
    for word in (
        "crub",
        "block2",
        "10.0.0.3:8810",
        "920 MiB/s",
        "guest p99",
        "waits for the guest",
    ):
        assert word in text


def test_where_nothing_is_what_to_do_is():
    text = rows.as_text(Model(), "127.0.0.1:55400")
    assert "stairwell new" in text
    assert "fleet register" in text


def test_the_whole_as_data(model):
    data = json.loads(json.dumps(rows.as_data(model, "127.0.0.1:55400")))
    assert data["guests"]["block2"] == {
        "requests_per_second": 500.0, "bytes_per_second": 0.0, "p99_milliseconds": 2.5,
    }  # fmt: skip
    assert data["replacements"][0]["waits for"] == "the guest"
    assert data["fleet"][0]["state"] == "spare"
    ended = replacement(ReplacementState.REPLACEMENT_STATE_DONE, bytes_done=1, bytes_total=1)
    model.take(ReplacementNews(T0, ended))
    assert rows.as_data(model, "")["replacements"][0]["done"] == "100 %"
