"""One ring at work: its descriptors from the hypervisor, kicks in, interrupts out."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from stairlib.telemetry.logs import get_logger
from vmmd.hw.memory import GuestMemory
from vmmd.hw.virtio.ring import (
    DESCRIPTOR_BYTES,
    ENTRIES_MAX,
    BrokenChainError,
    Chain,
    SplitRing,
    avail_bytes,
    used_bytes,
)
from vmmd.vhost_user.core.inflight import InflightRing
from vmmd.vhost_user.core.wire import ProtocolError, RingAddresses

_log = get_logger(__name__)

# Chains taken in one turn of the loop: other rings and the volume have theirs too.
BURST = 64
_ONE = (1).to_bytes(8, "little")


class RingMemory(GuestMemory, Protocol):
    """Guest memory that also knows the hypervisor's own addresses."""

    def at_user(self, address: int, length: int) -> memoryview | None:
        """A view by the hypervisor's address, or None."""
        ...


class Ring:
    """A ring as the hypervisor sets it up. `take` is called with its new chains."""

    def __init__(
        self,
        number: int,
        memory: RingMemory,
        take: Callable[[int, Sequence[Chain]], None],
    ) -> None:
        self.number = number
        self.entries = 0
        self.base = 0
        self.addresses: RingAddresses | None = None
        self.enabled = False
        self.inflight: InflightRing | None = None
        self._memory = memory
        self._take = take
        self._kick: int | None = None
        self._call: int | None = None
        self._ring: SplitRing | None = None
        self._outstanding = 0
        self._idle: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()

    # --- what the hypervisor says

    def set_entries(self, entries: int) -> None:
        """ProtocolError unless it is a power of two that a ring may have."""
        if not 0 < entries <= ENTRIES_MAX or entries & (entries - 1):
            raise ProtocolError(f"a ring of {entries} entries")
        self.entries = entries

    def set_kick(self, file: int | None) -> None:
        """Where kicks come from; takes the descriptor over."""
        self._drop_kick()
        self._kick = file
        if file is not None:
            os.set_blocking(file, False)

    def set_call(self, file: int | None) -> None:
        """Where interrupts go; takes the descriptor over. May change at any time."""
        if self._call is not None:
            os.close(self._call)
        self._call = file
        if file is not None:
            os.set_blocking(file, False)
            # What was given back while there was nobody to tell.
            self._interrupt()

    # --- life

    @property
    def startable(self) -> bool:
        """Whether all is there, and it does not run yet."""
        return (
            self._ring is None
            and self.enabled
            and self._kick is not None
            and self.addresses is not None
            and self.entries > 0
        )

    @property
    def running(self) -> bool:
        """Whether it was started."""
        return self._ring is not None

    def start(self) -> None:
        """Takes up what was in flight, oldest first, then what is offered; ProtocolError when the
        rings are nowhere."""
        assert self.addresses is not None
        assert self._kick is not None
        ring = SplitRing(
            self.entries,
            self._view(self.addresses.descriptors, self.entries * DESCRIPTOR_BYTES),
            self._view(self.addresses.avail, avail_bytes(self.entries)),
            self._view(self.addresses.used, used_bytes(self.entries)),
            self._memory,
        )
        again: list[int] = []
        if self.inflight is None:
            ring.taken = self.base
        else:
            again = self.inflight.open(ring.used)
            ring.taken = (ring.used + len(again)) & 0xFFFF
        self._ring = ring
        self._idle = None
        self._outstanding = 0
        if again:
            _log.info("requests taken up again", ring=self.number, count=len(again))
            self._begin(again)
        self._loop.add_reader(self._kick, self._kicked)
        self.process()

    def _view(self, address: int, length: int) -> memoryview:
        view = self._memory.at_user(address, length)
        if view is None:
            raise ProtocolError(f"ring {self.number} at {address:#x}, which is no guest memory")
        return view

    async def stop(self, seconds: float) -> int:
        """Takes nothing more, waits for what is in flight, and returns the next index to take."""
        ring = self._ring
        if ring is None:
            return self.base
        if self._kick is not None:
            self._loop.remove_reader(self._kick)
        if self._outstanding:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        if self._outstanding:
            _log.warning("ring stopped with requests", ring=self.number, count=self._outstanding)
        self.base = ring.taken
        self._ring = None
        return self.base

    def close(self) -> None:
        """The connection has ended."""
        self._drop_kick()
        if self._call is not None:
            os.close(self._call)
            self._call = None
        self._ring = self.inflight = None

    def _drop_kick(self) -> None:
        if self._kick is not None:
            self._loop.remove_reader(self._kick)
            os.close(self._kick)
            self._kick = None

    # --- work

    def _kicked(self) -> None:
        assert self._kick is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._kick, 8)
        self.process()

    def process(self) -> None:
        """Takes what the guest offers, a burst at a time."""
        ring = self._ring
        if ring is None or self._idle is not None:
            return
        waiting = ring.waiting
        if waiting > ring.entries:
            self._broken(f"offers {waiting} chains at once")
            return
        heads = [ring.next_head() for _ in range(min(waiting, BURST))]
        if any(head >= ring.entries for head in heads):
            self._broken(f"offers the chains {heads}")
            return
        if waiting > len(heads):
            self._loop.call_soon(self.process)
        if self.inflight is not None:
            for head in heads:
                self.inflight.taken(head)
        if heads:
            self._begin(heads)

    def _begin(self, heads: Sequence[int]) -> None:
        assert self._ring is not None
        chains = []
        broken = []
        for head in heads:
            try:
                chains.append(self._ring.chain(head))
            except BrokenChainError as error:
                _log.warning("chain refused", ring=self.number, head=head, reason=str(error))
                broken.append((head, 0))
        self._outstanding += len(heads)
        if broken:
            self.give_back(broken)
        if chains:
            self._take(self.number, chains)

    def give_back(self, done: Sequence[tuple[int, int]]) -> None:
        """Chains are done: (head, bytes written)."""
        if self._ring is None:
            return
        heads = [head for head, _written in done]
        if self.inflight is not None:
            self.inflight.batch(heads)
        self._ring.give_back(done)
        if self.inflight is not None:
            self.inflight.given_back(heads, self._ring.used)
        self._interrupt()
        self._outstanding -= len(done)
        if self._outstanding == 0 and self._idle is not None:
            self._idle.set()

    def _interrupt(self) -> None:
        if self._call is not None:
            # Full: it was not read since so many interrupts that one more says nothing.
            with contextlib.suppress(BlockingIOError):
                os.write(self._call, _ONE)

    def _broken(self, why: str) -> None:
        """A driver out of its mind: this ring is left alone until it is set up anew."""
        _log.error("ring given up", ring=self.number, reason=f"the driver {why}")
        if self._kick is not None:
            self._loop.remove_reader(self._kick)
        self._ring = None
