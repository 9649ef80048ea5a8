"""What a request to replace a disk's construction request comes to. Pure; changes nothing.

The recorded request, the newest replacement of the disk and the wanted request decide alone, so the
same request gives the same answer whenever it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.core.construction_check import check
from controlplane.core.records import DiskRecord, InstanceState
from controlplane.core.replacement import Replacement, State
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
) -> Decision:
    """The decision; InvalidRequestError, ConflictError or StateError when it is a refusal.

    `newest` is the newest replacement of this disk, ended or not; `prefix` is put before the field
    paths of violations.
    """
    _refuse(prefix, check(wanted).violations, "the construction request is not well formed")
    if newest is not None and wanted == disk.construction == newest.replacement:
        return Repeat(newest)
    if newest is not None and not newest.state.ended:
        _refuse_while_running(disk, newest, wanted, prefix)
    comparison = compare(disk.construction, wanted)
    if comparison.outcome is Outcome.UNCHANGED:
        raise _no_difference(disk, prefix)
    if comparison.outcome is Outcome.REJECT:
        _refuse(prefix, comparison.violations, _rejected(disk))
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
    disk: DiskRecord, running: Replacement, wanted: Construction, prefix: str
) -> None:
    """Raises. A request that was never possible is wrong; any other one comes too early."""
    now = compare(disk.construction, wanted)
    before = compare(running.original, wanted)
    if now.outcome is Outcome.REJECT and before.outcome is Outcome.REJECT:
        _refuse(prefix, now.violations, _rejected(disk))
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
