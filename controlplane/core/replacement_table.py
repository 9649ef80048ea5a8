"""The moves of a replacement, and what is to be done in each state. `replacement.py` walks by it.

Waiting for somebody is no state (ADR 0023).

    VALIDATE   --Validated-->      PREFLIGHT
    VALIDATE   --GaveUp-->         FAILED
    PREFLIGHT  --Preflighted-->    RECORD
    PREFLIGHT  --GaveUp-->         FAILED
    RECORD     --Recorded-->       APPLY
    RECORD     --GaveUp-->         FAILED
    APPLY      --Applied-->        REPAIR
    APPLY      --Blocked-->        APPLY
    APPLY      --StepFailed-->     APPLY
    APPLY      --RetryDue-->       APPLY
    APPLY      --Resumed-->        APPLY
    APPLY      --LimitChanged-->   APPLY
    APPLY      --PauseAsked-->     PAUSED
    APPLY      --CancelAsked-->    CANCELLING
    APPLY      --GaveUp-->         FAILED
    REPAIR     --Observed-->       REPAIR
    REPAIR     --Stalled-->        REPAIR
    REPAIR     --Repaired-->       VERIFY
    REPAIR     --Unapplied-->      APPLY
    REPAIR     --Blocked-->        REPAIR
    REPAIR     --StepFailed-->     REPAIR
    REPAIR     --RetryDue-->       REPAIR
    REPAIR     --Resumed-->        REPAIR
    REPAIR     --LimitChanged-->   REPAIR
    REPAIR     --PauseAsked-->     PAUSED
    REPAIR     --CancelAsked-->    CANCELLING
    REPAIR     --GaveUp-->         FAILED
    VERIFY     --Verified-->       RETIRE
    VERIFY     --MemberLost-->     REPAIR
    VERIFY     --Differed-->       REPAIR
    VERIFY     --Blocked-->        VERIFY
    VERIFY     --StepFailed-->     VERIFY
    VERIFY     --RetryDue-->       VERIFY
    VERIFY     --Resumed-->        VERIFY
    VERIFY     --LimitChanged-->   VERIFY
    VERIFY     --PauseAsked-->     PAUSED
    VERIFY     --CancelAsked-->    CANCELLING
    VERIFY     --GaveUp-->         FAILED
    RETIRE     --Retired-->        DONE
    RETIRE     --Blocked-->        RETIRE
    RETIRE     --StepFailed-->     RETIRE
    RETIRE     --RetryDue-->       RETIRE
    RETIRE     --Resumed-->        RETIRE
    RETIRE     --LimitChanged-->   RETIRE
    RETIRE     --PauseAsked-->     PAUSED
    RETIRE     --CancelAsked-->    CANCELLING
    RETIRE     --GaveUp-->         FAILED
    PAUSED     --Observed-->       PAUSED
    PAUSED     --ResumeAsked-->    (the state it was paused in)
    PAUSED     --Blocked-->        PAUSED
    PAUSED     --StepFailed-->     PAUSED
    PAUSED     --RetryDue-->       PAUSED
    PAUSED     --Resumed-->        PAUSED
    PAUSED     --LimitChanged-->   PAUSED
    PAUSED     --CancelAsked-->    CANCELLING
    PAUSED     --GaveUp-->         FAILED
    CANCELLING --CanUndo-->        UNDO
    CANCELLING --Kept-->           REPAIR
    CANCELLING --CannotUndo-->     FAILED
    CANCELLING --Blocked-->        CANCELLING
    CANCELLING --StepFailed-->     CANCELLING
    CANCELLING --RetryDue-->       CANCELLING
    CANCELLING --Resumed-->        CANCELLING
    CANCELLING --LimitChanged-->   CANCELLING
    CANCELLING --GaveUp-->         FAILED
    UNDO       --Undone-->         CANCELLED
    UNDO       --Kept-->           REPAIR
    UNDO       --CannotUndo-->     FAILED
    UNDO       --Blocked-->        UNDO
    UNDO       --StepFailed-->     UNDO
    UNDO       --RetryDue-->       UNDO
    UNDO       --Resumed-->        UNDO
    UNDO       --LimitChanged-->   UNDO
    UNDO       --GaveUp-->         FAILED
    FAILED     --Retried-->        (the state it failed in)
    FAILED     --CancelAsked-->    CANCELLING or UNDO
"""

from __future__ import annotations

from controlplane.core.replacement_events import (
    Applied,
    Blocked,
    CancelAsked,
    CannotUndo,
    CanUndo,
    Differed,
    Effect,
    Event,
    GaveUp,
    Kept,
    LimitChanged,
    MemberLost,
    Observed,
    PauseAsked,
    Preflighted,
    Recorded,
    Repaired,
    ResumeAsked,
    Resumed,
    Retired,
    Retried,
    RetryDue,
    Stalled,
    State,
    StepFailed,
    Unapplied,
    Undone,
    Validated,
    Verified,
)

