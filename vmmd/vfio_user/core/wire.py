"""Messages of the vfio-user protocol 0.0, from their published description. Pure.

A message is a header of 16 bytes (id, command, size with the header, flags, error number;
little-endian) and its payload. File descriptors come with the first byte of the message they belong
to. Sources: the protocol's description in QEMU's documentation; linux/vfio.h for the structures
that are passed on; real-guests-and-containers.md §C2 for what QEMU really says.
"""

from __future__ import annotations

import enum
import errno
import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("<HHIII")

FLAG_REPLY = 1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20
_TYPE_MASK = 0xF

MAJOR, MINOR = 0, 0
# The largest access to a region: the configuration space in one piece.
TRANSFER_BYTES_MAX = 4096
# Beside it a message holds 32 bytes of its own; one of many writes has 24 for each.
MULTI_WRITES_MAX = 1024
MESSAGE_BYTES_MAX = 32 << 10
FDS_MAX = 16
DMA_MAPS_MAX = 65535
PAGE_BYTES = 4096
_CAPABILITIES_BYTES_MAX = 4096

REGIONS = 9
CONFIG_REGION = 7
BAR_REGIONS = range(6)
REGION_READ_WRITE = 3

DEVICE_RESETS = 1 << 0
DEVICE_IS_PCI = 1 << 1

IRQ_EVENTFD = 1
DMA_READABLE = 1 << 0
DMA_WRITABLE = 1 << 1
UNMAP_ALL = 1 << 1


class Command(enum.IntEnum):
    """The commands that are understood."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class Irq(enum.IntEnum):
    """The kinds of interrupts of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class IrqData(enum.IntEnum):
    """What comes with SET_IRQS."""

    NONE = 1
    BOOL = 2
    EVENTFD = 4


ACTION_TRIGGER = 1 << 5
_DATA_MASK = 0x7
_ACTION_MASK = 0x38


class ProtocolError(Exception):
    """The peer does not keep to the protocol; the connection ends with this text in the log."""


class RequestError(Exception):
    """One request that cannot be done: it is answered with `number`, an errno."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Header(NamedTuple):
    """`command` may be one nobody knows; `size` counts the header in."""

    id: int
    command: int
    size: int
    flags: int
    error: int

    @property
    def wants_reply(self) -> bool:
        """Whether it is to be answered."""
        return not self.flags & FLAG_NO_REPLY


class DmaMap(NamedTuple):
    """A piece of guest memory; `offset` is in the file that comes with it."""

    flags: int
    offset: int
    address: int
    size: int


class DmaUnmap(NamedTuple):
    """A range of guest memory that is no longer there."""

    flags: int
    address: int
    size: int


class IrqSet(NamedTuple):
    """What becomes of the interrupts [start, start + number) of a kind; `states` are given for
    IrqData.BOOL."""

    data: IrqData
    kind: int
    start: int
    number: int
    states: bytes


class Access(NamedTuple):
    """A read of `size` bytes at `offset` of a region, or a write of `data`, as long."""

    offset: int
    region: int
    size: int
    data: bytes = b""


_VERSION = struct.Struct("<HH")
_DMA_MAP = struct.Struct("<IIQQQ")
_DMA_UNMAP = struct.Struct("<IIQQ")
_DEVICE_INFO = struct.Struct("<IIII")
_REGION_INFO = struct.Struct("<IIIIQQ")
_IRQ_INFO = struct.Struct("<IIII")
_IRQ_SET = struct.Struct("<IIIII")
_ACCESS = struct.Struct("<QII")
_MULTI = struct.Struct("<Q")
_MULTI_WRITE = struct.Struct("<QII8s")


def header(raw: bytes | memoryview) -> Header:
    """ProtocolError for what is no request, or is longer than anything a peer has to say."""
    head = Header._make(HEADER.unpack_from(raw))
    if head.flags & _TYPE_MASK:
        raise ProtocolError(f"message {head.id} is no request: flags {head.flags:#x}")
    if not HEADER.size <= head.size <= MESSAGE_BYTES_MAX:
        raise ProtocolError(f"message {head.id} of {head.size} bytes")
    return head


def request(identifier: int, command: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A request as it goes out."""
    return HEADER.pack(identifier, command, HEADER.size + len(payload), flags, 0) + payload


def reply(head: Header, payload: bytes) -> bytes:
    """The answer to a request."""
    size = HEADER.size + len(payload)
    return HEADER.pack(head.id, head.command, size, FLAG_REPLY, 0) + payload


def refusal(head: Header, number: int) -> bytes:
    """The answer to a request that was not done: an errno."""
    return HEADER.pack(head.id, head.command, HEADER.size, FLAG_REPLY | FLAG_ERROR, number)


def version(payload: bytes) -> tuple[int, int]:
    """The peer's version; ProtocolError when it is another one, or its capabilities are no JSON."""
    if len(payload) < _VERSION.size:
        raise ProtocolError("a version that is cut off")
    major, minor = _VERSION.unpack_from(payload)
    if major != MAJOR:
        raise ProtocolError(f"version {major}.{minor} of the protocol")
    text = payload[_VERSION.size :].split(b"\0", 1)[0]
    if len(text) > _CAPABILITIES_BYTES_MAX:
        raise ProtocolError(f"{len(text)} bytes of capabilities")
    try:
        told = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ProtocolError("capabilities that are no JSON") from error
    if not isinstance(told, dict):
        raise ProtocolError("capabilities that are no object")
    return major, minor


