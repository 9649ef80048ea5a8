"""What `top` shows, as rows of plain text from its model. Pure.

The same rows are drawn by the terminal and printed by `--once`. All fit 80 columns; what is too
long is cut with an ellipsis, never folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.cli.render import instance_word, percent, replacement_word
from controlplane.cli.top.model import GuestRate, Model, downstairs_word, slot_word, volume_word
from controlplane.cli.top.sparkline import sparkline
from controlplane.cli.units import format_bytes, format_limit, format_rate, format_seconds
from controlplane.cli.watch import bar, progress_line
from stairwell.controlplane.v1.disk_service_pb2 import Disk
from stairwell.controlplane.v1.fleet_service_pb2 import Downstairs
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement
from stairwell.vmmd.v1.volume_service_pb2 import SlotInfo, SlotState, VolumeSample

COLUMNS = 80
SPARK_CELLS = 50
BAR_CELLS = 16
# A glance at one slot.
_GLYPHS = {
    SlotState.SLOT_STATE_ACTIVE: "●",
    SlotState.SLOT_STATE_LIVE_REPAIR: "◐",
    SlotState.SLOT_STATE_LIVE_REPAIR_READY: "◔",
    SlotState.SLOT_STATE_RECONCILE: "◑",
}
_GLYPH_AWAY = "○"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the names of the columns, and a row of texts for each key."""

    title: str
    columns: tuple[str, ...]
    widths: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    empty: str = ""


def cut(text: str, cells: int) -> str:
    """The text in at most `cells` characters."""
    return text if len(text) <= cells else text[: max(cells - 1, 0)] + "…"


def time_of_day(seconds: float) -> str:
    """UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def header(model: Model, address: str) -> str:
    """The first line: whose state this is, how much there is, and how fresh."""
    inventory = model.inventory
    running = len(model.running())
    parts = [
        address,
        _counted(len(inventory.instances), "machine"),
        _counted(len(inventory.disks), "disk"),
        f"{len(inventory.downstairs)} downstairs",
        _counted(running, "replacement"),
    ]
    if inventory.policy is not None and inventory.policy.maintenance:
        parts.append("maintenance")
    state = "NO ANSWER" if model.away else f"{time_of_day(model.now)}Z"
    return cut("  ".join([*parts, state]), COLUMNS)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


# ----- tables


def disks_table(model: Model) -> Table:
    """A row for each disk, with its three slots at a glance."""
    rows = []
    for disk in model.inventory.disks:
        rate = model.rate(disk.name)
        rows.append(
            (
                disk.name,
                (
                    disk.name, volume_word(disk), str(disk.recorded_generation), glance(disk),
                    *guest_words(rate), _doing(model, disk),
                ),
            )
        )  # fmt: skip
    return Table(
        "Disks",
        ("DISK", "STATE", "GEN", "SLOTS", "IOPS", "RATE", "P99", "REPLACEMENT"),
        (14, 12, 3, 5, 6, 10, 8, 14),
        tuple(rows),
        "no disks; make a machine with `stairwell new NAME --crucible-disks FILE`",
    )


def glance(disk: Disk) -> str:
    """A sign for each slot, regions apart."""
    if not disk.HasField("volume"):
        return "-"
    return " ".join("".join(map(glyph, region.slots)) for region in disk.volume.regions)


def glyph(slot: SlotInfo) -> str:
    """A sign for a slot's state."""
    return _GLYPHS.get(slot.state, _GLYPH_AWAY)


def guest_words(rate: GuestRate | None) -> tuple[str, str, str]:
    """Requests a second, bytes a second, p99."""
    if rate is None:
        return "-", "-", "-"
    p99 = format_seconds(rate.p99 / 1e3) if rate.requests else "-"
    return _number(rate.requests), format_rate(rate.bytes), p99


def _number(value: float) -> str:
    """As "950", "12.3k"."""
    for unit in ("", "k", "M"):
        if value < 1000 or unit == "M":
            break
        value /= 1000
    return f"{value:.0f}{unit}" if not unit or value >= 100 else f"{value:.1f}{unit}"


