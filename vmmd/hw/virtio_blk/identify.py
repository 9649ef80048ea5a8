"""What a virtio block device says of itself: features and configuration space."""

from __future__ import annotations

import struct

from vmmd.block.backend import BackendInfo
from vmmd.hw.virtio_blk import bits

# capacity, size_max, seg_max, geometry (3), blk_size, topology (4), writeback, -, num_queues,
# discard (3), write zeroes (3), may_unmap, -
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
CONFIG_BYTES = _CONFIG.size
assert CONFIG_BYTES == 60

# Descriptors of data in one request: what fits a ring of 128 with header and status.
SEGMENTS_MAX = 126
# Ranges in one discard or write of zeroes, and 512-byte sectors in each (2 GiB).
RANGES_MAX = 64
RANGE_SECTORS_MAX = 1 << 22

# Larger transfers are refused. Linux sends at most 1.25 MiB unless it is told otherwise.
TRANSFER_BYTES_MAX = 16 << 20


def features(info: BackendInfo, queues: int) -> int:
    """What is offered to the driver."""
    offered = (
        bits.FEATURE_SEG_MAX
        | bits.FEATURE_BLOCK_SIZE
        | bits.FEATURE_FLUSH
        | bits.FEATURE_TOPOLOGY
        | bits.FEATURE_INDIRECT
        | bits.FEATURE_VERSION_1
    )
    if info.read_only:
        offered |= bits.FEATURE_READ_ONLY
    else:
        offered |= bits.FEATURE_WRITE_ZEROES
        if info.supports_discard:
            offered |= bits.FEATURE_DISCARD
    if queues > 1:
        offered |= bits.FEATURE_MULTI_QUEUE
    return offered


def config(info: BackendInfo, queues: int) -> bytes:
    """The configuration space, 60 bytes. The capacity is in sectors of 512 bytes, whatever the size
    of a block."""
    sectors = info.block_size // bits.SECTOR_BYTES
    return _CONFIG.pack(
        info.block_count * sectors,
        0,
        SEGMENTS_MAX,
        0, 0, 0,
        info.block_size,
        0, 0, 1, 1,
        1,
        0,
        queues,
        RANGE_SECTORS_MAX, RANGES_MAX, sectors,
        RANGE_SECTORS_MAX, RANGES_MAX,
        0,
    )  # fmt: skip


def identifier(serial: str) -> bytes:
    """What GET_ID answers: 20 ASCII bytes, padded with zeros."""
    return serial.encode("ascii", "replace")[: bits.ID_BYTES].ljust(bits.ID_BYTES, b"\0")
