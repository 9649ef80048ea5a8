"""The controller's decisions: registers, queues and commands, with no backend, clock or interrupts.

Calls in: `register_read`, `register_write`, `process`, `complete`. Each returns what is to be
done: block requests to submit and MSI-X vectors to fire. Completions come back in batches through
`complete`. Invariants: no guest input raises; every entry taken is completed exactly once unless
its queue is deleted or the controller reset; a reset forgets what is in flight (late completions
carry an older epoch and are ignored, so they never touch memory the guest may have reused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import admin, bits, identify, prp, transfer
from vmmd.hw.nvme.admin import AdminState, CommandError
from vmmd.hw.nvme.commands import Entry, Ongoing, Phase, parse_entries
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
    """What the caller is to do: submit `requests`, fire each of `vectors` once."""

    requests: list[Request] = field(default_factory=list)
    vectors: set[int] = field(default_factory=set)


class NvmeCore:
    """One controller with one namespace."""

    def __init__(
        self,
        info: BackendInfo,
        identity: identify.NvmeIdentity,
        counters: AttachmentCounters,
        vectors: int,
    ) -> None:
        self._info = info
        self._identity = identity
        self._counters = counters
        self._vectors = vectors
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
        self._events: list[int] = []
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
        completions = CompletionQueue(0, cq_size, cq_view, 0, interrupts=True)
        self._admin = AdminState(
            memory=self._memory,
            identity=self._identity,
            info=self._info,
            counters=self._counters,
            vectors=self._vectors,
            submission={0: SubmissionQueue(0, sq_size, sq_view, completions)},
            completion={0: completions},
            sq_entry_shift=self._configuration >> bits.CC_IOSQES_SHIFT & 0xF,
            cq_entry_shift=self._configuration >> bits.CC_IOCQES_SHIFT & 0xF,
        )
        return True

    def _shut_down(self, effects: Effects) -> None:
        """A guest that shuts down may lose power next: what it wrote is made durable first."""
        self._status |= bits.CSTS_SHUTDOWN_OCCURRING
        ongoing = Ongoing(None, 0, self._epoch)
        effects.requests.append(Request(BlockOp.FLUSH, ongoing))

    def _doorbell(self, index: int, value: int) -> None:
        identifier = index // 2
        admin_state = self._admin
        accepted = False
        if admin_state is not None and index % 2 == 0:
            submission = admin_state.submission.get(identifier)
            accepted = submission is not None and submission.tail_doorbell(value)
        elif admin_state is not None:
            completion = admin_state.completion.get(identifier)
            accepted = completion is not None and completion.head_doorbell(value)
        self.refused_doorbells += not accepted

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
        """Power-on state."""
        self.reset_queues()
        self._admin_sizes = 0
        self._admin_bases = dict.fromkeys(self._admin_bases, 0)

    def _clear(self) -> None:
        self._configuration = 0
        self._status = 0
        self._admin = None
        self._events = []
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
        progress = True
        while progress and self._admin is not None and not self._paused:
            progress = False
            queues = list(self._admin.submission.values())
            # Each round begins one queue further, so that limits do not starve the last ones.
            self._turn = (self._turn + 1) % len(queues)
            for queue in queues[self._turn :] + queues[: self._turn]:
                if self._full():
                    return
                if queue.deleted or not queue.pending:
                    continue
                raw = queue.take(BURST_ENTRIES)
                if raw:
                    progress = True
                    self._execute(queue, raw, effects)

    def _full(self) -> bool:
        return (
            self._commands_in_flight >= COMMANDS_IN_FLIGHT_MAX
            or self._bytes_in_flight >= BYTES_IN_FLIGHT_MAX
        )

    def _execute(self, queue: SubmissionQueue, raw: bytes, effects: Effects) -> None:
        for entry in parse_entries(memoryview(raw)):
            if queue.identifier == 0:
                self._execute_admin(queue, entry, effects)
            else:
                self._execute_io(queue, entry, effects)

    def _execute_admin(self, queue: SubmissionQueue, entry: Entry, effects: Effects) -> None:
        assert self._admin is not None
        if entry.opcode == bits.AdminOpcode.ASYNC_EVENT and entry.plain:
            self._hold_event(queue, entry, effects)
            return
        if entry.opcode == bits.AdminOpcode.ABORT and entry.plain:
            self._post(
                queue, entry.identifier, bits.OK, effects, self._abort(queue, entry, effects)
            )
            return
        try:
            result = admin.execute(self._admin, entry)
        except (CommandError, prp.PrpError) as error:
            self._post(queue, entry.identifier, error.status, effects)
        else:
            self._post(queue, entry.identifier, bits.OK, effects, result)

    def _hold_event(self, queue: SubmissionQueue, entry: Entry, effects: Effects) -> None:
        """Asynchronous event requests are kept until there is an event; so far there are none."""
        if len(self._events) >= identify.ASYNC_EVENTS_MAX:
            self._post(queue, entry.identifier, bits.ASYNC_EVENT_LIMIT, effects)
            return
        self._events.append(entry.identifier)
        queue.completions.release()

    def _abort(self, queue: SubmissionQueue, entry: Entry, effects: Effects) -> int:
        """0 when the command was aborted, 1 when not. Only held event requests can be: everything
        else is at the backend already."""
        sq_identifier, identifier = entry.cdw10 & 0xFFFF, entry.cdw10 >> 16
        held = sq_identifier == 0 and identifier in self._events
        if not held or queue.completions.free < 1:
            return 1
        self._events.remove(identifier)
        queue.completions.reserve(1)
        self._post(queue, identifier, bits.ABORT_REQUESTED, effects)
        return 0

    def _execute_io(self, queue: SubmissionQueue, entry: Entry, effects: Effects) -> None:
        assert self._admin is not None
        assert self._namespace is not None
        ongoing = Ongoing(queue, entry.identifier, self._epoch)
        try:
            requests = transfer.begin(
                self._namespace, entry, ongoing, cached=self._admin.write_cache
            )
        except (CommandError, prp.PrpError) as error:
            self._post(queue, entry.identifier, error.status, effects)
            return
        if not requests:
            self._post(queue, entry.identifier, bits.OK, effects)
            return
        ongoing.outstanding = len(requests)
        self._commands_in_flight += 1
        self._bytes_in_flight += ongoing.bytes_held
        effects.requests.extend(requests)

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
        for token, status, data, _owned in completions:
            ongoing = token
            assert isinstance(ongoing, Ongoing)
            if ongoing.epoch == self._epoch:
                self._completed(ongoing, status, data, effects)
        self._process(effects)
        return effects

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
        if queue.deleted:
            queue.completions.release()
        else:
            self._post(queue, ongoing.identifier, ongoing.status, effects)
