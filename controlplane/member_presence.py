"""What a machine says of a volume, as the presence of its members."""

from __future__ import annotations

from controlplane.core.automation import MemberSeen, Presence
from stairwell.vmmd.v1 import volume_service_pb2 as pb

# A volume that is meant to serve: only then does a member that is not there miss.
_WANTED = frozenset({pb.VOLUME_STATE_GO_ACTIVE, pb.VOLUME_STATE_ACTIVE})
_GONE = frozenset({pb.SLOT_STATE_WAIT_CONNECT, pb.SLOT_STATE_NEGOTIATING, pb.SLOT_STATE_STOPPING})
# Members that have, or may have, what another one is filled from.
_SOURCES = frozenset({pb.SLOT_STATE_ACTIVE, pb.SLOT_STATE_WAIT_QUORUM, pb.SLOT_STATE_RECONCILE})


def members_seen(info: pb.VolumeInfo) -> tuple[MemberSeen, ...]:
    """Every slot of the regions that are meant to serve."""
    return tuple(
        MemberSeen(
            region_path=region.path,
            slot=slot.slot,
            target=slot.address,
            presence=_presence(slot),
            trouble=slot.last_error,
            sourced=any(each.state in _SOURCES for each in region.slots if each.slot != slot.slot),
        )
        for region in info.regions
        if region.state in _WANTED
        for slot in region.slots
    )


def _presence(slot: pb.SlotInfo) -> Presence:
    if slot.state == pb.SLOT_STATE_ACTIVE:
        return Presence.SERVES
    return Presence.GONE if slot.state in _GONE else Presence.RETURNING
