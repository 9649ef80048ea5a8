"""Features, request types and states of a virtio block device (virtio 1.2, section 5.2).

Constants only."""

from __future__ import annotations

import enum

SECTOR_BYTES = 512
ID_BYTES = 20

FEATURE_SEG_MAX = 1 << 2
FEATURE_READ_ONLY = 1 << 5
FEATURE_BLOCK_SIZE = 1 << 6
FEATURE_FLUSH = 1 << 9
FEATURE_TOPOLOGY = 1 << 10
FEATURE_MULTI_QUEUE = 1 << 12
FEATURE_DISCARD = 1 << 13
FEATURE_WRITE_ZEROES = 1 << 14
FEATURE_INDIRECT = 1 << 28
FEATURE_VERSION_1 = 1 << 32


class RequestType(enum.IntEnum):
    """What a request asks, the first field of its header."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class RequestStatus(enum.IntEnum):
    """How it ended, the last byte of its buffers."""

    OK = 0
    IO_ERROR = 1
    UNSUPPORTED = 2