def _doing(model: Model, disk: Disk) -> str:
    one = model.replacement_of(disk.name)
    if one is None:
        return "-"
    word = replacement_word(one.state)
    return f"{word} {percent(one.bytes_done, one.bytes_total)}" if one.bytes_total else word


def machines_table(model: Model) -> Table:
    """A row for each machine."""
    rows = [
        (
            one.name,
            (one.name, instance_word(one.state), ", ".join(one.disks) or "-", one.vmmd or "-",
             one.reason),
        )
        for one in model.inventory.instances
    ]  # fmt: skip
    return Table(
        "Machines", ("MACHINE", "STATE", "DISKS", "VMMD", "REASON"), (14, 10, 18, 17, 17),
        tuple(rows), "no machines; make one with `stairwell new NAME --crucible-disks FILE`",
    )  # fmt: skip


def downstairs_table(model: Model) -> Table:
    """A row for each downstairs known."""
    rows = [(one.address, _downstairs_row(one)) for one in model.inventory.downstairs]
    return Table(
        "Fleet", ("ADDRESS", "STATE", "HOST", "STORED", "FREE", "USED BY"), (21, 17, 11, 9, 9, 8),
        tuple(rows), "no downstairs known; `stairwell fleet register HOST:PORT`",
    )  # fmt: skip


def _downstairs_row(one: Downstairs) -> tuple[str, ...]:
    state = downstairs_word(one) + (", drained" if one.drain_id else "")
    looked = one.HasField("look_time")
    free = format_bytes(one.free_bytes) if one.HasField("free_bytes") else "-"
    return (
        one.address, state, one.host, format_bytes(one.stored_bytes) if looked else "-", free,
        ", ".join(one.disks) or "-",
    )  # fmt: skip


def replacements_table(model: Model) -> Table:
    """A row for each replacement in sight."""
    rows = []
    for one in model.shown_replacements():
        waits = one.blocked_on or (one.last_error if one.attempt > 1 else "")
        rate = format_rate(one.bytes_per_second) if one.bytes_per_second else "-"
        eta = format_seconds(one.eta_seconds) if one.eta_seconds > 0 else "-"
        rows.append(
            (
                one.id,
                (one.disk, str(one.slot), replacement_word(one.state),
                 percent(one.bytes_done, one.bytes_total), rate, eta, waits or "-"),
            )
        )  # fmt: skip
    return Table(
        "Replacements", ("DISK", "SLOT", "PHASE", "DONE", "RATE", "ETA", "WAITS FOR"),
        (14, 4, 10, 5, 10, 9, 20), tuple(rows), "none runs; `stairwell vcr` or "
        "`stairwell replacement start` begins one",
    )  # fmt: skip


def tables(model: Model) -> list[Table]:
    """All of them, in the order people read them."""
    makers = (machines_table, disks_table, downstairs_table, replacements_table)
    return [make(model) for make in makers]


# ----- one disk


def detail(model: Model, name: str) -> list[str]:
    """Everything of one disk: its slots, what is being replaced, how its guest fares."""
    disk = next((one for one in model.inventory.disks if one.name == name), None)
    if disk is None:
        return []
    lines = slot_lines(disk)
    replacement = model.replacement_of(name)
    if replacement is not None:
        lines += replacement_lines(replacement)
    lines += spark_lines(model.samples(name))
    return [cut(line, COLUMNS) for line in lines]


