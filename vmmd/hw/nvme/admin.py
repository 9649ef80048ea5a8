"""The admin commands: each a function from an entry to a result, raising CommandError.

They change the queues and features held in `AdminState`; nothing here takes a queue slot or writes
a completion, which the core does for all commands alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import bits, identify, logs, prp
from vmmd.hw.nvme.commands import CommandError, Entry
from vmmd.hw.nvme.doorbells import DoorbellBuffers
from vmmd.hw.nvme.events import AsyncEvents
from vmmd.hw.nvme.features import IO_QUEUES_MAX, Features
from vmmd.hw.nvme.queue import (
    QUEUE_ENTRIES_MAX,
    QUEUE_ENTRIES_MIN,
    CompletionQueue,
    SubmissionQueue,
)
from vmmd.hw.segments import scatter

_CONTIGUOUS = 1 << 0
_INTERRUPTS = 1 << 1


@dataclass(slots=True)
class AdminState:
    """What admin commands read and change. Lives from enable to reset."""

    memory: GuestMemory
    identity: identify.NvmeIdentity
    info: BackendInfo
    counters: AttachmentCounters
    logs: logs.ControllerLogs
    features: Features
    submission: dict[int, SubmissionQueue]
    completion: dict[int, CompletionQueue]
    sq_entry_shift: int
    cq_entry_shift: int
    # With one, shadow doorbells are offered.
    barrier: Callable[[], None] | None
    events: AsyncEvents = field(default_factory=AsyncEvents)
    # Addresses of the shadow page and the page of event indexes, once there are any.
    doorbell_pages: tuple[int, int] | None = None
    doorbells: DoorbellBuffers | None = None

    def look_again(self) -> bool:
        """Finds all memory that is kept anew, after it was mapped anew; whether all is there."""
        found = True
        for submission in self.submission.values():
            found = submission.look_again(self.memory) and found
        for completion in self.completion.values():
            found = completion.look_again(self.memory) and found
        if self.doorbell_pages is not None:
            self.doorbells = self._doorbells(self.doorbell_pages)
            found = self.doorbells is not None and found
        return found

    def use_doorbells(self, pages: tuple[int, int]) -> bool:
        """Shadow doorbells for all I/O queues from now on; whether the pages are memory."""
        doorbells = self._doorbells(pages)
        if doorbells is None:
            return False
        self.doorbells, self.doorbell_pages = doorbells, pages
        for identifier, queue in self.submission.items():
            if identifier:
                doorbells.begin_tail(identifier, queue.tail)
        for identifier, completions in self.completion.items():
            if identifier:
                doorbells.begin_head(identifier, completions.head)
        return True

    def _doorbells(self, pages: tuple[int, int]) -> DoorbellBuffers | None:
        shadow, events = (self.memory.view(page, bits.PAGE_BYTES) for page in pages)
        if shadow is None or events is None or self.barrier is None:
            return None
        return DoorbellBuffers(shadow, events, self.barrier)


def execute(state: AdminState, entry: Entry) -> int:
    """Carries out one command and returns its result dword; CommandError or PrpError otherwise."""
    handler = _HANDLERS.get(entry.opcode)
    if handler is None:
        raise CommandError(bits.INVALID_OPCODE)
    if not entry.plain:
        raise CommandError(bits.INVALID_FIELD)
    return handler(state, entry)


def _queue_view(state: AdminState, entry: Entry, entry_bytes: int) -> tuple[memoryview, int]:
    """The memory and size in entries of a queue to be made; checks what both kinds share."""
    if not entry.cdw11 & _CONTIGUOUS:
        raise CommandError(bits.INVALID_FIELD)
    size = (entry.cdw10 >> 16) + 1
    if not QUEUE_ENTRIES_MIN <= size <= QUEUE_ENTRIES_MAX:
        raise CommandError(bits.QUEUE_SIZE_INVALID)
    if entry.prp1 & (bits.PAGE_BYTES - 1):
        raise CommandError(bits.PRP_OFFSET_INVALID)
    view = state.memory.view(entry.prp1, size * entry_bytes)
    if view is None:
        raise CommandError(bits.INVALID_FIELD)
    return view, size


def _create_completion_queue(state: AdminState, entry: Entry) -> int:
    identifier = entry.cdw10 & 0xFFFF
    if not 1 <= identifier <= IO_QUEUES_MAX or identifier in state.completion:
        raise CommandError(bits.QUEUE_ID_INVALID)
    if state.cq_entry_shift != bits.CQ_ENTRY_SHIFT:
        raise CommandError(bits.QUEUE_SIZE_INVALID)
    view, size = _queue_view(state, entry, bits.CQ_ENTRY_BYTES)
    vector = entry.cdw11 >> 16
    interrupts = bool(entry.cdw11 & _INTERRUPTS)
    if vector >= state.features.vectors:
        raise CommandError(bits.INTERRUPT_VECTOR_INVALID)
    state.completion[identifier] = CompletionQueue(
        identifier, size, view, vector, interrupts, address=entry.prp1
    )
    if state.doorbells is not None:
        state.doorbells.begin_head(identifier, 0)
    return 0


def _create_submission_queue(state: AdminState, entry: Entry) -> int:
    identifier = entry.cdw10 & 0xFFFF
    if not 1 <= identifier <= IO_QUEUES_MAX or identifier in state.submission:
        raise CommandError(bits.QUEUE_ID_INVALID)
    target = entry.cdw11 >> 16
    completions = state.completion.get(target)
    if target == 0 or completions is None:
        raise CommandError(bits.COMPLETION_QUEUE_INVALID)
    if state.sq_entry_shift != bits.SQ_ENTRY_SHIFT:
        raise CommandError(bits.QUEUE_SIZE_INVALID)
    view, size = _queue_view(state, entry, bits.SQ_ENTRY_BYTES)
    state.submission[identifier] = SubmissionQueue(
        identifier, size, view, completions, address=entry.prp1
    )
    if state.doorbells is not None:
        state.doorbells.begin_tail(identifier, 0)
    return 0


def _delete_completion_queue(state: AdminState, entry: Entry) -> int:
    identifier = entry.cdw10 & 0xFFFF
    queue = state.completion.get(identifier)
    if identifier == 0 or queue is None:
        raise CommandError(bits.QUEUE_ID_INVALID)
    if queue.submission_queues:
        raise CommandError(bits.QUEUE_DELETION_INVALID)
    del state.completion[identifier]
    return 0


def _delete_submission_queue(state: AdminState, entry: Entry) -> int:
    identifier = entry.cdw10 & 0xFFFF
    if identifier == 0 or identifier not in state.submission:
        raise CommandError(bits.QUEUE_ID_INVALID)
    state.submission.pop(identifier).delete()
    return 0


def _identify(state: AdminState, entry: Entry) -> int:
    page = _IDENTIFIED.get(entry.cdw10 & 0xFF)
    if page is None:
        raise CommandError(bits.INVALID_FIELD)
    data = page(state, entry)
    scatter(prp.walk(state.memory, entry.prp1, entry.prp2, len(data)), data)
    return 0


def _identify_controller(state: AdminState, _entry: Entry) -> bytes:
    return identify.controller_page(
        state.identity, state.info, QUEUE_ENTRIES_MAX, doorbells=state.barrier is not None
    )


def _identify_namespaces(_state: AdminState, entry: Entry) -> bytes:
    if entry.namespace >= bits.NAMESPACE_ALL - 1:
        raise CommandError(bits.INVALID_NAMESPACE)
    return identify.namespaces_page(entry.namespace)


def _identify_namespace(state: AdminState, entry: Entry) -> bytes:
    _check_namespace(entry)
    return identify.namespace_page(state.identity, state.info)


def _identify_descriptors(state: AdminState, entry: Entry) -> bytes:
    _check_namespace(entry)
    return identify.descriptors_page(state.identity)


def _identify_controllers(_state: AdminState, entry: Entry) -> bytes:
    return identify.controllers_page(entry.cdw10 >> 16)


def _identify_namespace_controllers(state: AdminState, entry: Entry) -> bytes:
    _check_namespace(entry)
    return _identify_controllers(state, entry)


def _check_namespace(entry: Entry) -> None:
    if entry.namespace != bits.NAMESPACE:
        raise CommandError(bits.INVALID_NAMESPACE)


_IDENTIFIED: dict[int, Callable[[AdminState, Entry], bytes]] = {
    bits.IdentifyKind.NAMESPACE: _identify_namespace,
    bits.IdentifyKind.CONTROLLER: _identify_controller,
    bits.IdentifyKind.ACTIVE_NAMESPACES: _identify_namespaces,
    bits.IdentifyKind.NAMESPACE_DESCRIPTORS: _identify_descriptors,
    bits.IdentifyKind.ALLOCATED_NAMESPACES: _identify_namespaces,
    bits.IdentifyKind.ALLOCATED_NAMESPACE: _identify_namespace,
    bits.IdentifyKind.NAMESPACE_CONTROLLERS: _identify_namespace_controllers,
    bits.IdentifyKind.CONTROLLERS: _identify_controllers,
}


def _log_page(state: AdminState, kind: int) -> bytes:
    if kind == bits.LogPage.ERROR:
        return state.logs.error_page()
    if kind == bits.LogPage.SMART:
        return state.logs.smart_page(state.counters, state.info.block_size)
    if kind == bits.LogPage.FIRMWARE_SLOT:
        return identify.firmware_page(state.identity)
    if kind == bits.LogPage.CHANGED_NAMESPACES:
        return logs.changed_namespaces_page()
    if kind == bits.LogPage.COMMAND_EFFECTS:
        return logs.effects_page(state.info, doorbells=state.barrier is not None)
    raise CommandError(bits.LOG_PAGE_INVALID)


def _get_log_page(state: AdminState, entry: Entry) -> int:
    kind = entry.cdw10 & 0xFF
    length = 4 * ((entry.cdw10 >> 16 | (entry.cdw11 & 0xFFFF) << 16) + 1)
    offset = entry.cdw12 | entry.cdw13 << 32
    page = _log_page(state, kind)
    if entry.namespace not in (0, bits.NAMESPACE, bits.NAMESPACE_ALL):
        raise CommandError(bits.INVALID_NAMESPACE)
    if offset & 3 or offset > len(page) or length > identify.TRANSFER_BYTES_MAX:
        raise CommandError(bits.INVALID_FIELD)
    buffers = prp.walk(state.memory, entry.prp1, entry.prp2, length)
    scatter(buffers, page[offset : offset + length].ljust(length, b"\0"))
    if not entry.cdw10 & bits.LOG_RETAIN_EVENT:
        state.events.page_read(kind)
    return 0


def _set_features(state: AdminState, entry: Entry) -> int:
    made = len(state.submission) > 1 or len(state.completion) > 1
    before = state.features.warning & state.features.told_warnings
    result = state.features.set(entry, queues_made=made)
    state.logs.warning = state.features.warning
    if state.features.warning & state.features.told_warnings & ~before:
        state.events.happened(bits.EventType.SMART, bits.EVENT_TEMPERATURE)
    return result


def _get_features(state: AdminState, entry: Entry) -> int:
    return state.features.get(entry)


def _configure_doorbells(state: AdminState, entry: Entry) -> int:
    if state.barrier is None:
        raise CommandError(bits.INVALID_OPCODE)
    pages = (entry.prp1, entry.prp2)
    if any(page & (bits.PAGE_BYTES - 1) for page in pages) or not state.use_doorbells(pages):
        raise CommandError(bits.INVALID_FIELD)
    return 0


_HANDLERS: dict[int, Callable[[AdminState, Entry], int]] = {
    bits.AdminOpcode.DELETE_SQ: _delete_submission_queue,
    bits.AdminOpcode.CREATE_SQ: _create_submission_queue,
    bits.AdminOpcode.GET_LOG_PAGE: _get_log_page,
    bits.AdminOpcode.DELETE_CQ: _delete_completion_queue,
    bits.AdminOpcode.CREATE_CQ: _create_completion_queue,
    bits.AdminOpcode.IDENTIFY: _identify,
    bits.AdminOpcode.SET_FEATURES: _set_features,
    bits.AdminOpcode.GET_FEATURES: _get_features,
    bits.AdminOpcode.DOORBELL_BUFFER_CONFIG: _configure_doorbells,
}
