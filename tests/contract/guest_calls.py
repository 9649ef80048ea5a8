"""What a guest does with an upstairs, a call each. Blocks of 4 KiB."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request
from vmmd.upstairs.core.slot_states import SlotState

SECONDS = 30.0


async def submit(backend, requests: Sequence[Request]) -> dict[object, Completion]:
    """{token: completion}; data is copied."""
    found: dict[object, Completion] = {}
    done = asyncio.Event()

    def take(completions):
        for completion in completions:
            data = completion.data
            kept = completion._replace(data=None if data is None else bytes(data))
            found[completion.token] = kept
        if len(found) == len(requests):
            done.set()

    backend.submit(requests, take)
    async with asyncio.timeout(SECONDS):
        await done.wait()
    return found


async def one(upstairs, op, offset=0, length=0, data=None) -> Completion:
    return (await submit(upstairs, [Request(op, 1, offset, length, data)]))[1]


async def ok(upstairs, op, offset=0, length=0, data=None) -> Completion:
    """As `one`, and it must succeed."""
    done = await one(upstairs, op, offset, length, data)
    assert done.status is BlockStatus.OK
    return done


async def write(upstairs, offset, data) -> None:
    await ok(upstairs, BlockOp.WRITE, offset, len(data) // 4096, data)


async def read(upstairs, offset, length) -> bytes:
    done = await ok(upstairs, BlockOp.READ, offset, length)
    assert isinstance(done.data, bytes)
    return done.data


async def flush(upstairs) -> None:
    await ok(upstairs, BlockOp.FLUSH)


def all_active(upstairs) -> bool:
    slots = upstairs.status().slots
    return all(s.state is SlotState.ACTIVE and not s.departing_address for s in slots)
