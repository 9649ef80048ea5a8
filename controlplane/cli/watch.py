"""The progress of replacements and of waiting, as lines. Pure: `Pace` is told the time.

A terminal gets one line that rewrites itself; anything else gets a new line when the phase
changes and otherwise at a moderate pace, so that a log stays readable.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.cli.render import member_words, percent, replacement_word
from controlplane.cli.units import format_bytes, format_rate, format_seconds
from stairwell.controlplane.v1.instance_service_pb2 import Instance, InstanceState, RequestedState
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement, ReplacementState

PLAIN_SECONDS = 2.0
BAR_CELLS = 24
BAR_CELLS_MIN = 6

ENDED = frozenset(
    {
        ReplacementState.REPLACEMENT_STATE_DONE,
        ReplacementState.REPLACEMENT_STATE_FAILED,
        ReplacementState.REPLACEMENT_STATE_CANCELLED,
    }
)


def has_ended(replacement: Replacement) -> bool:
    """Whether nothing more will happen to the replacement by itself."""
    return replacement.state in ENDED


def progress_line(replacement: Replacement, *, waits: bool = True) -> str:
    """Phase, share, bytes, rate, time left, and what it waits for unless that is told elsewhere."""
    parts = [f"{replacement_word(replacement.state):<9}"]
    if replacement.bytes_total:
        done, total = replacement.bytes_done, replacement.bytes_total
        parts.append(f"{percent(done, total):>5}")
        parts.append(f"{format_bytes(done)} of {format_bytes(total)}")
        parts.append(f"({format_bytes(replacement.bytes_copied)} copied)")
    if replacement.state == ReplacementState.REPLACEMENT_STATE_REPAIR:
        parts.append(format_rate(replacement.bytes_per_second))
        if replacement.eta_seconds > 0:
            parts.append(f"ETA {format_seconds(replacement.eta_seconds)}")
    if replacement.restarts:
        parts.append(f"begun anew {replacement.restarts} times")
    if replacement.attempt > 1:
        parts.append(f"attempt {replacement.attempt}")
    if replacement.blocked_on and waits:
        parts.append(f"waits: {replacement.blocked_on}")
    return "  ".join(parts).rstrip()


def bar(done: int, total: int, cells: int = BAR_CELLS) -> str:
    """The share done as a bar of `cells` characters; full only when all is done."""
    filled = cells * done // total if total else 0
    return "━" * filled + "─" * (cells - filled)


def live_text(words: str, done: int, total: int, columns: int | None = None) -> str:
    """The bar before the words, shorter where `columns` are few."""
    cells = BAR_CELLS
    if columns is not None:
        cells = max(BAR_CELLS_MIN, min(BAR_CELLS, columns - len(words) - 3))
    return f"{bar(done, total, cells)}  {words}"


def live_line(replacement: Replacement, columns: int | None = None) -> str:
    """The one line of a terminal."""
    words = progress_line(replacement)
    return live_text(words, replacement.bytes_done, replacement.bytes_total, columns)


def closing_lines(replacement: Replacement) -> list[str]:
    """What to say when a replacement has ended, well or badly."""
    if replacement.state == ReplacementState.REPLACEMENT_STATE_DONE:
        seconds = format_seconds(repair_seconds(replacement))
        done = (
            f"done: {member_words(replacement)} is now "
            f"{replacement.new_target}, verified; {format_bytes(replacement.bytes_copied)} "
            f"copied in {seconds}"
        )
        return [done, f"`stairwell trace {replacement.id}` shows where the time went"]
    if replacement.state == ReplacementState.REPLACEMENT_STATE_CANCELLED:
        return [f"was undone: {member_words(replacement)} stays {replacement.old_target}"]
    return [f"failed: {replacement.last_error or 'no reason was given'}"]


def repair_seconds(replacement: Replacement) -> float:
    """How long the copying took: from the first entry into REPAIR to the end of the last one.

    Falls back to the whole replacement's time where there are no transitions.
    """
    repair = ReplacementState.REPLACEMENT_STATE_REPAIR
    first: int | None = None
    last: int | None = None
    inside = False
    for step in replacement.transitions:
        moment = step.time.ToNanoseconds()
        if step.state == repair:
            first = moment if first is None else first
            inside = True
        elif inside:
            last, inside = moment, False
    if first is None or last is None:
        start, end = replacement.create_time, replacement.update_time
        return max(0, end.ToNanoseconds() - start.ToNanoseconds()) / 1e9
    return (last - first) / 1e9


@dataclass(slots=True)
class Pace:
    """Decides which updates become lines in a log."""

    interval: float = PLAIN_SECONDS
    _shown_at: float | None = None
    _phase: object = None

    def admits(self, phase: object, now: float, *, final: bool = False) -> bool:
        """Whether this update is worth a line: a new phase, the last word, or time has passed."""
        due = self._shown_at is None or now - self._shown_at >= self.interval
        if phase == self._phase and not due and not final:
            return False
        self._phase, self._shown_at = phase, now
        return True


def phase_of(replacement: Replacement) -> tuple[int, str]:
    """What makes an update of a replacement news: its state and what it waits for."""
    return int(replacement.state), replacement.blocked_on


def wanted_reached(wanted: int, queued: Instance, now: Instance) -> bool | None:
    """Whether a requested state has been reached: True, not yet (None), or never will be (False).

    `queued` is the answer to the request. A reboot counts only once a newer state than that one
    has been published, since the machine was running before it, too.
    """
    if now.state == InstanceState.INSTANCE_STATE_FAILED:
        return False
    gone = now.state == InstanceState.INSTANCE_STATE_DESTROYED
    if wanted == RequestedState.REQUESTED_STATE_STOP:
        return True if gone else None
    if gone:
        return False
    running = now.state == InstanceState.INSTANCE_STATE_RUNNING
    if wanted == RequestedState.REQUESTED_STATE_REBOOT:
        running = running and now.state_generation > queued.state_generation
    return True if running else None