def slot_lines(disk: Disk) -> list[str]:
    """A line for each slot: its sign, address, state, and repair or trouble."""
    if not disk.HasField("volume"):
        return [f"{disk.name}: no machine answers for it"]
    lines = []
    for region in disk.volume.regions:
        if len(disk.volume.regions) > 1:
            lines.append(f"{region.path}  generation {region.generation}")
        for slot in region.slots:
            words = [f"{glyph(slot)} {slot.slot} {slot.address:<21} {slot_word(slot)}"]
            if slot.HasField("repair"):
                done, total = slot.repair.bytes_done, slot.repair.bytes_total
                words.append(f"{bar(done, total, BAR_CELLS)} {percent(done, total)}")
            elif slot.state != SlotState.SLOT_STATE_ACTIVE and slot.last_error:
                words.append(slot.last_error)
            if slot.bad_blocks:
                words.append(f"{slot.bad_blocks} bad blocks")
            lines.append("  ".join(words))
    return lines


def replacement_lines(one: Replacement) -> list[str]:
    """What is replaced by what, how far it is, and what it waits for."""
    line = f"slot {one.slot}: {one.old_target} -> {one.new_target}"
    rate = one.repair_rate
    if one.HasField("repair_rate"):
        line += f"   limit {format_limit(rate.bytes_per_second_max)}"
    # What it waits for has a line of its own: it is the last thing that may be cut.
    words = " ".join(progress_line(one, waits=False).split())
    lines = [line, f"{bar(one.bytes_done, one.bytes_total, 12)} {words}"]
    if one.blocked_on:
        lines.append(f"waits for {one.blocked_on}")
    if one.last_error:
        lines.append(f"last error: {one.last_error}")
    return lines


def spark_lines(samples: Sequence[VolumeSample]) -> list[str]:
    """Requests, latency and repairs over the last minutes; the number is that of now."""
    if not samples:
        return ["no history: the machine does not answer, or has just begun"]
    iops = [one.completed / one.seconds for one in samples if one.seconds]
    p99 = [one.p99_milliseconds for one in samples]
    lines = [
        _spark("guest IOPS", iops, _number(iops[-1] if iops else 0)),
        _spark("guest p99", p99, format_seconds(p99[-1] / 1e3)),
    ]
    moved = [one.repair_bytes / one.seconds for one in samples if one.seconds]
    if any(moved):
        lines.append(_spark("repair", moved, format_rate(moved[-1])))
    return lines


def _spark(name: str, values: Sequence[float], word: str) -> str:
    return f"{name:<11} {sparkline(values, SPARK_CELLS)} {word}"


# ----- the whole, as text and as data


def as_text(model: Model, address: str, log_lines: int = 8) -> str:
    """Everything on paper, for `--once`."""
    parts = [header(model, address)]
    for table in tables(model):
        parts += ["", *table_lines(table)]
    for disk in model.inventory.disks:
        parts += ["", disk.name, *(f"  {line}" for line in detail(model, disk.name))]
    if model.log:
        parts += ["", *log_texts(model)[-log_lines:]]
    return "\n".join(cut(line.rstrip(), COLUMNS) for line in parts)


def table_lines(table: Table) -> list[str]:
    """A table as lines; a column is as wide as its texts, up to its width."""
    if not table.rows:
        return [f"{table.title}: {table.empty}"]
    cells = [table.columns, *(texts for _key, texts in table.rows)]
    widths = [
        min(width, max(len(row[number]) for row in cells))
        for number, width in enumerate(table.widths)
    ]
    return [
        "  ".join(
            f"{cut(text, width):<{width}}" for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def log_texts(model: Model) -> list[str]:
    """The log, oldest first."""
    return [f"{time_of_day(line.time)} {line.text}" for line in model.log]


def as_data(model: Model, address: str) -> dict[str, Any]:
    """The same for programs: tables by their columns, numbers of guests as numbers."""
    guests = {}
    for disk in model.inventory.disks:
        rate = model.rate(disk.name)
        guests[disk.name] = rate and {
            "requests_per_second": round(rate.requests, 3),
            "bytes_per_second": round(rate.bytes, 1),
            "p99_milliseconds": round(rate.p99, 3),
        }
    found = {
        table.title.lower(): [
            dict(zip((name.lower() for name in table.columns), texts, strict=True))
            for _key, texts in table.rows
        ]
        for table in tables(model)
    }
    return {"control_plane": address, "time": model.now, **found, "guests": guests}
