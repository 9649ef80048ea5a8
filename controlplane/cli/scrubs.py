"""Scrubs as lines: what is copied, how fast, what it waits for, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from controlplane.cli.plain import enum_word
from controlplane.cli.render import new_table, percent, word
from controlplane.cli.units import format_bytes, format_limit, format_rate, format_seconds
from controlplane.cli.watch import live_text
from stairwell.controlplane.v1.disk_service_pb2 import Disk, Scrub, ScrubState

ENDED = frozenset(
    {ScrubState.SCRUB_STATE_DONE, ScrubState.SCRUB_STATE_STOPPED, ScrubState.SCRUB_STATE_FAILED}
)


def scrub_at(disk: Disk, path: str) -> Scrub | None:
    """The newest scrub of the volume at a path."""
    return next((each for each in disk.scrubs if each.path == path), None)


def has_ended(scrub: Scrub) -> bool:
    """Whether nothing more will happen to it by itself."""
    return scrub.state in ENDED


def phase_of(scrub: Scrub) -> tuple[int, str, str]:
    """What makes an update news: its state, what it waits for, what went wrong."""
    return int(scrub.state), scrub.blocked_on, scrub.last_error


@dataclass(slots=True)
class Speed:
    """The rate since the first look, by the control plane's own times."""

    first: Scrub | None = None

    def of(self, scrub: Scrub) -> float:
        """Bytes per second; zero when nothing is known."""
        if self.first is None:
            self.first = scrub
        seconds = scrub.updated_at - self.first.updated_at
        return (scrub.bytes_done - self.first.bytes_done) / seconds if seconds > 0 else 0.0


def progress_line(scrub: Scrub, bytes_per_second: float = 0.0) -> str:
    """State, share, bytes, rate, time left, and what it waits for."""
    parts = [f"{scrub_word(scrub):<7}"]
    if scrub.bytes_total:
        done, total = scrub.bytes_done, scrub.bytes_total
        parts.append(f"{percent(done, total):>5}")
        parts.append(f"{format_bytes(done)} of {format_bytes(total)}")
    if bytes_per_second > 0 and not has_ended(scrub):
        left = (scrub.bytes_total - scrub.bytes_done) / bytes_per_second
        parts.append(format_rate(bytes_per_second))
        parts.append(f"ETA {format_seconds(left)}")
    if scrub.blocked_on:
        parts.append(f"waiting: {scrub.blocked_on}")
    elif scrub.last_error:
        parts.append(f"trying again after: {scrub.last_error}")
    return "  ".join(parts).rstrip()


def live_line(scrub: Scrub, columns: int, bytes_per_second: float = 0.0) -> str:
    """The one line of a terminal: the bar before the words."""
    words = progress_line(scrub, bytes_per_second)
    return live_text(words, scrub.bytes_done, scrub.bytes_total, columns)


def scrub_word(scrub: Scrub) -> str:
    """Its state's name."""
    return enum_word(ScrubState.DESCRIPTOR, scrub.state)


def volume_words(disk: str, path: str) -> str:
    """The volume that is filled, as messages name it."""
    return f"{disk}, {path}" if path else disk


def started_line(scrub: Scrub) -> str:
    """What the answer to the request means, where nobody follows the scrub."""
    what = volume_words(scrub.disk, scrub.path)
    if scrub.state == ScrubState.SCRUB_STATE_DONE:
        return closing_line(scrub)
    told = f"; `stairwell trace {scrub.trace_id}` shows it" if scrub.trace_id else ""
    return f"{what}: scrub {scrub_word(scrub)}, {format_limit(scrub.bytes_per_second_max)}{told}"


def closing_line(scrub: Scrub) -> str:
    """What to say when one has ended."""
    what = volume_words(scrub.disk, scrub.path)
    match scrub.state:
        case ScrubState.SCRUB_STATE_DONE:
            return (
                f"done: {what} has all its blocks itself; the recorded request, now of generation"
                f" {scrub.recorded_generation}, has no read-only parent there any more"
            )
        case ScrubState.SCRUB_STATE_STOPPED:
            return (
                f"stopped: {what} keeps its parent and what was copied"
                f" ({format_bytes(scrub.bytes_done)} of {format_bytes(scrub.bytes_total)})"
            )
        case _:
            return f"failed: {scrub.last_error or 'no reason was given'}"


def scrubs_table(scrubs: Sequence[Scrub]) -> RenderableType:
    """The newest scrub of each volume of a disk."""
    found = new_table("SCRUB OF", "STATE", "DONE", "OF", "LIMIT", "NOTE", right=["DONE"])
    for one in scrubs:
        found.add_row(
            one.path or "volume",
            word(scrub_word(one)),
            percent(one.bytes_done, one.bytes_total),
            format_bytes(one.bytes_total),
            format_limit(one.bytes_per_second_max),
            one.blocked_on or one.last_error or "-",
        )
    return found
