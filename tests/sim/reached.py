"""What a run came through: which faults struck, which states and phases there were, who was refused
and why, and how members were replaced. `make sim` prints it as a table, and fails when anything of
`EXPECTED` was never reached over the fixed seeds: a world that cannot come somewhere checks nothing
there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from controlplane.core.replacement import State
from stairlib.model.state_table import StateTable
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.reconcile_states import RECONCILE
from vmmd.upstairs.core.repair_states import REPAIR, RepairPhase
from vmmd.upstairs.core.slot_states import SLOT, SlotMode, SlotState
from vmmd.upstairs.core.status import RegionStatus
from vmmd.upstairs.core.upstairs import Upstairs
from vmmd.upstairs.core.upstairs_states import UPSTAIRS, UpstairsState

if TYPE_CHECKING:
    from tests.sim.machine import Machine

_AWAY = frozenset({SlotState.WAIT_CONNECT, SlotState.NEGOTIATING, SlotState.STOPPING})
TABLES = (UPSTAIRS, SLOT, REPAIR, RECONCILE)
# Moves that no seed can make: a table allows them for what the world has not.
UNREACHABLE: frozenset[str] = frozenset()


class Reached(Counter[str]):
    """Counts by "kind what"; what was not reached is not in it."""

    def status(self, before: RegionStatus, after: RegionStatus) -> None:
        """A machine's status has changed."""
        if before.state is not after.state:
            self[f"upstairs {after.state.name}"] += 1
        for old, new in zip(before.slots, after.slots, strict=True):
            if old.state is SlotState.RECONCILE and new.state in _AWAY:
                self["reconciliation loses a member"] += 1
            if (old.state, old.mode) != (new.state, new.mode):
                self[f"slot {new.state.name}"] += 1
                self[f"mode {new.mode.name}"] += 1

    def repair_ended(self, error: str) -> None:
        """A live repair is over."""
        kind = "by its target's loss" if error.startswith("the member was lost") else "otherwise"
        self[f"repair ends {kind if error else 'well'}"] += 1

    def member_left(self, upstairs: Upstairs, address: str) -> None:
        """A member has left service."""
        repair = upstairs._repair
        copying = repair is not None and repair.phase is RepairPhase.COPY
        if copying and repair.target.address != address:
            self["repair loses a source"] += 1

    def replaced(self, kinds: Iterable[str], answer: str) -> None:
        """A machine was told to replace a member; `kinds` from `situation` before."""
        self[f"machine told to replace {answer}"] += 1
        if answer == ReplaceResult.STARTED.name:
            for kind in kinds:
                self[f"replaced {kind}"] += 1


@contextmanager
def moves_recorded() -> Iterator[Counter[str]]:
    """Counts every move of a state table meanwhile."""
    found: Counter[str] = Counter()
    after = StateTable.after

    def recorded(table: StateTable[Any, Any], state: Any, event: Any) -> Any:
        found[move_name(table, state, event)] += 1
        return after(table, state, event)

    StateTable.after = recorded  # type: ignore[method-assign]
    try:
        yield found
    finally:
        StateTable.after = after  # type: ignore[method-assign]


def move_name(table: StateTable[Any, Any], state: Any, event: Any) -> str:
    """As in the table of what was reached."""
    return f"move of {table.subject}: {state.name} {event.name}"


def situation(machine: Machine, old: str) -> list[str]:
    """In which situations of interest the member at `old` would be replaced now."""
    status = machine.upstairs.status()
    leaving = [slot for slot in status.slots if slot.address == old]
    others = [slot for slot in status.slots if slot.address != old]
    away = any(slot.state in _AWAY for slot in others)
    if status.state is UpstairsState.ACTIVE:
        kinds = ["with a third member away"] if away else ["with both others there"]
        serves = any(slot.state is SlotState.ACTIVE for slot in leaving)
        kinds.append("while it serves" if serves else "when it is away")
    elif any(slot.state is SlotState.RECONCILE for slot in status.slots):
        kinds = ["during reconciliation"]
    else:
        kinds = ["before activation"]
    return kinds


STATES = (
    *(f"upstairs {state.name}" for state in UpstairsState),
    *(f"slot {state.name}" for state in SlotState),
    *(f"mode {mode.name}" for mode in SlotMode),
    *(
        move_name(table, state, event)
        for table in TABLES
        for state, event, _after, _text in table.moves
        if move_name(table, state, event) not in UNREACHABLE
    ),
    # Those before are states of the one call that begins a replacement.
    *(f"replacement {state.name}" for state in list(State)[list(State).index(State.APPLY) :]),
)
EVENTS = (
    "repair ends well",
    "repair ends by its target's loss",
    "repair ends otherwise",
    "repair loses a source",
    "reconciliation loses a member",
    "replaced before activation",
    "replaced during reconciliation",
    "replaced with a third member away",
    "replaced with both others there",
    "replaced while it serves",
    "replaced when it is away",
    "replaced while one is behind",
    "network silence",
    "network call too late",
    "network call carried out late",
    "taken over NO_LONGER_ACTIVE",
    "copy behind is sent a flush to go with the next",
    *(f"copy behind, and {what}" for what in ("it is lost", "another is lost", "the machine dies")),
    "copies stand still",
    "copy fails on a damaged block",
    "copy takes blocks beside messages",
    "word PauseAsked",
    "word ResumeAsked",
    "word CancelAsked",
    "control a dead one's call is carried out",
    "parent dropped",
    "scrub DONE",
    "scrub cut off",
    *(f"parent {kind}" for kind in ("kill", "power", "links", "one_way")),
)
REFUSALS = (
    "opening refused GENERATION_TOO_LOW",
    "opening refused REGION_MISMATCH",
    "opening refused KEY_MISMATCH",
    "activation refused GENERATION_TOO_LOW",
    "activation refused KEY_MISMATCH",
    "request refused TARGET_GEOMETRY_MISMATCH",
    "request refused TARGET_ENCRYPTION_MISMATCH",
    "request refused TARGET_CIPHER_MISMATCH",
    "request refused TARGET_READ_ONLY_MISMATCH",
    "request refused TARGET_IN_USE",
    "request refused TARGET_NOT_BLANK",
    "request refused REPLACEMENT_RUNNING",
    "machine told to replace STARTED",
    "machine told to replace STARTED_ALREADY",
    "machine told to replace COMPLETED_ALREADY",
)
EXPECTED = (*STATES, *EVENTS, *REFUSALS)


def never(reached: Counter[str], faults: Iterable[str]) -> list[str]:
    """What was expected and not reached; `faults` are the names of all there are."""
    wanted = (*(f"fault {name}" for name in faults), *EXPECTED)
    return [name for name in wanted if not reached[name]]


def table(reached: Counter[str], seeds: Counter[str], missing: Iterable[str]) -> list[str]:
    """Lines of how often each was reached, and in how many seeds."""
    lines = [f"  {'reached':<52} {'times':>9} {'seeds':>7}"]
    for name in sorted({*reached, *missing}):
        mark = "" if reached[name] else "  NEVER"
        lines.append(f"  {name:<52} {reached[name]:>9} {seeds[name]:>7}{mark}")
    return lines
