"""The structures Identify returns, and the firmware slots' log page.

Offsets are those of NVM Express 1.4, section 5.15.2. Everything not set is zero, which its tables
define as "not supported".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from vmmd.block.backend import BackendInfo
from vmmd.hw.nvme import bits, events, logs

VENDOR = 0x1DE5
DEVICE = 0x0001
IEEE_OUI = bytes((0x4E, 0x57, 0x52))
# As a power of two of 4 KiB pages: 1 MiB, the largest request the data path takes in one frame
# with room for others.
TRANSFER_PAGES_SHIFT = 8
TRANSFER_BYTES_MAX = bits.PAGE_BYTES << TRANSFER_PAGES_SHIFT
ABORTS_MAX = 4
# A controller is alone in its subsystem.
CONTROLLER_ID = 1

_SERIAL_BYTES = 20
_MODEL_BYTES = 40
_FIRMWARE_BYTES = 8
_FIRMWARE_PAGE_BYTES = 512
_DESCRIPTOR_NGUID = 2
_DESCRIPTOR_UUID = 3
_IO_CONTROLLER = 1
_NAMESPACE_EVENTS = 1 << 8
_DOORBELL_BUFFERS = 1 << 8
# Log pages: SMART of the namespace, command effects, offsets into a page.
_LOG_ATTRIBUTES = 0b111
_DATASET_MANAGEMENT = 1 << 2
_WRITE_ZEROES = 1 << 3
_FEATURE_SELECT = 1 << 4
# There is a write cache, and a flush may be of all namespaces.
_WRITE_CACHE = 0b111
_READS_ZEROES = 1


@dataclass(frozen=True, slots=True)
class NvmeIdentity:
    """What the controller says of itself. Longer texts are cut to 20, 40 and 8 bytes.

    Guests refuse two controllers of one subsystem name, so `namespace_uuid` is one of its own.
    """

    serial: str
    namespace_uuid: UUID
    model: str = "Stairwell NVMe"
    firmware: str = "1"


def controller_page(
    identity: NvmeIdentity, info: BackendInfo, entries_max: int, *, doorbells: bool
) -> bytes:
    """Identify Controller; `doorbells`: whether shadow doorbells are offered."""
    page = bytearray(bits.IDENTIFY_BYTES)
    struct.pack_into("<HH", page, 0, VENDOR, VENDOR)
    page[4:24] = text(identity.serial, _SERIAL_BYTES)
    page[24:64] = text(identity.model, _MODEL_BYTES)
    page[64:72] = text(identity.firmware, _FIRMWARE_BYTES)
    page[73:76] = IEEE_OUI
    page[77] = TRANSFER_PAGES_SHIFT
    struct.pack_into("<HI", page, 78, CONTROLLER_ID, bits.VERSION)
    struct.pack_into("<I", page, 92, _NAMESPACE_EVENTS)
    page[111] = _IO_CONTROLLER
    struct.pack_into("<H", page, 256, _DOORBELL_BUFFERS if doorbells else 0)
    page[258] = ABORTS_MAX - 1
    page[259] = events.ASYNC_EVENTS_MAX - 1
    page[260] = 0x03  # one firmware slot, read-only
    page[261] = _LOG_ATTRIBUTES
    page[262] = logs.ERRORS_KEPT - 1
    struct.pack_into("<HH", page, 266, logs.WARNING_KELVIN, logs.CRITICAL_KELVIN)
    page[512] = bits.SQ_ENTRY_SHIFT << 4 | bits.SQ_ENTRY_SHIFT
    page[513] = bits.CQ_ENTRY_SHIFT << 4 | bits.CQ_ENTRY_SHIFT
    struct.pack_into("<H", page, 514, entries_max)
    struct.pack_into("<I", page, 516, 1)  # one namespace
    optional = _WRITE_ZEROES | _FEATURE_SELECT
    if info.supports_discard:
        optional |= _DATASET_MANAGEMENT
    struct.pack_into("<H", page, 520, optional)
    page[525] = _WRITE_CACHE
    name = f"nqn.2014-08.org.nvmexpress:uuid:{identity.namespace_uuid}".encode()
    page[768 : 768 + len(name)] = name
    return bytes(page)


def namespace_page(identity: NvmeIdentity, info: BackendInfo) -> bytes:
    """Identify Namespace: one LBA format, no metadata."""
    page = bytearray(bits.IDENTIFY_BYTES)
    struct.pack_into("<QQQ", page, 0, info.block_count, info.block_count, info.block_count)
    if info.supports_discard:
        page[33] = _READS_ZEROES
    page[99] = 1 if info.read_only else 0
    page[104:120] = identity.namespace_uuid.bytes
    page[130] = info.block_size.bit_length() - 1
    return bytes(page)


def namespaces_page(after: int) -> bytes:
    """The list of namespaces with identifiers above `after`."""
    page = bytearray(bits.IDENTIFY_BYTES)
    if after < bits.NAMESPACE:
        struct.pack_into("<I", page, 0, bits.NAMESPACE)
    return bytes(page)


def controllers_page(least: int) -> bytes:
    """The list of controllers with identifiers from `least` on."""
    page = bytearray(bits.IDENTIFY_BYTES)
    if least <= CONTROLLER_ID:
        struct.pack_into("<HH", page, 0, 1, CONTROLLER_ID)
    return bytes(page)


def descriptors_page(identity: NvmeIdentity) -> bytes:
    """Namespace identification descriptors: the disk's UUID in both forms."""
    page = bytearray(bits.IDENTIFY_BYTES)
    for place, kind in ((0, _DESCRIPTOR_NGUID), (20, _DESCRIPTOR_UUID)):
        page[place : place + 2] = bytes((kind, 16))
        page[place + 4 : place + 20] = identity.namespace_uuid.bytes
    return bytes(page)


def firmware_page(identity: NvmeIdentity) -> bytes:
    """The log page of firmware slots: one, which is active."""
    page = bytearray(_FIRMWARE_PAGE_BYTES)
    page[0] = 1
    page[8:16] = text(identity.firmware, _FIRMWARE_BYTES)
    return bytes(page)


def text(value: str, size: int) -> bytes:
    """Padded with blanks to `size` bytes, or cut."""
    return value.encode("ascii", "replace")[:size].ljust(size)
