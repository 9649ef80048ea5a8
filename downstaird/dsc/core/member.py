"""The life of one downstairs process as a table of events and effects.

    stopped, exit, failed   there is no process
    starting                there is one, it does not answer yet
    running                 it answers
    stopping                it was told to end and has not yet

How a process ended decides what comes next. Ended by a signal: `exit`, and it is started again if
restarts are on. Ended by itself, with whatever status: `failed`, and restarts are turned off,
because it would do the same again. Ended as asked by a graceful stop: `stopped`. A stop does not
turn restarts off: with restarts on the process comes back at once, as a torment wants it.

Pure: `step` gives the next state and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

# A process that is killed before it ever answered is started again after a pause, lest a machine
# without memory be kept busy by its own remedies.
RETRY_SECONDS = 2.0


class State(Enum):
    """Where a member is."""

    STOPPED = "stopped"
    STOPPING = "stopping"
    STARTING = "starting"
    RUNNING = "running"
    EXIT = "exit"
    FAILED = "failed"


DOWN = frozenset({State.STOPPED, State.EXIT, State.FAILED})
UP = frozenset({State.STARTING, State.RUNNING})


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `start_pending`: start once more as soon as the present process has ended.

    `graceful` says how the stop under way was asked for; `closing` that nothing starts any more.
    """

    state: State = State.STOPPED
    restart: bool = False
    start_pending: bool = False
    graceful: bool = False
    closing: bool = False


@dataclass(frozen=True, slots=True)
class StartAsked:
    """Somebody wants it running."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants it gone: by SIGTERM when `graceful`, else by SIGKILL."""

    graceful: bool


@dataclass(frozen=True, slots=True)
class RestartSet:
    """Restarts are turned on or off."""

    enabled: bool


@dataclass(frozen=True, slots=True)
class CloseAsked:
    """dsc itself ends: stop gracefully and never start again."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process answers that it serves."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone: `status` as from wait, negative for the signal that ended it."""

    status: int


@dataclass(frozen=True, slots=True)
class NotSpawned:
    """No process could be made."""


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause that RetryLater asked for is over."""


Event = StartAsked | StopAsked | RestartSet | CloseAsked | Ready | Ended | NotSpawned | RetryDue


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM, and SIGKILL when that is not heeded in time."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Report RetryDue after RETRY_SECONDS."""


Effect = Spawn | Kill | Terminate | RetryLater


def step(member: Member, event: Event) -> tuple[Member, tuple[Effect, ...]]:
    """What a member becomes by an event, and what to do. Any event is legal in any state."""
    match event:
        case StartAsked():
            return _start(member)
        case StopAsked(graceful=graceful):
            return _stop(member, graceful=graceful)
        case RestartSet(enabled=enabled):
            changed = replace(member, restart=enabled and not member.closing)
            return _start(changed) if changed.restart and member.state in DOWN else (changed, ())
        case CloseAsked():
            closing = replace(member, restart=False, closing=True)
            return _stop(closing, graceful=True)
        case Ready():
            running = replace(member, state=State.RUNNING)
            return (running, ()) if member.state is State.STARTING else (member, ())
        case Ended(status=status):
            return _ended(member, status)
        case NotSpawned():
            failed = replace(member, state=State.FAILED, restart=False, start_pending=False)
            return failed, ()
        case RetryDue():
            wanted = member.restart and member.state is State.EXIT
            return _start(member) if wanted else (member, ())


def _start(member: Member) -> tuple[Member, tuple[Effect, ...]]:
    if member.closing or member.state in UP:
        return member, ()
    if member.state is State.STOPPING:
        return replace(member, start_pending=True), ()
    return replace(member, state=State.STARTING, start_pending=False), (Spawn(),)


def _stop(member: Member, *, graceful: bool) -> tuple[Member, tuple[Effect, ...]]:
    calm = replace(member, start_pending=False)
    if member.state in UP:
        stopping = replace(calm, state=State.STOPPING, graceful=graceful)
        return stopping, (Terminate() if graceful else Kill(),)
    if member.state is State.STOPPING and member.graceful and not graceful:
        return replace(calm, graceful=False), (Kill(),)
    return calm, ()


def _ended(member: Member, status: int) -> tuple[Member, tuple[Effect, ...]]:
    asked = member.state is State.STOPPING
    never_answered = member.state is State.STARTING
    if status < 0 or (asked and not member.graceful):
        down = replace(member, state=State.EXIT)
    elif asked and status == 0:
        down = replace(member, state=State.STOPPED)
    else:
        down = replace(member, state=State.FAILED, restart=False)
    if down.start_pending:
        return _start(down)
    if down.restart:
        return (down, (RetryLater(),)) if never_answered else _start(down)
    return down, ()
