"""State machines as data: which event leads from which state to which, and what that means.

A table is the whole truth about its machine: the code moves by it or not at all, the tests go
through it, and the drawings in the documents are made from it (`scripts/draw_states.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Generic, TypeVar

from stairlib.model.errors import StateError

State = TypeVar("State", bound=enum.Enum)
Event = TypeVar("Event", bound=enum.Enum)


class IllegalMoveError(StateError):
    """A move that no table allows; carries the state and the event by name."""

    reason = "ILLEGAL_MOVE"


class StateTable(Generic[State, Event]):
    """The moves of one kind of machine: (state, event, state after, when that is).

    `subject` begins the sentence of an illegal move: "an upstairs". `ends` are the states that
    nothing leads out of.
    """

    def __init__(
        self,
        subject: str,
        first: State,
        moves: Iterable[tuple[State, Event, State, str]],
        *,
        ends: Iterable[State] = (),
    ) -> None:
        self.subject = subject
        self.first = first
        self.moves = tuple(moves)
        self.ends = frozenset(ends)
        self._after = {(state, event): after for state, event, after, _ in self.moves}
        assert len(self._after) == len(self.moves), f"two moves of {subject} for one event"

    def allows(self, state: State, event: Event) -> bool:
        """Whether the event is one that the state takes."""
        return (state, event) in self._after

    def after(self, state: State, event: Event) -> State:
        """The state that the event leads to; IllegalMoveError when there is none."""
        found = self._after.get((state, event))
        if found is None:
            raise IllegalMoveError(
                f"{self.subject} in {state.name} does not take {event.name}",
                state=state.name,
                event=event.name,
            )
        return found
