"""News in, state and log out."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli.top.model import (
    ENDED_SHOWN_SECONDS,
    SAMPLES_KEPT,
    Away,
    HistoryNews,
    Inventory,
    Model,
    ReplacementNews,
    Said,
)
from stairwell.controlplane.v1.disk_service_pb2 import Disk
from stairwell.controlplane.v1.fleet_service_pb2 import Downstairs
from stairwell.controlplane.v1.instance_service_pb2 import Instance, InstanceState
from stairwell.controlplane.v1.replacement_service_pb2 import (
    Replacement,
    ReplacementState,
    Transition,
)
from stairwell.vmmd.v1.volume_service_pb2 import (
    RegionInfo,
    SlotInfo,
    SlotMode,
    SlotState,
    VolumeInfo,
    VolumeSample,
    VolumeState,
)

ACTIVE, REPAIR = SlotState.SLOT_STATE_ACTIVE, SlotState.SLOT_STATE_LIVE_REPAIR
S = ReplacementState
T0 = 1_000_000.0


def disk(states=(ACTIVE, ACTIVE, ACTIVE), replacement="", name="block2"):
    slots = [
        SlotInfo(slot=number, address=f"10.0.0.{number}:8810", state=state)
        for number, state in enumerate(states)
    ]
    volume = VolumeInfo(
        state=VolumeState.VOLUME_STATE_ACTIVE,
        regions=[RegionInfo(path="sub_volumes[0]", slots=slots)],
    )
    return Disk(name=name, recorded_generation=2, volume=volume, replacement_id=replacement)


def instance(state=InstanceState.INSTANCE_STATE_RUNNING, reason=""):
    return Instance(name="crub", state=state, reason=reason, disks=["block2"])


def inventory(now=T0, disks=(), instances=(), downstairs=()):
    return Inventory(now, tuple(instances), tuple(disks), tuple(downstairs))


def replacement(state=S.REPLACEMENT_STATE_REPAIR, now=T0, name="r1", **more):
    return Replacement(
        id=name, disk="block2", slot=2, state=state, update_time=Timestamp(seconds=int(now)),
        create_time=Timestamp(seconds=int(T0)), **more,
    )  # fmt: skip


def sample(second, completed=10, p99=1.0, seconds=0.5, **more):
    end = Timestamp()
    end.FromNanoseconds(round((T0 + second) * 1e9))
    return VolumeSample(
        end_time=end, seconds=seconds, completed=completed, p99_milliseconds=p99, **more
    )


def texts(model):
    return [line.text for line in model.log]


def test_what_was_there_at_first_is_no_news():
    model = Model()
    model.take(inventory(disks=[disk()], instances=[instance()]))
    assert texts(model) == []
    assert model.now == T0


def test_each_change_is_told_once():
    model = Model()
    model.take(inventory(disks=[disk()], instances=[instance()]))
    changed = disk((ACTIVE, ACTIVE, REPAIR))
    failed = instance(InstanceState.INSTANCE_STATE_FAILED, "its process ended")
    for second in (1, 2, 3):
        model.take(inventory(T0 + second, [changed], [failed]))
    assert texts(model) == [
        "crub: running -> failed (its process ended)",
        "block2 slot 2: active -> live_repair",
    ]
    assert {line.time for line in model.log} == {T0 + 1}


def test_what_comes_and_goes_is_told():
    model = Model()
    model.take(inventory())
    model.take(inventory(T0 + 1, [disk()], downstairs=[Downstairs(address="a:1", role=1)]))
    model.take(inventory(T0 + 2))
    assert texts(model) == [
        "block2: active",
        "block2 slot 0: active",
        "block2 slot 1: active",
        "block2 slot 2: active",
        "a:1: spare",
        *sorted(["block2 is gone", "a:1 is gone"], key=texts(model).index),
    ]


def test_a_mode_says_why_a_slot_does_not_serve():
    model = Model()
    model.take(inventory(disks=[disk()]))
    away = disk((ACTIVE, ACTIVE, SlotState.SLOT_STATE_WAIT_CONNECT))
    away.volume.regions[0].slots[2].mode = SlotMode.SLOT_MODE_OFFLINE
    model.take(inventory(T0 + 1, [away]))
    assert texts(model) == ["block2 slot 2: active -> wait_connect, offline"]


def test_transitions_are_told_once_though_a_watch_begins_anew():
    model = Model()
    steps = [
        Transition(state=S.REPLACEMENT_STATE_APPLY, number=0, time=Timestamp(seconds=5)),
        Transition(state=S.REPLACEMENT_STATE_REPAIR, number=1, detail="the machine has it"),
    ]
    model.take(ReplacementNews(T0, replacement(), tuple(steps[:1])))
    model.take(ReplacementNews(T0, replacement(), tuple(steps)))
    model.take(ReplacementNews(T0, replacement(), tuple(steps)))
    assert texts(model) == [
        "block2 slot 2: replacement in apply",
        "block2 slot 2: replacement in repair (the machine has it)",
    ]
    assert model.log[0].time == 5.0


def test_one_that_has_ended_leaves_after_a_while():
    model = Model()
    model.take(ReplacementNews(T0, replacement(S.REPLACEMENT_STATE_DONE)))
    assert model.replacement_of("block2") is not None
    model.take(inventory(T0 + ENDED_SHOWN_SECONDS + 1))
    assert model.shown_replacements() == []


def test_one_that_runs_is_shown_before_those_that_have_ended():
    model = Model()
    model.take(ReplacementNews(T0, replacement(S.REPLACEMENT_STATE_DONE, name="old")))
    model.take(ReplacementNews(T0, replacement(name="new")))
    assert [one.id for one in model.shown_replacements()] == ["new", "old"]
    assert model.replacement_of("block2").id == "new"
    assert model.replacement_of("block3") is None


def test_running_ones_are_those_the_disks_name():
    model = Model()
    model.take(inventory(disks=[disk(replacement="r1"), disk(name="block3")]))
    assert model.running() == ["r1"]


def test_samples_are_kept_in_order_once_and_bounded():
    model = Model()
    model.take(inventory(disks=[disk()]))
    assert model.rate("block2") is None
    model.take(HistoryNews("block2", (sample(1), sample(2))))
    model.take(HistoryNews("block2", (sample(2), sample(3))))
    assert [one.end_time.seconds for one in model.samples("block2")] == [T0 + 1, T0 + 2, T0 + 3]
    assert model.newest_sample("block2") == sample(3)
    model.take(HistoryNews("block2", tuple(sample(n) for n in range(4, SAMPLES_KEPT + 50))))
    assert len(model.samples("block2")) == SAMPLES_KEPT
    model.take(inventory(T0 + 9))
    assert model.samples("block2") == []


def test_a_rate_is_that_of_the_last_two_seconds():
    model = Model()
    long_ago = sample(1, 10_000, 900.0)
    last = [sample(2 + n / 2, 100, 1.0 + n, read_bytes=50, write_bytes=50) for n in range(4)]
    model.take(HistoryNews("block2", (long_ago, *last)))
    rate = model.rate("block2")
    assert (rate.requests, rate.bytes, rate.p99) == (200.0, 200.0, 4.0)


def test_a_control_plane_that_goes_away_is_told_once_and_so_is_its_return():
    model = Model()
    model.take(inventory(disks=[disk()]))
    for second in (1, 2, 3):
        model.take(Away(T0 + second, "it does not answer"))
    assert model.away == "it does not answer"
    assert len(model.inventory.disks) == 1
    model.take(inventory(T0 + 4, [disk()]))
    assert texts(model) == ["it does not answer", "the control plane answers again"]
    assert model.away == ""


def test_answers_to_the_user_are_in_the_log():
    model = Model()
    model.take(Said(T0, "block2 slot 2 is paused"))
    assert texts(model) == ["block2 slot 2 is paused"]
