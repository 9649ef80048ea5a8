"""Backends that tests put below others: blocks in memory that know who wrote them."""

from __future__ import annotations

import numpy as np

from vmmd.block.backend import (
    CHANGES,
    READS,
    BackendInfo,
    BlockOp,
    BlockStatus,
    Completion,
    Request,
)

SIZE = 512


def block(value):
    """One block filled with a value."""
    return bytes([value]) * SIZE


def blocks(*values):
    """Blocks, each filled with its value."""
    return b"".join(map(block, values))


class Store:
    """Keeps blocks and which were written. `status` makes requests fail; `hold` keeps completions
    back until `release`."""

    def __init__(self, count, *, read_only=False, supports_discard=True, **values):
        self.info = BackendInfo(SIZE, count, read_only, supports_discard)
        self.data = bytearray(SIZE * count)
        self.owned = np.zeros(count, dtype=np.bool_)
        self.seen = []
        self.status = {}
        self.hold = False
        # Blocks that one question for holes is answered for at most.
        self.told = count
        self._held = []
        for name, value in values.items():
            self.put(int(name[1:]), value)

    def put(self, at, *values):
        """Writes blocks as a guest would have."""
        self.data[at * SIZE : (at + len(values)) * SIZE] = blocks(*values)
        self.owned[at : at + len(values)] = True

    def values(self):
        """The first byte of each block."""
        return list(self.data[::SIZE])

    def ops(self, op):
        """(offset, length) of the requests of that kind."""
        return [(each.offset, each.length) for each in self.seen if each.op is op]

    def submit(self, batch, done):
        self.seen.extend(batch)
        completions = [self._do(request) for request in batch]
        if self.hold:
            self._held.append((completions, done))
        else:
            done(completions)

    def release(self):
        """Lets everything complete that was kept back."""
        held, self._held = self._held, []
        for completions, done in held:
            done(completions)

    def _do(self, request: Request):
        op, token, offset, length, data = request
        status = self.status.get(op, BlockStatus.OK)
        if callable(status):
            status = status(request)
        if status is not BlockStatus.OK:
            return Completion(token, status)
        if op is BlockOp.FLUSH:
            return Completion(token, BlockStatus.OK)
        if offset < 0 or offset + length > self.info.block_count:
            return Completion(token, BlockStatus.OUT_OF_RANGE)
        if op in CHANGES and self.info.read_only:
            return Completion(token, BlockStatus.READ_ONLY)
        rows, part = slice(offset, offset + length), slice(offset * SIZE, (offset + length) * SIZE)
        if op is BlockOp.ALLOCATION:
            told = self.owned[offset : offset + min(length, self.told)]
            return Completion(token, BlockStatus.OK, None, told)
        if op in READS:
            owned = self.owned[rows].copy() if op is BlockOp.READ_OWNED else None
            return Completion(token, BlockStatus.OK, bytes(self.data[part]), owned)
        if op is BlockOp.DISCARD:
            self.data[part] = bytes(length * SIZE)
            self.owned[rows] = False
            return Completion(token, BlockStatus.OK)
        for index in range(length):
            if op is BlockOp.WRITE or not self.owned[offset + index]:
                at = (offset + index) * SIZE
                self.data[at : at + SIZE] = data[index * SIZE : (index + 1) * SIZE]
                self.owned[offset + index] = True
        return Completion(token, BlockStatus.OK)


def submit(backend, *requests):
    """{token: completion} of requests that complete at once; data is copied."""
    found = {}

    def done(completions):
        for each in completions:
            data = None if each.data is None else bytes(each.data)
            found[each.token] = each._replace(data=data)

    backend.submit(requests, done)
    return found


def read(backend, offset, length):
    """The first byte of each block read."""
    done = submit(backend, Request(BlockOp.READ, "r", offset, length))["r"]
    assert done.status is BlockStatus.OK, done.status
    assert done.owned is None
    return list(done.data[::SIZE])


def read_owned(backend, offset, length):
    """(first byte of each block, owned) of a read that tells of ownership."""
    done = submit(backend, Request(BlockOp.READ_OWNED, "r", offset, length))["r"]
    assert done.status is BlockStatus.OK, done.status
    return list(done.data[::SIZE]), done.owned.astype(int).tolist()


def allocation(backend, offset, length):
    """For each block told of, 1 where it may hold data."""
    done = submit(backend, Request(BlockOp.ALLOCATION, "a", offset, length))["a"]
    assert done.status is BlockStatus.OK, done.status
    return done.owned.astype(int).tolist()


def write(backend, offset, *values, op=BlockOp.WRITE):
    """The status of a write of blocks with these values."""
    request = Request(op, "w", offset, len(values), blocks(*values))
    return submit(backend, request)["w"].status
