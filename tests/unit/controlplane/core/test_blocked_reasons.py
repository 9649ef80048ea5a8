"""Texts of what is waited for, as the few words that metrics have."""

import pytest

from controlplane.core.blocked_reasons import REASONS, reason_of
from controlplane.steps import as_event, look
from stairlib.model.errors import NotFoundError, UnavailableError
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from tests.unit.controlplane.core.records_made import replacement


def text_of(error):
    return as_event(error, 0.0, "").on


def test_what_calls_say():
    assert reason_of(text_of(UnavailableError("vmmd at 127.0.0.1:1 cannot be reached"))) == (
        "vmmd_away"
    )
    gone = NotFoundError("machine", "m", "no machine m")
    assert reason_of(text_of(gone)) == "no_machine"


@pytest.mark.parametrize(
    ("volume", "slot", "reason"),
    [
        (pb.VOLUME_STATE_INITIALIZING, pb.SLOT_STATE_WAIT_CONNECT, "volume_not_active"),
        (pb.VOLUME_STATE_DEACTIVATING, pb.SLOT_STATE_WAIT_CONNECT, "volume_not_active"),
        (pb.VOLUME_STATE_ACTIVE, pb.SLOT_STATE_WAIT_CONNECT, "member_not_ready"),
    ],
)
def test_what_the_state_of_a_volume_says(volume, slot, reason):
    record = replacement()
    slots = [pb.SlotInfo(slot=n, address=f"a:{n}") for n in range(2)]
    slots.append(pb.SlotInfo(slot=2, address=record.new_target, state=slot))
    region = pb.RegionInfo(path=record.region_path, state=volume, slots=slots)
    event = look(record, pb.VolumeInfo(regions=[region]), 0.0)
    assert reason_of(event.blocked_on) == reason


def test_there_is_a_word_for_anything_else():
    assert reason_of("the moon") == "other"
    assert len(set(REASONS)) == len(REASONS)
