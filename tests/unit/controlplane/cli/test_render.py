"""What people read of instances, disks, replacements and the fleet."""

from io import StringIO

from rich.console import Console

from controlplane.cli import render
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb


def text_of(renderable) -> str:
    console = Console(file=StringIO(), width=160, markup=False)
    console.print(renderable)
    return console.file.getvalue()


def instance(**changes) -> instance_pb.Instance:
    values = {
        "id": "i-1",
        "name": "crub",
        "state": instance_pb.InstanceState.INSTANCE_STATE_RUNNING,
        "state_generation": 3,
        "disks": ["block2"],
        "vmmd": "127.0.0.1:55401",
    }
    return instance_pb.Instance(**{**values, **changes})


def disk() -> disk_pb.Disk:
    found = disk_pb.Disk(
        name="block2",
        id="0cedae45",
        instance="crub",
        device="nvme",
        pci_path="0.19.0",
        recorded_generation=2,
        replacement_id="r1",
    )
    volume = found.volume
    volume.state = volume_pb.VolumeState.VOLUME_STATE_ACTIVE
    volume.block_size = 4096
    volume.total_bytes = 8 << 30
    volume.nbd_uri = "nbd+unix:///block2?socket=/tmp/x"
    region = volume.regions.add(
        path="sub_volumes[0]", generation=1, state=volume_pb.VolumeState.VOLUME_STATE_ACTIVE
    )
    active = volume_pb.SlotState.SLOT_STATE_ACTIVE
    region.slots.add(slot=0, address="[::1]:8810", state=active)
    region.slots.add(slot=1, address="127.0.0.1:8820", state=active, last_error="went away once")
    slot = region.slots.add(
        slot=2,
        address="127.0.0.1:8840",
        state=volume_pb.SlotState.SLOT_STATE_LIVE_REPAIR,
        mode=volume_pb.SlotMode.SLOT_MODE_REPLACED,
    )
    slot.repair.bytes_done, slot.repair.bytes_total = 1 << 30, 8 << 30
    slot.repair.extents_done, slot.repair.extents_total = 16, 128
    slot.repair.bytes_per_second = 100 << 20
    return found


def test_one_instance():
    text = text_of(render.instance_view(instance(reason="no vmmd")))
    for part in ("crub", "i-1", "running", "no vmmd", "block2"):
        assert part in text


def test_a_change_of_state_reads_like_the_originals():
    assert render.instance_change(instance()) == "crub InstanceState: running [3]"
    failed = instance(state=instance_pb.InstanceState.INSTANCE_STATE_FAILED, reason="died")
    assert render.instance_change(failed) == "crub InstanceState: failed (died) [3]"


def test_what_there_is():
    text = text_of(render.overview([instance()], [disk()]))
    assert text.index("crub") < text.index("DISK ")
    assert "0.19.0" in text
    assert "stairwell new" in text_of(render.overview([], []))


def test_a_share_is_full_only_at_the_end():
    assert render.percent(999, 1000) == "99 %"
    assert render.percent(1000, 1000) == "100 %"
    assert render.percent(0, 0) == "0 %"


def test_equal_members():
    report = volume_pb.VerifyReport(
        equal=True, members_compared=3, extents_compared=128, blocks_read=7
    )
    text = render.verify_view("block2", report)
    assert text.startswith("block2: all members agree")
    assert "7 stored blocks read" in text


def test_unequal_members_and_bad_blocks():
    report = volume_pb.VerifyReport(members_compared=3, extents_compared=128, bad_blocks=2)
    for extent in range(12):
        report.differences.add(region_path="sub_volumes[0]", extent=extent, digests=[1, 1, 255])
    text = render.verify_view("block2", report)
    assert "DIFFER" in text
    assert "2 blocks do not match" in text
    assert "extent 3: 0000000000000001 0000000000000001 00000000000000ff" in text
    assert "and 2 more extents" in text


def test_bad_blocks_alone_are_no_agreement():
    report = volume_pb.VerifyReport(equal=True, bad_blocks=1)
    assert "DIFFER" in render.verify_view("block2", report)


def test_the_typed_answers():
    result = disk_pb.ReplaceResult
    started = disk_pb.ReplaceVcrResponse(
        result=result.REPLACE_RESULT_STARTED,
        slot=2,
        old_target="a:1",
        new_target="b:2",
        path="sub_volumes[0].opts.target[2]",
        replacement_id="r1",
    )
    assert render.replace_result(started).splitlines() == [
        "started: slot 2 a:1 -> b:2 (sub_volumes[0].opts.target[2])",
        "replacement r1",
    ]
    matches = disk_pb.ReplaceVcrResponse(result=result.REPLACE_RESULT_VCR_MATCHES)
    assert render.replace_result(matches).startswith("vcr_matches: ")


def replacement() -> replacement_pb.Replacement:
    state = replacement_pb.ReplacementState
    one = replacement_pb.Replacement(
        id="r1",
        disk="block2",
        state=state.REPLACEMENT_STATE_FAILED,
        slot=2,
        old_target="a:1",
        new_target="b:2",
        last_error="the target is full",
        attempt=2,
        from_generation=1,
        to_generation=2,
    )
    one.create_time.FromSeconds(1_700_000_000)
    step = one.transitions.add(state=state.REPLACEMENT_STATE_PREFLIGHT, event="accepted")
    step.time.FromMilliseconds(1_700_000_000_250)
    return one


def test_one_replacement_has_its_history():
    text = text_of(render.replacement_view(replacement()))
    for part in ("failed", "the target is full", "1 -> 2", "250.0 ms", "preflight", "accepted"):
        assert part in text
    assert "2023-11-14 22:13:20Z" in text


def test_many_replacements():
    assert "r1" in text_of(render.replacements_table([replacement()]))
    assert "no replacement" in text_of(render.replacements_table([]))
