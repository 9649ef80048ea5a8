"""The controller's decisions: registers, queues and commands, with no backend, clock or interrupts.

Calls in: `register_read`, `register_write`, `process`, `complete`, `memory_changed`. Each returns
what is to be done: block requests to submit and interrupt vectors to fire. Completions come back in
batches through `complete`. Invariants: no guest input raises; every entry taken is completed
exactly once unless its queue is deleted or the controller reset; a reset forgets what is in flight
(late completions carry an older epoch and are ignored, so they never touch memory the guest may
have reused).

Memory may be mapped anew at any time (`memory_changed`): from then on nothing of the old mapping is
touched. What is in flight finds its memory again by address; as long as that is not mapped its
completion is kept, and the guest's queues are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import admin, bits, identify, prp, transfer
from vmmd.hw.nvme.admin import AdminState
from vmmd.hw.nvme.commands import CommandError, Entry, Ongoing, Phase, parse_entries
from vmmd.hw.nvme.doorbells import DoorbellBuffers
from vmmd.hw.nvme.features import Features
from vmmd.hw.nvme.logs import NO_COMMAND, ControllerLogs, ErrorEntry
from vmmd.hw.nvme.queue import (
    ADMIN_ENTRIES_MAX,
    QUEUE_ENTRIES_MAX,
    QUEUE_ENTRIES_MIN,
    CompletionQueue,
    SubmissionQueue,
)
from vmmd.hw.segments import scatter

# What the controller holds of its guest at the backend. More stays in the guest's queues, where it
# costs nothing. The byte limit may be passed by one burst.
COMMANDS_IN_FLIGHT_MAX = 1024
BYTES_IN_FLIGHT_MAX = 64 << 20
# Entries taken from one queue before the next one has its turn.
BURST_ENTRIES = 16
# Looks at shadow doorbells in one call, while the guest goes on beside it.
LOOKS = 8
# Half-seconds a guest waits for ready: enabling is immediate, a shutdown takes one flush.
_TIMEOUT = 40

CAP = (QUEUE_ENTRIES_MAX - 1) | 1 << 16 | _TIMEOUT << 24 | 1 << 37

_STATUS_OF_WRITE = {
    BlockStatus.READ_ONLY: bits.READ_ONLY_RANGE,
    BlockStatus.OUT_OF_RANGE: bits.LBA_OUT_OF_RANGE,
    BlockStatus.UNSUPPORTED: bits.INVALID_OPCODE,
    BlockStatus.ABORTED: bits.INTERNAL_ERROR,
    BlockStatus.FAILED: bits.WRITE_FAULT,
    BlockStatus.BUSY: bits.WRITE_FAULT,
}
_STATUS_OF_READ = {**_STATUS_OF_WRITE, BlockStatus.FAILED: bits.UNRECOVERED_READ}


@dataclass(slots=True)
class Effects:
    """What the caller is to do: submit `requests`, fire each of `vectors` once, and call `process`
    `again` after it gave others their turn."""

    requests: list[Request] = field(default_factory=list)
    vectors: set[int] = field(default_factory=set)
    again: bool = False


class NvmeCore:
    """One controller with one namespace. With a `barrier` (see `doorbells`) it offers shadow
    doorbells."""

    def __init__(
        self,
        info: BackendInfo,
        identity: identify.NvmeIdentity,
        counters: AttachmentCounters,
        vectors: int,
        *,
        barrier: Callable[[], None] | None = None,
    ) -> None:
        self._info = info
        self._identity = identity
        self._counters = counters
        self._vectors = vectors
        self._barrier = barrier
        self.logs = ControllerLogs()
        self._memory: GuestMemory | None = None
        self._namespace: transfer.Namespace | None = None
        self._paused = False
        self._epoch = 0
        self._admin_sizes = 0
        self._admin_bases = {bits.REG_ASQ: 0, bits.REG_ACQ: 0}
        self.refused_doorbells = 0
        self._configuration = 0
        self._status = 0
        self._admin: AdminState | None = None
        # Counts the times that memory was mapped anew; whether all kept memory is there now.
        self._mapping = 0
        self._mapped = True
        self._held: list[Completion] = []
        self._commands_in_flight = 0
        self._bytes_in_flight = 0
        self._turn = 0

    def connect(self, memory: GuestMemory) -> None:
        """The guest memory its commands point into; before the first register access."""
        self._memory = memory
        self._namespace = transfer.Namespace(memory, self._info)

    # --- registers ---

    def register_read(self, offset: int, size: int) -> int:
        """A load of 4 or 8 bytes (others by their containing dword); reserved areas read 0."""
        low = self._dword(offset & ~3) >> 8 * (offset & 3)
        value = low | self._dword((offset & ~3) + 4) << 32 if size == 8 else low
        return int(value & ((1 << 8 * size) - 1))

    def register_write(self, offset: int, size: int, value: int) -> Effects:
        """A store of 4 or 8 bytes; others are undefined by the specification and ignored here."""
        effects = Effects()
        if size not in (4, 8) or offset % 4:
            return effects
        value &= (1 << 8 * size) - 1
        if offset >= bits.REG_DOORBELLS:
            if size == 4:
                self._doorbell((offset - bits.REG_DOORBELLS) // 4, value & 0xFFFF)
                self._process(effects)
                self._tell_events(effects)
            return effects
        self._write_dword(offset, value & 0xFFFFFFFF, effects)
        if size == 8:
            self._write_dword(offset + 4, value >> 32, effects)
        return effects

    def _dword(self, offset: int) -> int:
        if offset in (bits.REG_CAP, bits.REG_CAP + 4):
            return CAP >> 8 * offset & 0xFFFFFFFF
        if offset == bits.REG_VS:
            return bits.VERSION
        if offset == bits.REG_CC:
            return self._configuration
        if offset == bits.REG_CSTS:
            return self._status
        if offset == bits.REG_AQA:
            return self._admin_sizes
        for base, value in self._admin_bases.items():
            if offset in (base, base + 4):
                return value >> 8 * (offset - base) & 0xFFFFFFFF
        return 0

    def _write_dword(self, offset: int, value: int, effects: Effects) -> None:
        if offset == bits.REG_CC:
            self._configure(value, effects)
            return
        if self._configuration & bits.CC_ENABLE:
            return  # the admin queue's registers are only written while disabled
        if offset == bits.REG_AQA:
            self._admin_sizes = value & 0x0FFF0FFF
            return
        for base in self._admin_bases:
            if offset == base:
                high = self._admin_bases[base] >> 32
                self._admin_bases[base] = high << 32 | value & ~0xFFF
            elif offset == base + 4:
                self._admin_bases[base] = value << 32 | self._admin_bases[base] & 0xFFFFFFFF

    def _configure(self, value: int, effects: Effects) -> None:
        was_enabled = self._configuration & bits.CC_ENABLE
        if was_enabled and not value & bits.CC_ENABLE:
            self.reset_queues()
            return
        self._configuration = value
        if value & bits.CC_ENABLE and not was_enabled:
            self._enable()
        if value & bits.CC_SHN_MASK:
            if not self._status & bits.CSTS_SHUTDOWN_MASK:
                self._shut_down(effects)
        else:
            self._status &= ~bits.CSTS_SHUTDOWN_MASK

    def _enable(self) -> None:
        value = self._configuration
        supported = (
            value >> bits.CC_CSS_SHIFT & 0x7 == 0
            and value >> bits.CC_MPS_SHIFT & 0xF == 0
            and value >> bits.CC_AMS_SHIFT & 0x7 == 0
            and value >> bits.CC_IOSQES_SHIFT & 0xF in (0, bits.SQ_ENTRY_SHIFT)
            and value >> bits.CC_IOCQES_SHIFT & 0xF in (0, bits.CQ_ENTRY_SHIFT)
        )
        if not supported or not self._make_admin_queues():
            self._status |= bits.CSTS_FATAL
            return
        self._status |= bits.CSTS_READY

    def _make_admin_queues(self) -> bool:
        assert self._memory is not None
        sq_size = (self._admin_sizes & 0xFFF) + 1
        cq_size = (self._admin_sizes >> 16 & 0xFFF) + 1
        if min(sq_size, cq_size) < QUEUE_ENTRIES_MIN or max(sq_size, cq_size) > ADMIN_ENTRIES_MAX:
            return False
        sq_view = self._memory.view(self._admin_bases[bits.REG_ASQ], sq_size * bits.SQ_ENTRY_BYTES)
        cq_view = self._memory.view(self._admin_bases[bits.REG_ACQ], cq_size * bits.CQ_ENTRY_BYTES)
        if sq_view is None or cq_view is None:
            return False
        asq, acq = self._admin_bases[bits.REG_ASQ], self._admin_bases[bits.REG_ACQ]
        completions = CompletionQueue(0, cq_size, cq_view, 0, interrupts=True, address=acq)
        submission = SubmissionQueue(0, sq_size, sq_view, completions, address=asq)
        self._admin = AdminState(
            memory=self._memory,
            identity=self._identity,
            info=self._info,
            counters=self._counters,
            logs=self.logs,
            features=Features(self._vectors),
            submission={0: submission},
            completion={0: completions},
            sq_entry_shift=self._configuration >> bits.CC_IOSQES_SHIFT & 0xF,
            cq_entry_shift=self._configuration >> bits.CC_IOCQES_SHIFT & 0xF,
            barrier=self._barrier,
        )
        self._mapped = True
        return True

    def _shut_down(self, effects: Effects) -> None:
        """A guest that shuts down may lose power next: what it wrote is made durable first."""
        self._status |= bits.CSTS_SHUTDOWN_OCCURRING
        ongoing = Ongoing(None, None, self._epoch)
        effects.requests.append(Request(BlockOp.FLUSH, ongoing))

    def _doorbell(self, index: int, value: int) -> None:
        state = self._admin
        if state is None:
            self.refused_doorbells += 1
            return
        identifier = index // 2
        queue: SubmissionQueue | CompletionQueue | None = (
            state.completion.get(identifier) if index % 2 else state.submission.get(identifier)
        )
        if queue is None:
            self._refuse_doorbell(state, identifier, bits.EVENT_INVALID_DOORBELL)
        # With doorbells in memory a register write only says that there is something new there,
        # and may be older than that.
        elif (state.doorbells is None or identifier == 0) and not queue.doorbell(value):
            self._refuse_doorbell(state, identifier, bits.EVENT_INVALID_DOORBELL_VALUE)

    def _refuse_doorbell(self, state: AdminState, identifier: int, why: int) -> None:
        self.refused_doorbells += 1
        self.logs.failed(ErrorEntry(identifier & 0xFFFF, NO_COMMAND, 0, 0, 0))
        state.events.happened(bits.EventType.ERROR, why)

    # --- life ---

    def pause(self) -> None:
        """Takes no further entries; what is in flight goes on to its end."""
        self._paused = True

    def resume(self) -> Effects:
        """Takes entries again, those rung meanwhile at once."""
        self._paused = False
        return self.process()

    def reset_queues(self) -> None:
        """Disabled: no queues, nothing in flight. The admin queue's registers are kept."""
        self._epoch += 1
        self._clear()

    def reset(self) -> None:
        """Power-on state. Its log goes on: it is the same controller, which lost power."""
        if self._status & bits.CSTS_READY:
            shut_down = self._status & bits.CSTS_SHUTDOWN_MASK == bits.CSTS_SHUTDOWN_COMPLETE
            self.logs.unsafe_shutdowns += not shut_down
            self.logs.power_cycles += 1
        self.reset_queues()
        self._admin_sizes = 0
        self._admin_bases = dict.fromkeys(self._admin_bases, 0)

    def _clear(self) -> None:
        self._configuration = 0
        self._status = 0
        self._admin = None
        self._held = []
        self.logs.warning = 0
        self._commands_in_flight = 0
        self._bytes_in_flight = 0
        self._turn = 0

    # --- commands ---

    def process(self) -> Effects:
        """Takes what the guest has submitted, as far as completion slots and limits allow."""
        effects = Effects()
        self._process(effects)
        return effects

    def _process(self, effects: Effects) -> None:
        state = self._admin
        if state is None or not self._mapped or self._paused:
            return
        for _look in range(LOOKS):
            if state.doorbells is not None:
                self._look_in_memory(state, state.doorbells)
            self._take_entries(state, effects)
            # A command may have brought them.
            if state.doorbells is None or not self._ask_to_ring(state, state.doorbells):
                return
        effects.again = True

    def _take_entries(self, state: AdminState, effects: Effects) -> None:
        """Until nothing is left, or nothing more can be taken."""
        progress = True
        while progress:
            progress = False
            queues = list(state.submission.values())
            # Each round begins one queue further, so that limits do not starve the last ones.
            self._turn = (self._turn + 1) % len(queues)
            for queue in queues[self._turn :] + queues[: self._turn]:
                if self._full():
                    return
                if queue.deleted or not queue.pending:
                    continue
                if state.doorbells is not None and queue.completions.free < queue.pending:
                    self._look_at_head(state.doorbells, queue.completions)
                raw = queue.take(BURST_ENTRIES)
                if raw:
                    progress = True
                    self._execute(state, queue, raw, effects)

    def _look_in_memory(self, state: AdminState, doorbells: DoorbellBuffers) -> None:
        """Takes the tails that the guest has left there."""
        for number, queue in state.submission.items():
            if number and queue.told_in_memory(doorbells) and not queue.catch_up(doorbells):
                self._refuse_doorbell(state, number, bits.EVENT_INVALID_DOORBELL_VALUE)

    def _look_at_head(self, doorbells: DoorbellBuffers, completions: CompletionQueue) -> bool:
        return completions.identifier != 0 and completions.catch_up(doorbells)

    def _ask_to_ring(self, state: AdminState, doorbells: DoorbellBuffers) -> bool:
        """Leaves in memory past which values the guest has to ring; whether it went on meanwhile.

        The tail of each submission queue always; the head of a completion queue only where a full
        one holds commands up. The values are looked at once more behind the barrier: what the guest
        left before it saw ours is found here, and of what it leaves later it rings.
        """
        queues = [queue for number, queue in state.submission.items() if number]
        corked = set()
        for queue in queues:
            doorbells.ring_past_tail(queue.identifier, queue.tail)
            if queue.pending and not queue.completions.free:
                corked.add(queue.completions)
        for number, completions in state.completion.items():
            if number:
                stop = completions.head if completions in corked else completions.tail
                doorbells.ring_past_head(number, stop)
        doorbells.barrier()
        if self._full():
            return False  # looked at again when something is done
        moved = [queue for queue in corked if self._look_at_head(doorbells, queue)]
        return bool(moved) or any(queue.told_in_memory(doorbells) for queue in queues)

    def _full(self) -> bool:
        return (
            self._commands_in_flight >= COMMANDS_IN_FLIGHT_MAX
            or self._bytes_in_flight >= BYTES_IN_FLIGHT_MAX
        )

    def _execute(
        self, state: AdminState, queue: SubmissionQueue, raw: bytes, effects: Effects
    ) -> None:
        for entry in parse_entries(memoryview(raw)):
            if queue.identifier == 0:
                self._execute_admin(state, queue, entry, effects)
            else:
                self._execute_io(state, queue, entry, effects)

    def _execute_admin(
        self, state: AdminState, queue: SubmissionQueue, entry: Entry, effects: Effects
    ) -> None:
        if entry.opcode == bits.AdminOpcode.ASYNC_EVENT and entry.plain:
            self._hold_event(state, queue, entry, effects)
            return
        if entry.opcode == bits.AdminOpcode.ABORT and entry.plain:
            aborted = self._abort(state, queue, entry, effects)
            self._post(queue, entry.identifier, bits.OK, effects, aborted)
            return
        try:
            result = admin.execute(state, entry)
        except (CommandError, prp.PrpError) as error:
            self._fail(queue, entry, error.status, effects)
        else:
            self._post(queue, entry.identifier, bits.OK, effects, result)
            self._tell_events(effects)

    def _hold_event(
        self, state: AdminState, queue: SubmissionQueue, entry: Entry, effects: Effects
    ) -> None:
        """Asynchronous event requests are kept until there is an event."""
        if state.events.full:
            self._fail(queue, entry, bits.ASYNC_EVENT_LIMIT, effects)
            return
        state.events.held.append(entry.identifier)
        queue.completions.release()
        self._tell_events(effects)

    def _tell_events(self, effects: Effects) -> None:
        """Completes a held request for each event, as far as there are completion slots."""
        state = self._admin
        if state is None or not self._mapped:
            return
        queue = state.submission[0]
        while state.events.ready and queue.completions.free:
            identifier, result = state.events.take()
            queue.completions.reserve(1)
            self._post(queue, identifier, bits.OK, effects, result)

    def _abort(
        self, state: AdminState, queue: SubmissionQueue, entry: Entry, effects: Effects
    ) -> int:
        """0 when the command was aborted, 1 when not. Only held event requests can be: everything
        else is at the backend already."""
        sq_identifier, identifier = entry.cdw10 & 0xFFFF, entry.cdw10 >> 16
        held = sq_identifier == 0 and identifier in state.events.held
        if not held or queue.completions.free < 1:
            return 1
        state.events.held.remove(identifier)
        queue.completions.reserve(1)
        self._post(queue, identifier, bits.ABORT_REQUESTED, effects)
        return 0

    def _execute_io(
        self, state: AdminState, queue: SubmissionQueue, entry: Entry, effects: Effects
    ) -> None:
        assert self._namespace is not None
        ongoing = Ongoing(queue, entry, self._epoch, self._mapping)
        try:
            requests = transfer.begin(
                self._namespace, entry, ongoing, cached=state.features.write_cache
            )
        except (CommandError, prp.PrpError) as error:
            self._fail(queue, entry, error.status, effects)
            return
        if not requests:
            self._post(queue, entry.identifier, bits.OK, effects)
            return
        ongoing.outstanding = len(requests)
        self._commands_in_flight += 1
        self._bytes_in_flight += ongoing.bytes_held
        effects.requests.extend(requests)

    def _fail(self, queue: SubmissionQueue, entry: Entry, status: int, effects: Effects) -> None:
        """Completes a command that did not succeed."""
        lba = entry.start_lba if queue.identifier else 0
        self.logs.failed(
            ErrorEntry(queue.identifier, entry.identifier, status, lba, entry.namespace)
        )
        self._post(queue, entry.identifier, status, effects)

    def _post(
        self,
        queue: SubmissionQueue,
        identifier: int,
        status: int,
        effects: Effects,
        result: int = 0,
    ) -> None:
        completions = queue.completions
        completions.post(queue, identifier, status, result)
        if completions.interrupts:
            effects.vectors.add(completions.vector)

    # --- completions ---

    def complete(self, completions: Sequence[Completion]) -> Effects:
        """Takes the backend's answers, completes what is done and goes on with what was waiting."""
        effects = Effects()
        for completion in completions:
            token, status, data, _owned = completion
            ongoing = token
            assert isinstance(ongoing, Ongoing)
            if ongoing.epoch != self._epoch:
                continue
            if ongoing.memory != self._mapping and not self._found_again(ongoing):
                # Its data is only lent.
                kept = None if data is None else bytes(data)
                self._held.append(completion._replace(data=kept))
                continue
            self._completed(ongoing, status, data, effects)
        self._process(effects)
        return effects

    def _found_again(self, ongoing: Ongoing) -> bool:
        """Whether all memory that a command needs to go on is there, as mapped now."""
        if ongoing.queue is None:
            return True
        if not self._mapped:
            return False
        if ongoing.segments:
            assert self._memory is not None
            assert ongoing.entry is not None
            entry = ongoing.entry
            try:
                ongoing.segments = prp.walk(
                    self._memory, entry.prp1, entry.prp2, ongoing.bytes_held
                )
            except prp.PrpError:
                return False
        ongoing.memory = self._mapping
        return True

    def memory_changed(self) -> Effects:
        """The guest's memory was mapped anew, or some of it no longer is."""
        self._mapping += 1
        self._mapped = self._admin is None or self._admin.look_again()
        held, self._held = self._held, []
        return self.complete(held)

    def _completed(
        self,
        ongoing: Ongoing,
        status: BlockStatus,
        data: bytes | bytearray | memoryview | None,
        effects: Effects,
    ) -> None:
        ongoing.outstanding -= 1
        queue = ongoing.queue
        if queue is None:
            self._status &= ~bits.CSTS_SHUTDOWN_MASK
            self._status |= bits.CSTS_SHUTDOWN_COMPLETE
            return
        if status is not BlockStatus.OK:
            table = _STATUS_OF_READ if ongoing.segments else _STATUS_OF_WRITE
            ongoing.status = ongoing.status or table[status]
            ongoing.rest = None
        elif ongoing.segments and not queue.deleted:
            if data is None:
                ongoing.status = bits.INTERNAL_ERROR
            else:
                scatter(ongoing.segments, data)
        if queue.deleted:
            ongoing.rest = None
        further = self._further(ongoing)
        if further:
            ongoing.outstanding += len(further)
            effects.requests.extend(further)
        if ongoing.outstanding == 0:
            self._finish(ongoing, queue, effects)

    def _further(self, ongoing: Ongoing) -> list[Request]:
        if ongoing.rest is not None:
            pieces = transfer.next_pieces(ongoing, 1)
            if pieces:
                return pieces
        flush_due = ongoing.flush_after and ongoing.phase is Phase.TRANSFER
        if ongoing.outstanding == 0 and flush_due and ongoing.status == bits.OK:
            ongoing.phase = Phase.FLUSHING
            return [Request(BlockOp.FLUSH, ongoing)]
        return []

    def _finish(self, ongoing: Ongoing, queue: SubmissionQueue, effects: Effects) -> None:
        self._commands_in_flight -= 1
        self._bytes_in_flight -= ongoing.bytes_held
        assert ongoing.entry is not None
        if queue.deleted:
            queue.completions.release()
        elif ongoing.status == bits.OK:
            self._post(queue, ongoing.entry.identifier, bits.OK, effects)
        else:
            self._fail(queue, ongoing.entry, ongoing.status, effects)
