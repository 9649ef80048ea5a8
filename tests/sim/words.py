"""What users say to a running replacement: pause, resume, cancel, at any moment; and copies that
stand still, so that somebody has to begin them anew.

Drawn from chances of their own, so that the seeds of before stay what they were.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from controlplane.core import replacement as core
from controlplane.core.replacement import Event, State
from vmmd.upstairs.core.slot_states import SlotState

if TYPE_CHECKING:
    from tests.sim.world import World

# In so many seeds somebody talks, and at so many of the turns while something runs.
TALKATIVE = 0.4
AT_A_TURN = 0.06
WORDS: dict[type[Event], float] = {
    core.PauseAsked: 3.0,
    core.ResumeAsked: 2.0,
    core.CancelAsked: 1.0,
}
# A paused one is resumed after so long, should nobody say anything.
PAUSED_SECONDS = (0.5, 5.0, 40.0)


class Words:
    """The users of one world."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(f"words {seed}")
        self._talks = self._chance.random() < TALKATIVE
        self._stalls = self._chance.random() < TALKATIVE

    def number(self) -> float:
        """A chance for a wait."""
        return self._chance.random()

    def turn(self) -> None:
        """Somebody may say something now."""
        running = self._world.control.running
        if running is None or not self._world.control.up:
            return
        luck = self._chance.random()
        if self._stalls and luck < AT_A_TURN:
            self._stall(running.new_target)
        elif self._talks and luck > 1 - AT_A_TURN:
            (kind,) = self._chance.choices(list(WORDS), list(WORDS.values()))
            self.say(kind)

    def say(self, kind: type[Event]) -> None:
        """One word. A pause is ended by and by."""
        if self._world.control.word(kind):
            self._world.reached[f"word {kind.__name__}"] += 1
            if kind is core.PauseAsked:
                seconds = self._chance.choice(PAUSED_SECONDS)
                self._world.schedule.later(seconds, self.resume)

    def resume(self) -> None:
        """Whatever is paused goes on, once the control plane can be told."""
        running = self._world.control.running
        if running is None or running.state is not State.PAUSED:
            return
        if not self._world.control.word(core.ResumeAsked):
            self._world.schedule.later(1.0, self.resume)

    def _stall(self, address: str) -> None:
        """Copies into the new member stand still for good; another session's do not."""
        filled = any(
            slot.address == address and slot.state is SlotState.LIVE_REPAIR
            for slot in self._world.machine.status.slots
        )
        service = self._world.hosts[address].service
        if service is None or not filled or not self._world.machine.active:
            return
        for conversation in service.conversations:
            conversation.stall()
        self._world.reached["copies stand still"] += 1
