"""What a request to replace a disk's construction request comes to. Pure; changes nothing.

The recorded request, the newest replacement of the disk, its scrubs and the wanted request decide
alone, so the same request gives the same answer whenever it is sent.

The comparison itself lets a request drop a read-only parent, since it cannot know what was copied.
Here it is refused: the recorded request loses a parent when its scrub has ended, and not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from controlplane.core.construction_check import check
from controlplane.core.parents import dropped, parent_path, volume_words
from controlplane.core.records import DiskRecord, InstanceState
from controlplane.core.replacement import Replacement, State
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from stairlib.model.construction import Construction
from stairlib.model.construction_diff import ChangedTarget, Outcome, compare
from stairlib.model.errors import ConflictError, FieldViolation, InvalidRequestError, StateError


@dataclass(frozen=True, slots=True)
class Repeat:
    """The request is the one that `replacement` came from."""

    replacement: Replacement


@dataclass(frozen=True, slots=True)
class RaiseGeneration:
    """No target changes; the wanted request becomes the recorded one."""


@dataclass(frozen=True, slots=True)
class Begin:
    """One target changes."""

    changed: ChangedTarget


Decision = Repeat | RaiseGeneration | Begin


def decide(
    disk: DiskRecord,
    instance_state: InstanceState,
    newest: Replacement | None,
    wanted: Construction,
    *,
    prefix: str,
    scrubs: Sequence[Scrub] = (),
) -> Decision:
    """The decision; InvalidRequestError, ConflictError or StateError when it is a refusal.

    `newest` is the newest replacement of this disk, ended or not; `prefix` is put before the field
    paths of violations; `scrubs` are those of this disk.
    """
    _refuse(prefix, check(wanted).violations, "the construction request is not well formed")
    if newest is not None and wanted == disk.construction == newest.replacement:
        return Repeat(newest)
    if newest is not None and not newest.state.ended:
        _refuse_while_running(disk, newest, wanted, prefix, scrubs)
    comparison = compare(disk.construction, wanted)
    if comparison.outcome is Outcome.REJECT:
        _refuse(prefix, _explained(comparison.violations, scrubs), _rejected(disk))
    _refuse_drop(disk, wanted, prefix, scrubs)
    if comparison.outcome is Outcome.UNCHANGED:
        raise _no_difference(disk, prefix)
    if instance_state.ended:
        raise StateError(
            f"instance {disk.instance_name!r} is {instance_state}: its volumes take no replacement"
            " any more; delete the instance and create it again with the new request",
            reason="INSTANCE_ENDED",
            instance=disk.instance_name,
            state=instance_state,
        )
    if comparison.outcome is Outcome.GENERATION_ONLY:
        return RaiseGeneration()
    assert comparison.changed is not None
    return Begin(comparison.changed)


def _refuse_while_running(
    disk: DiskRecord,
    running: Replacement,
    wanted: Construction,
    prefix: str,
    scrubs: Sequence[Scrub],
) -> None:
    """Raises. A request that was never possible is wrong; any other one comes too early."""
    now = compare(disk.construction, wanted)
    before = compare(running.original, wanted)
    if now.outcome is Outcome.REJECT and before.outcome is Outcome.REJECT:
        _refuse(prefix, _explained(now.violations, scrubs), _rejected(disk))
    if now.outcome is not Outcome.REJECT:
        _refuse_drop(disk, wanted, prefix, scrubs)
    if now.outcome is Outcome.UNCHANGED:
        raise _no_difference(disk, prefix)
    raise ConflictError(
        f"replacement {running.id} of disk {disk.name!r} (slot {running.slot}, {running.old_target}"
        f" by {running.new_target}) is running, in state {running.state}; wait for its end",
        reason="REPLACEMENT_RUNNING",
        replacement=str(running.id),
        state=running.state,
        disk=disk.name,
    )


def _refuse_drop(
    disk: DiskRecord, wanted: Construction, prefix: str, scrubs: Iterable[Scrub]
) -> None:
    """StateError when the request drops a parent: what is still in it alone would be lost."""
    paths = dropped(disk.construction, wanted)
    if not paths:
        return
    path = paths[0]
    option = f" --path '{path}'" if path else ""
    command = f"`stairwell disk scrub {disk.name}{option}`"
    if any(each.path == path and not each.state.ended for each in scrubs):
        advice = f"its scrub is running: wait for the end, which {command} follows"
    else:
        advice = f"{command} copies it; then the parent is dropped by itself"
    raise StateError(
        f"the request drops the read-only parent of {volume_words(path)} of disk {disk.name!r}"
        f" before all of it was copied, and would lose what only the parent has; {advice}",
        reason="PARENT_NOT_SCRUBBED",
        disk=disk.name,
        path=path,
        field=f"{prefix}.{parent_path(path)}",
    )


def _explained(
    violations: tuple[FieldViolation, ...], scrubs: Iterable[Scrub]
) -> tuple[FieldViolation, ...]:
    """The violations; a parent that a scrub took away is called that, and not one that is new."""
    done = {each.path: each for each in scrubs if each.state is ScrubState.DONE}
    gone = {parent_path(path): each.recorded_generation for path, each in done.items()}
    return tuple(
        FieldViolation(
            each.field,
            "was copied into the volume by a scrub and dropped: leave it null, with gen at least"
            f" {gone[each.field]} in every region",
            "PARENT_SCRUBBED",
        )
        if each.field in gone
        else each
        for each in violations
    )


def _no_difference(disk: DiskRecord, prefix: str) -> InvalidRequestError:
    text = (
        "is equal to the recorded request, and no replacement led to that one; change one target,"
        f" or raise gen above {disk.recorded_generation}"
    )
    return InvalidRequestError(
        f"the construction request of disk {disk.name!r} {text}",
        (FieldViolation(prefix, text, reason="NO_DIFFERENCE"),),
        reason="NO_DIFFERENCE",
        disk=disk.name,
    )


def _rejected(disk: DiskRecord) -> str:
    return f"the request cannot replace the recorded one of disk {disk.name!r}"


def _refuse(prefix: str, violations: tuple[FieldViolation, ...], what: str) -> None:
    """InvalidRequestError with every violation's path prefixed; nothing when there is none."""
    if not violations:
        return
    named = tuple(
        replace(each, field=f"{prefix}.{each.field}" if each.field else prefix)
        for each in violations
    )
    listed = "; ".join(f"{each.field}: {each.description}" for each in named)
    raise InvalidRequestError(f"{what}: {listed}", named, reason=named[0].reason)


def repeat_is_retry(decision: Repeat) -> bool:
    """Whether sending the same request again is to start a failed replacement again."""
    return decision.replacement.state is State.FAILED