STARTED = (State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE)
# States that work by themselves once they are stored.
_WORKING = (*STARTED, State.PAUSED, State.CANCELLING, State.UNDO)
_ACTIVE = (State.VALIDATE, State.PREFLIGHT, State.RECORD, *_WORKING)

# (state, event) -> the states it may lead to: one, but where a record goes back to where it was.
TRANSITIONS: dict[State, dict[type[Event], tuple[State, ...]]] = {
    State.VALIDATE: {Validated: (State.PREFLIGHT,)},
    State.PREFLIGHT: {Preflighted: (State.RECORD,)},
    State.RECORD: {Recorded: (State.APPLY,)},
    State.APPLY: {Applied: (State.REPAIR,)},
    State.REPAIR: {
        Observed: (State.REPAIR,),
        Stalled: (State.REPAIR,),
        Repaired: (State.VERIFY,),
        Unapplied: (State.APPLY,),
    },
    State.VERIFY: {
        Verified: (State.RETIRE,),
        MemberLost: (State.REPAIR,),
        Differed: (State.REPAIR,),
    },
    State.RETIRE: {Retired: (State.DONE,)},
    State.PAUSED: {Observed: (State.PAUSED,), ResumeAsked: STARTED},
    State.CANCELLING: {
        CanUndo: (State.UNDO,),
        Kept: (State.REPAIR,),
        CannotUndo: (State.FAILED,),
    },
    State.UNDO: {
        Undone: (State.CANCELLED,),
        Kept: (State.REPAIR,),
        CannotUndo: (State.FAILED,),
    },
    State.DONE: {},
    State.CANCELLED: {},
    State.FAILED: {Retried: _ACTIVE, CancelAsked: (State.CANCELLING, State.UNDO)},
}
for _state in _WORKING:
    for _event in (Blocked, StepFailed, RetryDue, Resumed, LimitChanged):
        TRANSITIONS[_state][_event] = (_state,)
for _state in STARTED:
    TRANSITIONS[_state][PauseAsked] = (State.PAUSED,)
for _state in (*STARTED, State.PAUSED):
    TRANSITIONS[_state][CancelAsked] = (State.CANCELLING,)
for _state in _ACTIVE:
    TRANSITIONS[_state][GaveUp] = (State.FAILED,)

EVENTS: tuple[type[Event], ...] = (
    Validated, Preflighted, Recorded, Applied, Observed, Stalled, Repaired, Unapplied, Verified,
    MemberLost, Differed, Retired, Blocked, StepFailed, GaveUp, RetryDue, Resumed, Retried,
    LimitChanged, PauseAsked, ResumeAsked, CancelAsked, CanUndo, Undone, Kept, CannotUndo,
)  # fmt: skip

# What a state is for: the effect sent when it is entered, retried or resumed.
WORK: dict[State, tuple[Effect, ...]] = {
    State.VALIDATE: (Effect.CHECK,),
    State.PREFLIGHT: (Effect.ASK_TARGET,),
    State.RECORD: (Effect.RECORD,),
    State.APPLY: (Effect.SEND_REPLACEMENT,),
    State.REPAIR: (Effect.WATCH_REPAIR,),
    State.VERIFY: (Effect.VERIFY_MEMBERS,),
    State.RETIRE: (Effect.RETIRE_MEMBER,),
    State.PAUSED: (Effect.HOLD_REPAIR,),
    State.CANCELLING: (Effect.ASK_WHETHER_UNDOABLE,),
    State.UNDO: (Effect.TAKE_BACK,),
    State.DONE: (Effect.KEEP_TRACE,),
    State.FAILED: (Effect.KEEP_TRACE,),
    State.CANCELLED: (Effect.KEEP_TRACE,),
}
# Events after which something else is done first than what the state is for.
INSTEAD: dict[type[Event], tuple[Effect, ...]] = {
    Stalled: (Effect.RESTART_REPAIR,),
    Differed: (Effect.MEND_MEMBER,),
}


def drawing() -> str:
    """The table as the lines of this module's docstring."""
    backward = {Retried: "failed in", ResumeAsked: "was paused in"}
    lines = []
    for state, moves in TRANSITIONS.items():
        for event, nexts in moves.items():
            reached = " or ".join(nexts)
            if event in backward:
                reached = f"(the state it {backward[event]})"
            lines.append(f"    {state:<10} {f'--{event.__name__}-->':<19} {reached}")
    return "\n".join(lines)
