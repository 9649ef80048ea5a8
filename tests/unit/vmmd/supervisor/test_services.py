"""Streams that vmmd hands on from its machines' processes."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator

import pytest

from vmmd.supervisor.services import relayed


class Call:
    """A stream without an end, and whether anybody hung up."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def cancel(self) -> None:
        self.cancelled = True


async def test_a_stream_that_is_left_early_is_hung_up_at_once() -> None:
    call = Call()
    gc.disable()
    try:
        messages = relayed(call)
        assert [await anext(messages), await anext(messages)] == [0, 1]
        assert not call.cancelled
        await messages.aclose()
    finally:
        gc.enable()
    assert call.cancelled
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
