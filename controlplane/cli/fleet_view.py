"""The fleet, its policy, drains and placements as people read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from controlplane.cli import render
from controlplane.cli.plain import enum_word
from controlplane.cli.render import clock, fields, new_table, replacement_word, word
from controlplane.cli.units import format_bytes, format_limit, format_seconds
from stairlib.wire.durations import seconds_of
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1.replacement_service_pb2 import (
    Placement,
    Replacement,
    StartReplacementResponse,
)


def fleet_table(downstairs: Sequence[pb.Downstairs]) -> RenderableType:
    """Known downstairs, with what is wrong with some of them below."""
    if not downstairs:
        return "no downstairs known; register one with `stairwell fleet register HOST:PORT`"
    table = new_table(
        "ADDRESS", "ROLE", "HOST", "DOMAIN", "HEALTH", "SEEN", "SIZE", "STORED", "FREE", "USED BY",
        right=["SIZE", "STORED", "FREE"],
    )  # fmt: skip
    for one in downstairs:
        table.add_row(
            one.address,
            word(_role(one)),
            one.host,
            one.failure_domain or "-",
            word(_health(one)),
            clock(one.seen_time),
            _size(one),
            format_bytes(one.stored_bytes) if one.HasField("look_time") else "-",
            format_bytes(one.free_bytes) if one.HasField("free_bytes") else "-",
            ", ".join(one.disks) or "-",
        )
    notes = [f"{one.address}: {one.trouble}" for one in downstairs if one.trouble]
    return Group(table, *["", *notes]) if notes else table


def downstairs_view(one: pb.Downstairs) -> RenderableType:
    """One downstairs."""
    return fields(
        [
            ("address", one.address),
            ("role", word(_role(one))),
            ("host", one.host),
            ("failure domain", one.failure_domain or f"none said; host {one.host} stands for it"),
            ("made by", one.agent),
            ("set aside for", one.reserved_volume_id and f"volume {one.reserved_volume_id}"),
            ("region", one.region_id),
            ("volume", one.volume_id),
            ("size", f"{_size(one)}: {one.extent_count} extents, {one.block_size}-byte blocks"),
            ("stored", format_bytes(one.stored_bytes)),
            ("free", format_bytes(one.free_bytes) if one.HasField("free_bytes") else "not said"),
            ("health", word(_health(one))),
            ("trouble", one.trouble),
            ("used by", ", ".join(one.disks)),
        ]
    )  # fmt: skip


def agents_table(agents: Sequence[pb.Agent]) -> RenderableType:
    """Known agents."""
    if not agents:
        return "no agents known; register one with `stairwell fleet agent HOST:PORT`"
    table = new_table(
        "AGENT", "HOST", "DOMAIN", "FREE", "PORTS", "MAKING", "TROUBLE",
        right=["FREE", "PORTS", "MAKING"],
    )  # fmt: skip
    for one in agents:
        table.add_row(
            one.address, one.host, one.failure_domain or "-", format_bytes(one.free_bytes),
            str(one.ports_free), str(one.makings), one.trouble,
        )  # fmt: skip
    return table


def policy_view(policy: pb.FleetPolicy, faulted: Sequence[pb.FaultedMember] = ()) -> RenderableType:
    """The policy, and the members found faulted."""
    automatic = (
        "on: members that are gone for the grace time are replaced by spares"
        if policy.automatic
        else "off: nothing is replaced unasked"
    )
    maintenance = "on: nothing is begun unasked" if policy.maintenance else "off"
    table = fields(
        [
            ("automatic", automatic),
            ("grace", format_seconds(seconds_of(policy.grace))),
            ("maintenance", maintenance),
            ("at once", f"{policy.at_once_max} in the fleet, one on a volume"),
            ("repair rate", format_limit(policy.repair_bytes_per_second)),
        ]
    )
    if not faulted:
        return table
    members = new_table("DISK", "SLOT", "MEMBER", "GONE SINCE", "WAITS FOR")
    for one in faulted:
        slot = _slot(one.region_path, one.slot)
        waits = one.waits_for or "nothing: it is being replaced"
        members.add_row(one.disk, slot, one.target, clock(one.since_time), waits)
    return Group(table, "", members)


def drain_word(drain: pb.Drain) -> str:
    """The state's name."""
    return enum_word(pb.DrainState.DESCRIPTOR, drain.state)


def drain_view(drain: pb.Drain) -> RenderableType:
    """A drain with what it moved and what is left."""
    parts: list[RenderableType] = [
        fields(
            [
                ("drain", drain.id),
                ("of", drain.target),
                ("state", word(drain_word(drain))),
                ("moved", f"{_done(drain)} of {_whole(drain)}"),
                ("started", clock(drain.create_time)),
                ("updated", clock(drain.update_time)),
            ]
        )
    ]
    if drain.moves:
        moved = new_table("MOVE", "DISK", "SLOT", "FROM", "TO", "STATE")
        for move in drain.moves:
            moved.add_row(
                move.replacement_id, move.disk, _slot(move.region_path, move.slot),
                move.old_target, move.new_target, word(replacement_word(move.state)),
            )  # fmt: skip
        parts += ["", moved]
    if drain.left:
        parts += ["", _left_table(drain)]
    return Group(*parts)


