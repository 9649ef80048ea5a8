"""What a guest does with an upstairs, a call each. Blocks of 4 KiB."""

from __future__ import annotations

import asyncio

from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request
from vmmd.upstairs.core.states import SlotState


async def submit(upstairs, requests: list[Request]) -> dict[object, Completion]:
    found: dict[object, Completion] = {}
    done = asyncio.Event()

    def take(completions):
        for completion in completions:
            data = completion.data
            kept = completion._replace(data=None if data is None else bytes(data))
            found[completion.token] = kept
        if len(found) == len(requests):
            done.set()

    upstairs.submit(requests, take)
    async with asyncio.timeout(20):
        await done.wait()
    return found


async def one(upstairs, op, offset=0, length=0, data=None) -> Completion:
    return (await submit(upstairs, [Request(op, 1, offset, length, data)]))[1]


async def write(upstairs, offset, data) -> None:
    done = await one(upstairs, BlockOp.WRITE, offset, len(data) // 4096, data)
    assert done.status is BlockStatus.OK


async def read(upstairs, offset, length) -> bytes:
    done = await one(upstairs, BlockOp.READ, offset, length)
    assert done.status is BlockStatus.OK
    assert isinstance(done.data, bytes)
    return done.data


async def flush(upstairs) -> None:
    assert (await one(upstairs, BlockOp.FLUSH)).status is BlockStatus.OK


def all_active(upstairs) -> bool:
    slots = upstairs.status().slots
    return all(s.state is SlotState.ACTIVE and not s.departing_address for s in slots)
