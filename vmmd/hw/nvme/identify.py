"""The structures Identify and Get Log Page return.

Offsets are those of NVM Express 1.3, figures 109 (controller), 114 (namespace) and 92-95 (logs).
Everything not set is zero, which those tables define as "not supported".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo
from vmmd.hw.nvme import bits

NO_UUID = UUID(int=0)
VENDOR = 0x1DE5
DEVICE = 0x0001
IEEE_OUI = bytes((0x4E, 0x57, 0x52))
# As a power of two of 4 KiB pages: 1 MiB, the largest request the data path takes in one frame
# with room for others.
TRANSFER_PAGES_SHIFT = 8
TRANSFER_BYTES_MAX = bits.PAGE_BYTES << TRANSFER_PAGES_SHIFT
# Asynchronous event requests held; the field is 0-based.
ASYNC_EVENTS_MAX = 4
ABORTS_MAX = 4

_SERIAL_BYTES = 20
_MODEL_BYTES = 40
_FIRMWARE_BYTES = 8
_TEMPERATURE_KELVIN = 310
_DESCRIPTOR_UUID = 3


@dataclass(frozen=True, slots=True)
class NvmeIdentity:
    """What the controller says of itself. Longer texts are cut to 20, 40 and 8 bytes."""

    serial: str
    model: str = "Stairwell NVMe"
    firmware: str = "1"
    namespace_uuid: UUID = NO_UUID


def controller_page(identity: NvmeIdentity, info: BackendInfo, entries_max: int) -> bytes:
    """Identify Controller."""
    page = bytearray(bits.IDENTIFY_BYTES)
    struct.pack_into("<HH", page, 0, VENDOR, VENDOR)
    page[4:24] = _text(identity.serial, _SERIAL_BYTES)
    page[24:64] = _text(identity.model, _MODEL_BYTES)
    page[64:72] = _text(identity.firmware, _FIRMWARE_BYTES)
    page[73:76] = IEEE_OUI
    page[77] = TRANSFER_PAGES_SHIFT
    struct.pack_into("<I", page, 80, bits.VERSION)
    page[258] = ABORTS_MAX - 1
    page[259] = ASYNC_EVENTS_MAX - 1
    page[260] = 0x03  # one firmware slot, read-only
    struct.pack_into("<HH", page, 266, 350, 370)  # warning and critical temperature, kelvin
    page[512] = bits.SQ_ENTRY_SHIFT << 4 | bits.SQ_ENTRY_SHIFT
    page[513] = bits.CQ_ENTRY_SHIFT << 4 | bits.CQ_ENTRY_SHIFT
    struct.pack_into("<H", page, 514, entries_max)
    struct.pack_into("<I", page, 516, 1)  # one namespace
    optional = 1 << 3  # write zeroes
    if info.supports_discard:
        optional |= 1 << 2  # dataset management
    struct.pack_into("<H", page, 520, optional)
    page[525] = 1  # volatile write cache
    name = f"nqn.2014-08.org.nvmexpress:uuid:{identity.namespace_uuid}".encode()
    page[768 : 768 + len(name)] = name
    return bytes(page)


def namespace_page(identity: NvmeIdentity, info: BackendInfo) -> bytes:
    """Identify Namespace: one LBA format, no metadata."""
    page = bytearray(bits.IDENTIFY_BYTES)
    struct.pack_into("<QQQ", page, 0, info.block_count, info.block_count, info.block_count)
    page[99] = 1 if info.read_only else 0
    page[104:120] = identity.namespace_uuid.bytes
    page[130] = info.block_size.bit_length() - 1
    return bytes(page)


def active_namespaces_page(after: int) -> bytes:
    """The list of namespaces with identifiers above `after`."""
    page = bytearray(bits.IDENTIFY_BYTES)
    if after < bits.NAMESPACE:
        struct.pack_into("<I", page, 0, bits.NAMESPACE)
    return bytes(page)


def descriptors_page(identity: NvmeIdentity) -> bytes:
    """Namespace identification descriptors: its UUID."""
    page = bytearray(bits.IDENTIFY_BYTES)
    page[0:2] = bytes((_DESCRIPTOR_UUID, 16))
    page[4:20] = identity.namespace_uuid.bytes
    return bytes(page)


def log_page(
    kind: int, identity: NvmeIdentity, counters: AttachmentCounters, block: int
) -> bytes | None:
    """The whole log page `kind`, or None when there is no such page. `block` is the block size."""
    if kind == bits.LogPage.ERROR:
        return bytes(64)
    if kind == bits.LogPage.FIRMWARE_SLOT:
        page = bytearray(512)
        page[0] = 1
        page[8:16] = _text(identity.firmware, _FIRMWARE_BYTES)
        return bytes(page)
    if kind != bits.LogPage.SMART:
        return None
    page = bytearray(512)
    struct.pack_into("<HBB", page, 1, _TEMPERATURE_KELVIN, 100, 10)
    # Data units are thousands of 512-byte sectors, rounded up.
    for offset, value in (
        (32, -(-counters.blocks_read * block // 512_000)),
        (48, -(-counters.blocks_written * block // 512_000)),
        (64, counters.reads),
        (80, counters.writes),
    ):
        struct.pack_into("<Q", page, offset, value)
    return bytes(page)


def _text(text: str, size: int) -> bytes:
    return text.encode("ascii", "replace")[:size].ljust(size)