def version_payload() -> bytes:
    """This side's."""
    capabilities = {
        "max_msg_fds": FDS_MAX,
        "max_data_xfer_size": TRANSFER_BYTES_MAX,
        "max_dma_maps": DMA_MAPS_MAX,
        "pgsizes": PAGE_BYTES,
        "write_multiple": True,
    }
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return _VERSION.pack(MAJOR, MINOR) + text.encode() + b"\0"


def dma_map(payload: bytes) -> DmaMap:
    """Of DMA_MAP."""
    _argsz, flags, offset, address, size = _exactly(_DMA_MAP, payload)
    return DmaMap(flags, offset, address, size)


def dma_unmap(payload: bytes) -> DmaUnmap:
    """Of DMA_UNMAP; what may follow the structure is about dirty pages, which are not told."""
    _argsz, flags, address, size = _exactly(_DMA_UNMAP, payload)
    return DmaUnmap(flags, address, size)


def device_info_payload(*, irqs: int) -> bytes:
    """The answer to DEVICE_GET_INFO."""
    flags = DEVICE_RESETS | DEVICE_IS_PCI
    return _DEVICE_INFO.pack(_DEVICE_INFO.size, flags, REGIONS, irqs)


def region_index(payload: bytes) -> int:
    """The region that DEVICE_GET_REGION_INFO asks for."""
    return int(_exactly(_REGION_INFO, payload)[2])


def region_info_payload(index: int, size: int) -> bytes:
    """The answer: by messages only, nothing of it can be mapped."""
    flags = REGION_READ_WRITE if size else 0
    return _REGION_INFO.pack(_REGION_INFO.size, flags, index, 0, size, 0)


def irq_index(payload: bytes) -> int:
    """The kind of interrupts that DEVICE_GET_IRQ_INFO asks for."""
    return int(_exactly(_IRQ_INFO, payload)[2])


def irq_info_payload(index: int, count: int) -> bytes:
    """The answer."""
    return _IRQ_INFO.pack(_IRQ_INFO.size, IRQ_EVENTFD, index, count)


def irq_set(payload: bytes) -> IrqSet:
    """Of DEVICE_SET_IRQS; RequestError for what is not offered, such as masking."""
    if len(payload) < _IRQ_SET.size:
        raise RequestError(errno.EINVAL, f"{len(payload)} bytes of interrupts")
    _argsz, flags, index, start, count = _IRQ_SET.unpack_from(payload)
    if flags & _ACTION_MASK != ACTION_TRIGGER or flags & ~(_ACTION_MASK | _DATA_MASK):
        raise RequestError(errno.EINVAL, f"interrupts with flags {flags:#x}")
    try:
        data = IrqData(flags & _DATA_MASK)
    except ValueError:
        raise RequestError(errno.EINVAL, f"interrupts with flags {flags:#x}") from None
    states = payload[_IRQ_SET.size :] if data is IrqData.BOOL else b""
    if data is IrqData.BOOL and len(states) < count:
        raise RequestError(errno.EINVAL, f"{len(states)} states of {count} interrupts")
    return IrqSet(data, index, start, count, states[:count])


def read_access(payload: bytes) -> Access:
    """Of REGION_READ."""
    offset, region, size = _exactly(_ACCESS, payload)
    return Access(offset, region, size)


def write_access(payload: bytes) -> Access:
    """Of REGION_WRITE."""
    if len(payload) < _ACCESS.size:
        raise RequestError(errno.EINVAL, "a write that is cut off")
    offset, region, count = _ACCESS.unpack_from(payload)
    data = payload[_ACCESS.size :]
    if len(data) != count:
        raise RequestError(errno.EINVAL, f"a write of {count} bytes with {len(data)}")
    return Access(offset, region, count, data)


def access_payload(access: Access, data: bytes = b"") -> bytes:
    """The answer to an access: what it was, and what was read."""
    return _ACCESS.pack(access.offset, access.region, access.size) + data


def write_accesses(payload: bytes) -> Iterator[Access]:
    """Of REGION_WRITE_MULTI, in their order; RequestError before the first one of a bad message."""
    if len(payload) < _MULTI.size:
        raise RequestError(errno.EINVAL, "writes that are cut off")
    (count,) = _MULTI.unpack_from(payload)
    raw = payload[_MULTI.size :]
    if count > MULTI_WRITES_MAX or len(raw) < count * _MULTI_WRITE.size:
        raise RequestError(errno.EINVAL, f"{count} writes in {len(payload)} bytes")
    found = [
        Access(offset, region, size, data[:size])
        for offset, region, size, data in _MULTI_WRITE.iter_unpack(raw[: count * _MULTI_WRITE.size])
    ]
    if any(access.size != len(access.data) for access in found):
        raise RequestError(errno.EINVAL, "one of several writes is of more than 8 bytes")
    return iter(found)


def multi_payload(count: int) -> bytes:
    """The answer to REGION_WRITE_MULTI."""
    return _MULTI.pack(count)


def _exactly(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """RequestError (EINVAL) unless the payload holds it; more is left alone."""
    if len(payload) < layout.size:
        raise RequestError(
            errno.EINVAL, f"a payload of {len(payload)} bytes in place of {layout.size}"
        )
    return layout.unpack_from(payload)
