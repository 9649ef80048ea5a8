"""Which requests a machine takes, in which order it does them. No locks, no I/O.

    request     not started            starting               running                ended
    ─────────   ────────────────────   ────────────────────   ────────────────────   ─────────────
    run         queue -> starting      ignore                 ignore                 refuse
    stop        queue                  queue                  queue                  ignore
    reboot      refuse                 refuse                 queue, twice ignored   refuse
    replace     queue                  queue                  queue                  refuse

A stop that waits comes before everything: after it, run and reboot are refused and a second stop is
ignored. "Ignore" is success to the caller, so run, stop and reboot may be sent again. State
changes are done before replacements; a stop does not cancel replacements that wait, the machine
answers them.

News of the guest come before every request, each kind once however often it is told, and only while
the machine runs or reboots: those of a start wait until it is over, those after a stop was asked
for or after the end are of no interest. Source: reference propolis.md §5, §6.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from stairlib.model.errors import LimitError, StateError
from vmmd.core.guest_events import GuestEvent


class RequestKind(enum.Enum):
    """What may be asked of a machine."""

    RUN = "run"
    STOP = "stop"
    REBOOT = "reboot"
    REPLACE = "replace"


class QueueState(enum.Enum):
    """As far as requests are concerned."""

    NOT_STARTED = "not started"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class Decision(enum.Enum):
    """What becomes of a request that is not refused."""

    QUEUE = "queue"
    IGNORE = "ignore"


_QUEUE, _IGNORE = Decision.QUEUE, Decision.IGNORE
_NEEDS_RUNNING = "reboot needs a running machine; this one is not started"
_STARTING = "the machine is still starting; reboot it once it runs"
_STOPPED = "the machine has stopped; create it again to run it"
_FAILED = "the machine has failed; create it again to run it"
TABLE: dict[tuple[RequestKind, QueueState], Decision | str] = {
    (RequestKind.RUN, QueueState.NOT_STARTED): _QUEUE,
    (RequestKind.RUN, QueueState.STARTING): _IGNORE,
    (RequestKind.RUN, QueueState.RUNNING): _IGNORE,
    (RequestKind.RUN, QueueState.STOPPED): _STOPPED,
    (RequestKind.RUN, QueueState.FAILED): _FAILED,
    (RequestKind.STOP, QueueState.NOT_STARTED): _QUEUE,
    (RequestKind.STOP, QueueState.STARTING): _QUEUE,
    (RequestKind.STOP, QueueState.RUNNING): _QUEUE,
    (RequestKind.STOP, QueueState.STOPPED): _IGNORE,
    (RequestKind.STOP, QueueState.FAILED): _IGNORE,
    (RequestKind.REBOOT, QueueState.NOT_STARTED): _NEEDS_RUNNING,
    (RequestKind.REBOOT, QueueState.STARTING): _STARTING,
    (RequestKind.REBOOT, QueueState.RUNNING): _QUEUE,
    (RequestKind.REBOOT, QueueState.STOPPED): _STOPPED,
    (RequestKind.REBOOT, QueueState.FAILED): _FAILED,
    (RequestKind.REPLACE, QueueState.NOT_STARTED): _QUEUE,
    (RequestKind.REPLACE, QueueState.STARTING): _QUEUE,
    (RequestKind.REPLACE, QueueState.RUNNING): _QUEUE,
    (RequestKind.REPLACE, QueueState.STOPPED): _STOPPED,
    (RequestKind.REPLACE, QueueState.FAILED): _FAILED,
}
# Replacements that may wait at once: one volume takes one at a time, a machine has at most eight
# disks.
REPLACEMENTS_WAITING_MAX = 64
_STOP_WAITS = "the machine is about to stop"
# What ends the guest makes the rest old.
_BY_GRAVITY = (GuestEvent.DIED, GuestEvent.POWERED_OFF, GuestEvent.PANICKED, GuestEvent.RESET)


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """`token` is the caller's, to answer it by."""

    kind: RequestKind
    token: object = None


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """News of the guest, and in words."""

    event: GuestEvent
    reason: str


