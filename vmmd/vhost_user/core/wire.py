"""Messages of the vhost-user protocol, from their published description. Pure.

A message is a header of 12 bytes (request, flags, payload bytes; the host's byte order, which is
little-endian here) and its payload; file descriptors come with the header's first byte.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

HEADER = struct.Struct("<III")
# The largest payload taken: a memory table of all regions is 8 + 8 * 32 bytes, a config 12 + 256.
PAYLOAD_BYTES_MAX = 4096
FDS_MAX = 8

VERSION = 1
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3
_VERSION_MASK = 3

# In SET_VRING_KICK and SET_VRING_CALL: the ring's number, and that no descriptor comes with it.
RING_MASK = 0xFF
NO_FD = 1 << 8

FEATURE_PROTOCOL = 1 << 30

PROTOCOL_MULTI_QUEUE = 1 << 0
PROTOCOL_REPLY_ACK = 1 << 3
PROTOCOL_CONFIG = 1 << 9
PROTOCOL_INFLIGHT = 1 << 12


class Kind(enum.IntEnum):
    """The requests that are understood."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32


# Those that are answered with a payload of their own, whatever their flags.
ANSWERED = frozenset(
    {
        Kind.GET_FEATURES,
        Kind.GET_VRING_BASE,
        Kind.GET_PROTOCOL_FEATURES,
        Kind.GET_QUEUE_NUM,
        Kind.GET_CONFIG,
        Kind.GET_INFLIGHT_FD,
    }
)


class ProtocolError(Exception):
    """The peer does not keep to the protocol; the connection ends with this text in the log."""


class Header(NamedTuple):
    """`kind` may be a request nobody knows."""

    kind: int
    flags: int
    size: int


class Region(NamedTuple):
    """A piece of guest memory: its guest-physical address, bytes, the address the hypervisor itself
    has it at (ring addresses are of that kind), and its offset in the descriptor's file."""

    guest: int
    size: int
    user: int
    offset: int


class RingAddresses(NamedTuple):
    """In the hypervisor's own address space."""

    ring: int
    descriptors: int
    used: int
    avail: int


class Inflight(NamedTuple):
    """The shared memory in which requests are noted."""

    size: int
    offset: int
    rings: int
    entries: int


_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_REGIONS = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")
# Hypervisors check for the padded size.
_INFLIGHT = struct.Struct("<QQHH4x")


def header(raw: bytes) -> Header:
    """ProtocolError for another version, or a payload that nobody sends."""
    kind, flags, size = HEADER.unpack(raw)
    if flags & _VERSION_MASK != VERSION:
        raise ProtocolError(f"version {flags & _VERSION_MASK} of the protocol")
    if size > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"a payload of {size} bytes")
    return Header(kind, flags, size)


def reply(kind: int, payload: bytes) -> bytes:
    """An answer as it goes out."""
    return HEADER.pack(kind, VERSION | FLAG_REPLY, len(payload)) + payload


def u64(payload: bytes) -> int:
    """A payload of one number."""
    return int(_exactly(_U64, payload)[0])


def u64_payload(value: int) -> bytes:
    """The same, to send."""
    return _U64.pack(value)


def ring_state(payload: bytes) -> tuple[int, int]:
    """(ring, number)."""
    ring, number = _exactly(_STATE, payload)
    return ring, number


def ring_state_payload(ring: int, number: int) -> bytes:
    """The same, to send."""
    return _STATE.pack(ring, number)


def ring_addresses(payload: bytes) -> RingAddresses:
    """Flags and the address of the dirty log are left out: no log is offered."""
    ring, _flags, descriptors, used, avail, _log = _exactly(_ADDRESSES, payload)
    return RingAddresses(ring, descriptors, used, avail)


def regions(payload: bytes) -> list[Region]:
    """The memory table; descriptors come in the same order."""
    if len(payload) < _REGIONS.size:
        raise ProtocolError("a memory table that is cut off")
    count, _padding = _REGIONS.unpack_from(payload)
    rest = payload[_REGIONS.size :]
    if count > FDS_MAX or len(rest) < count * _REGION.size:
        raise ProtocolError(f"a memory table of {count} regions in {len(payload)} bytes")
    return [Region._make(_REGION.unpack_from(rest, _REGION.size * at)) for at in range(count)]


def config_request(payload: bytes) -> tuple[int, int, int]:
    """(offset, bytes, flags) of the configuration space."""
    if len(payload) < _CONFIG.size:
        raise ProtocolError("a request for the configuration space that is cut off")
    offset, size, flags = _CONFIG.unpack_from(payload)
    return offset, size, flags


def config_payload(offset: int, flags: int, data: bytes) -> bytes:
    """The answer to it."""
    return _CONFIG.pack(offset, len(data), flags) + data


def inflight(payload: bytes) -> Inflight:
    """Of GET_INFLIGHT_FD (rings and entries count) and SET_INFLIGHT_FD (all do)."""
    if len(payload) < 20:
        raise ProtocolError("an inflight description that is cut off")
    return Inflight._make(_INFLIGHT.unpack(payload[:20].ljust(_INFLIGHT.size, b"\0")))


def inflight_payload(what: Inflight) -> bytes:
    """The same, to send."""
    return _INFLIGHT.pack(*what)


def _exactly(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes in place of {layout.size}")
    return layout.unpack(payload)
