"""Log pages and what they are made of: errors as they happen, and the controller's life.

Layouts: NVM Express 1.4, section 5.14.1.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo
from vmmd.hw.nvme import bits

ERRORS_KEPT = 64
TEMPERATURE_KELVIN = 310
WARNING_KELVIN = 350
CRITICAL_KELVIN = 370
NO_COMMAND = 0xFFFF

_ERROR = struct.Struct("<QHHHHQI36x")
assert _ERROR.size == 64
_NO_LOCATION = 0xFFFF
_SMART_BYTES = 512
_EFFECTS_BYTES = 4096
_SUPPORTED = 1 << 0
_CHANGES_CONTENT = 1 << 1
_DATA_UNIT_BYTES = 512_000


class ErrorEntry(NamedTuple):
    """A command that ended with `status`, or a doorbell that could not be (NO_COMMAND)."""

    queue: int
    identifier: int
    status: int
    lba: int
    namespace: int


class ControllerLogs:
    """Kept over resets, for the controller's whole life."""

    def __init__(self) -> None:
        self.power_cycles = 1
        self.unsafe_shutdowns = 0
        self.warning = 0
        self.errors = 0
        self._recent: deque[tuple[int, ErrorEntry]] = deque(maxlen=ERRORS_KEPT)

    def failed(self, entry: ErrorEntry) -> None:
        """One more entry of the error log."""
        self.errors += 1
        self._recent.append((self.errors, entry))

    def error_page(self) -> bytes:
        """The newest first."""
        page = bytearray()
        for number, entry in reversed(self._recent):
            page += _ERROR.pack(
                number,
                entry.queue,
                entry.identifier,
                entry.status << 1 & 0xFFFF,
                _NO_LOCATION,
                entry.lba,
                entry.namespace,
            )
        return bytes(page.ljust(ERRORS_KEPT * _ERROR.size, b"\0"))

    def smart_page(self, counters: AttachmentCounters, block: int) -> bytes:
        """Health; `block` is the block size. Hours are not told: a controller has no clock."""
        page = bytearray(_SMART_BYTES)
        struct.pack_into("<BHBB", page, 0, self.warning, TEMPERATURE_KELVIN, 100, 10)
        for offset, value in (
            # Data units are thousands of 512-byte sectors, rounded up.
            (32, -(-counters.blocks_read * block // _DATA_UNIT_BYTES)),
            (48, -(-counters.blocks_written * block // _DATA_UNIT_BYTES)),
            (64, counters.reads),
            (80, counters.writes),
            (112, self.power_cycles),
            (144, self.unsafe_shutdowns),
            (160, counters.failures),
            (176, self.errors),
        ):
            struct.pack_into("<Q", page, offset, value)
        return bytes(page)


def effects_page(info: BackendInfo, *, doorbells: bool) -> bytes:
    """The commands there are, and which of them change blocks."""
    page = bytearray(_EFFECTS_BYTES)
    for opcode in bits.AdminOpcode:
        if opcode is bits.AdminOpcode.DOORBELL_BUFFER_CONFIG and not doorbells:
            continue
        struct.pack_into("<I", page, 4 * opcode, _SUPPORTED)
    for command in bits.IoOpcode:
        if command is bits.IoOpcode.DATASET_MANAGEMENT and not info.supports_discard:
            continue
        changes = command not in (bits.IoOpcode.READ, bits.IoOpcode.FLUSH)
        effects = _SUPPORTED | (_CHANGES_CONTENT if changes else 0)
        struct.pack_into("<I", page, 1024 + 4 * command, effects)
    return bytes(page)


def changed_namespaces_page() -> bytes:
    """None: a namespace is the same for as long as its controller lives."""
    return bytes(4096)
