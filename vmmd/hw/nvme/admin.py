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
from vmmd.hw.nvme import bits, identify, prp
from vmmd.hw.nvme.commands import Entry
from vmmd.hw.nvme.queue import (
    QUEUE_ENTRIES_MAX,
    QUEUE_ENTRIES_MIN,
    CompletionQueue,
    SubmissionQueue,
)
from vmmd.hw.segments import scatter

# Besides the admin queue.
IO_QUEUES_MAX = 15
_IO_QUEUES_GRANTED = (IO_QUEUES_MAX - 1) << 16 | (IO_QUEUES_MAX - 1)

_CONTIGUOUS = 1 << 0
_INTERRUPTS = 1 << 1
_SAVE = 1 << 31

# Those a guest may set to what it likes: they change nothing here and read back as set.
_REMEMBERED = frozenset(
    {
        bits.Feature.ARBITRATION,
        bits.Feature.POWER_MANAGEMENT,
        bits.Feature.ERROR_RECOVERY,
        bits.Feature.INTERRUPT_COALESCING,
        bits.Feature.WRITE_ATOMICITY,
        bits.Feature.ASYNC_EVENT_CONFIGURATION,
    }
)
_ARBITRATION_UNLIMITED = 7


class CommandError(Exception):
    """The command completes with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


@dataclass(slots=True)
class AdminState:
    """What admin commands read and change. Lives from enable to reset."""

    memory: GuestMemory
    identity: identify.NvmeIdentity
    info: BackendInfo
    counters: AttachmentCounters
    vectors: int
    submission: dict[int, SubmissionQueue]
    completion: dict[int, CompletionQueue]
    sq_entry_shift: int
    cq_entry_shift: int
    write_cache: bool = True
    features: dict[int, int] = field(default_factory=dict)


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
    if vector >= state.vectors:
        raise CommandError(bits.INTERRUPT_VECTOR_INVALID)
    state.completion[identifier] = CompletionQueue(identifier, size, view, vector, interrupts)
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
    state.submission[identifier] = SubmissionQueue(identifier, size, view, completions)
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
    kind = entry.cdw10 & 0xFF
    if kind == bits.IdentifyKind.CONTROLLER:
        page = identify.controller_page(state.identity, state.info, QUEUE_ENTRIES_MAX)
    elif kind == bits.IdentifyKind.ACTIVE_NAMESPACES:
        if entry.namespace >= bits.NAMESPACE_ALL - 1:
            raise CommandError(bits.INVALID_NAMESPACE)
        page = identify.active_namespaces_page(entry.namespace)
    elif kind in (bits.IdentifyKind.NAMESPACE, bits.IdentifyKind.NAMESPACE_DESCRIPTORS):
        if entry.namespace != bits.NAMESPACE:
            raise CommandError(bits.INVALID_NAMESPACE)
        if kind == bits.IdentifyKind.NAMESPACE:
            page = identify.namespace_page(state.identity, state.info)
        else:
            page = identify.descriptors_page(state.identity)
    else:
        raise CommandError(bits.INVALID_FIELD)
    scatter(prp.walk(state.memory, entry.prp1, entry.prp2, len(page)), page)
    return 0


def _get_log_page(state: AdminState, entry: Entry) -> int:
    length = 4 * ((entry.cdw10 >> 16 | (entry.cdw11 & 0xFFFF) << 16) + 1)
    offset = entry.cdw12 | entry.cdw13 << 32
    page = identify.log_page(
        entry.cdw10 & 0xFF, state.identity, state.counters, state.info.block_size
    )
    if page is None:
        raise CommandError(bits.LOG_PAGE_INVALID)
    if offset or length > identify.TRANSFER_BYTES_MAX:
        raise CommandError(bits.INVALID_FIELD)
    buffers = prp.walk(state.memory, entry.prp1, entry.prp2, length)
    scatter(buffers, page[:length].ljust(length, b"\0"))
    return 0


def _set_features(state: AdminState, entry: Entry) -> int:
    if entry.cdw10 & _SAVE:
        raise CommandError(bits.FEATURE_NOT_SAVEABLE)
    feature = entry.cdw10 & 0xFF
    value = entry.cdw11
    if feature == bits.Feature.NUMBER_OF_QUEUES:
        if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
            raise CommandError(bits.INVALID_FIELD)
        if len(state.submission) > 1 or len(state.completion) > 1:
            raise CommandError(bits.COMMAND_SEQUENCE_ERROR)
        wanted_cq, wanted_sq = value >> 16, value & 0xFFFF
        most = IO_QUEUES_MAX - 1
        return min(wanted_cq, most) << 16 | min(wanted_sq, most)
    if feature == bits.Feature.VOLATILE_WRITE_CACHE:
        state.write_cache = bool(value & 1)
    elif feature == bits.Feature.TEMPERATURE_THRESHOLD or feature in _REMEMBERED:
        state.features[feature] = value
    elif feature == bits.Feature.INTERRUPT_VECTOR:
        if value & 0xFFFF >= state.vectors:
            raise CommandError(bits.INVALID_FIELD)
    else:
        raise CommandError(bits.INVALID_FIELD)
    return 0


def _get_features(state: AdminState, entry: Entry) -> int:
    feature = entry.cdw10 & 0xFF
    # Selecting default or saved values was not offered.
    if entry.cdw10 >> 8 & 0x7:
        raise CommandError(bits.INVALID_FIELD)
    if feature == bits.Feature.NUMBER_OF_QUEUES:
        return _IO_QUEUES_GRANTED
    if feature == bits.Feature.VOLATILE_WRITE_CACHE:
        return int(state.write_cache)
    if feature == bits.Feature.ARBITRATION:
        return state.features.get(feature, _ARBITRATION_UNLIMITED)
    if feature == bits.Feature.TEMPERATURE_THRESHOLD:
        return state.features.get(feature, 0xFFFF)
    if feature == bits.Feature.INTERRUPT_VECTOR:
        vector = entry.cdw11 & 0xFFFF
        if vector >= state.vectors:
            raise CommandError(bits.INVALID_FIELD)
        return vector | 1 << 16
    if feature in _REMEMBERED:
        return state.features.get(feature, 0)
    raise CommandError(bits.INVALID_FIELD)


_HANDLERS: dict[int, Callable[[AdminState, Entry], int]] = {
    bits.AdminOpcode.DELETE_SQ: _delete_submission_queue,
    bits.AdminOpcode.CREATE_SQ: _create_submission_queue,
    bits.AdminOpcode.GET_LOG_PAGE: _get_log_page,
    bits.AdminOpcode.DELETE_CQ: _delete_completion_queue,
    bits.AdminOpcode.CREATE_CQ: _create_completion_queue,
    bits.AdminOpcode.IDENTIFY: _identify,
    bits.AdminOpcode.SET_FEATURES: _set_features,
    bits.AdminOpcode.GET_FEATURES: _get_features,
}