def drain_plan(drain: pb.Drain) -> RenderableType:
    """What a drain would move, that was not begun."""
    if not drain.left:
        return f"nothing to move: no disk uses {drain.target}"
    return Group(f"a drain of {drain.target} would move {len(drain.left)}:", _left_table(drain))


def _left_table(drain: pb.Drain) -> RenderableType:
    left = new_table("LEFT", "SLOT", "MEMBER", "WAITS FOR")
    for one in drain.left:
        waits = one.waits_for or "nothing: it is next"
        left.add_row(one.disk, _slot(one.region_path, one.slot), one.target, waits)
    return left


def drain_line(drain: pb.Drain) -> str:
    """One line of a watched drain."""
    line = f"{drain.target}: {drain_word(drain)}, {_done(drain)} of {_whole(drain)} moved"
    for move in drain.moves:
        state = replacement_word(move.state)
        if state not in ("done", "failed", "cancelled"):
            return f"{line}; {move.disk} slot {move.slot} goes to {move.new_target} ({state})"
    if drain.left:
        one = drain.left[0]
        return f"{line}; {one.disk} slot {one.slot} waits: {one.waits_for or 'it is next'}"
    return line


def drains_table(drains: Sequence[pb.Drain]) -> RenderableType:
    """All drains."""
    if not drains:
        return "nothing was drained"
    table = new_table("DRAIN", "OF", "STATE", "MOVED", "LEFT", "STARTED")
    for one in drains:
        table.add_row(
            one.id, one.target, word(drain_word(one)), str(_done(one)), str(len(one.left)),
            clock(one.create_time),
        )  # fmt: skip
    return table


def replacement_view(replacement: Replacement) -> RenderableType:
    """One replacement with its history, who began it and how its target was found."""
    parts: list[RenderableType] = [render.replacement_view(replacement)]
    if replacement.asked_by:
        parts += ["", f"begun by: {replacement.asked_by}"]
    placement = placement_view(replacement.placement)
    if placement is not None:
        parts.append(placement)
    return Group(*parts)


def start_view(answer: StartReplacementResponse) -> RenderableType:
    """What a replacement by intent came to."""
    what = "already asked for" if answer.already else "started"
    if not answer.HasField("replacement"):
        what = "would be started"
    new = answer.new_target or "a new region"
    head = (
        f"{what}: {answer.region_path or 'region'} slot {answer.slot} {answer.old_target} ->"
        f" {new}, generation {answer.to_generation}"
    )
    lines: list[RenderableType] = [head]
    if answer.HasField("replacement"):
        lines.append(f"replacement {answer.replacement.id}")
    placement = placement_view(answer.placement)
    return Group(*lines, placement) if placement is not None else Group(*lines)


def placement_view(placement: Placement) -> RenderableType | None:
    """How a spare was found; None when there is nothing to say."""
    lines: list[RenderableType] = [f"warning: {each}" for each in placement.warnings]
    if placement.made_by:
        lines.append(f"no spare fits: the region is made by the agent at {placement.made_by}")
    if placement.rejections:
        table = new_table("NOT TAKEN", "HOST", "WHY")
        for one in placement.rejections:
            table.add_row(one.address, one.host, f"{one.detail} ({one.reason})")
        lines += ["", table]
    return Group(*lines) if lines else None


def _role(one: pb.Downstairs) -> str:
    name = enum_word(pb.DownstairsRole.DESCRIPTOR, one.role)
    return f"{name} (drained)" if one.drain_id else name


def _health(one: pb.Downstairs) -> str:
    name = enum_word(pb.DownstairsHealth.DESCRIPTOR, one.health)
    return "-" if name == "unspecified" else name


def _size(one: pb.Downstairs) -> str:
    size = one.block_size * one.blocks_per_extent * one.extent_count
    return format_bytes(size) + (" encrypted" if one.encrypted else "")


def _slot(region_path: str, slot: int) -> str:
    plain = region_path in ("", "sub_volumes[0]")
    return str(slot) if plain else f"{slot} of {region_path}"


def _done(drain: pb.Drain) -> int:
    return sum(1 for move in drain.moves if replacement_word(move.state) == "done")


def _whole(drain: pb.Drain) -> int:
    """All slots that it has had to do with."""
    slots = {(move.disk, move.region_path, move.slot) for move in drain.moves}
    slots |= {(one.disk, one.region_path, one.slot) for one in drain.left}
    return len(slots)