@dataclass(slots=True)
class RequestQueue:
    """The queue of one machine. `submit` decides, `pop` hands out, `completed` reports the
    outcome."""

    state: QueueState = QueueState.NOT_STARTED
    awaiting_stop: bool = False
    awaiting_reboot: bool = False
    _state_changes: deque[QueuedRequest] = field(default_factory=deque)
    _replacements: deque[QueuedRequest] = field(default_factory=deque)
    _events: dict[GuestEvent, str] = field(default_factory=dict)

    def submit(self, kind: RequestKind, token: object = None) -> Decision:
        """Takes the request, or ignores it; StateError with the reason when it is refused."""
        verdict = self._verdict(kind)
        if isinstance(verdict, str):
            raise StateError(verdict, reason="STATE_CHANGE_REFUSED", request=kind.value)
        if verdict is Decision.QUEUE:
            self._take(QueuedRequest(kind, token))
        return verdict

    def tell(self, event: GuestEvent, reason: str) -> bool:
        """The guest did something by itself; whether that is of interest."""
        ended = self.state in (QueueState.STOPPED, QueueState.FAILED)
        if ended or self.awaiting_stop or self.state is QueueState.NOT_STARTED:
            return False
        self._events.setdefault(event, reason)
        return True

    def pop_event(self) -> QueuedEvent | None:
        """The gravest news; None when there is none, or a start or stop has to end first."""
        if self.state is not QueueState.RUNNING or self.awaiting_stop:
            return None
        for event in _BY_GRAVITY:
            reason = self._events.pop(event, None)
            if reason is not None:
                return QueuedEvent(event, reason)
        return None

    def ended_by_itself(self, *, failed: bool) -> None:
        """The guest has ended without a request: nothing more is taken."""
        self.state = QueueState.FAILED if failed else QueueState.STOPPED
        self.awaiting_reboot = False
        self._events.clear()

    def _verdict(self, kind: RequestKind) -> Decision | str:
        if self.awaiting_stop and kind is RequestKind.STOP:
            return Decision.IGNORE
        if self.awaiting_stop and kind in (RequestKind.RUN, RequestKind.REBOOT):
            return _STOP_WAITS
        if self.awaiting_reboot and kind is RequestKind.REBOOT:
            return Decision.IGNORE
        return TABLE[kind, self.state]

    def _take(self, request: QueuedRequest) -> None:
        if request.kind is RequestKind.REPLACE:
            if len(self._replacements) >= REPLACEMENTS_WAITING_MAX:
                raise LimitError("too many replacements wait on this machine; try again later")
            self._replacements.append(request)
            return
        if request.kind is RequestKind.RUN:
            self.state = QueueState.STARTING
        elif request.kind is RequestKind.STOP:
            self.awaiting_stop = True
        else:
            self.awaiting_reboot = True
        self._state_changes.append(request)

    def pop(self) -> QueuedRequest | None:
        """The next request to do, state changes first; None when nothing waits."""
        if self._state_changes:
            return self._state_changes.popleft()
        return self._replacements.popleft() if self._replacements else None

    def completed(self, kind: RequestKind, *, failed: bool = False) -> None:
        """Reports that a popped request was done. A failed run or reboot fails the machine."""
        if failed and kind in (RequestKind.RUN, RequestKind.REBOOT):
            self.state = QueueState.FAILED
        elif kind is RequestKind.RUN and self.state is QueueState.STARTING:
            self.state = QueueState.RUNNING
        elif kind is RequestKind.STOP:
            self.state = QueueState.STOPPED
            self.awaiting_stop = False
        if kind is RequestKind.REBOOT or self.state in (QueueState.STOPPED, QueueState.FAILED):
            self.awaiting_reboot = False

    def drain(self) -> list[QueuedRequest]:
        """Everything that still waits, to be answered at teardown; the queue is empty
        afterwards."""
        waiting = [*self._state_changes, *self._replacements]
        self._state_changes.clear()
        self._replacements.clear()
        return waiting
