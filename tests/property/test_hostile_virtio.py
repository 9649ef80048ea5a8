"""Whatever a guest leaves in a virtqueue or a UART's registers, the device goes on.

The guest's memory is random where it is not made to lead somewhere: descriptors that point outside,
in circles, across borders, at the rings themselves; requests that are no requests. A sane request
behind all that is done.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile_virtqueue import (
    BLOCK,
    BUFFERS,
    ENTRIES,
    GUEST,
    MEMORY_BYTES,
    TABLE,
    USED,
    Driver,
    HostileDriver,
    fill,
    prove_it_works,
    seeds,
)
from vmmd.hw.uart.uart16550 import REGISTERS, Uart16550

# Addresses near borders, at the rings, and anywhere; lengths likewise.
ADDRESS = st.one_of(
    st.sampled_from(
        [0, GUEST, GUEST + TABLE, GUEST + USED, GUEST + BUFFERS, GUEST + MEMORY_BYTES - 8]
    ),
    st.integers(GUEST, GUEST + MEMORY_BYTES),
    st.integers(0, (1 << 64) - 1),
)
LENGTH = st.one_of(st.integers(0, 48), st.integers(0, 3 * BLOCK), st.integers(0, (1 << 32) - 1))
FLAGS = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
NEXT = st.one_of(st.integers(0, ENTRIES), st.integers(0, 0xFFFF))
DESCRIPTORS = st.lists(
    st.tuples(st.integers(0, ENTRIES - 1), ADDRESS, LENGTH, FLAGS, NEXT), max_size=8
)
STEP = st.tuples(DESCRIPTORS, st.one_of(st.integers(0, ENTRIES), st.integers(0, 0xFFFF)))


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=6), st.integers(0, 1 << 32))
def test_any_descriptors(steps: list[tuple[list[tuple[int, ...]], int]], seed: int) -> None:
    driver = Driver()
    chance = random.Random(seed)
    fill(driver, chance)
    for descriptors, head in steps:
        for descriptor in descriptors:
            driver.descriptor(*descriptor)
        driver.offer(head)
    prove_it_works(driver, chance.randbytes(BLOCK))


def test_runs_that_get_somewhere_and_damaged_ones() -> None:
    driver, chance = HostileDriver(), random.Random(3)
    for seed in seeds():
        driver(seed)
        for _ in range(10):
            data = bytearray(seed)
            data[chance.randrange(len(data))] = chance.randrange(256)
            driver(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, REGISTERS - 1), st.integers(0, 255), st.integers(0, 3))))
def test_any_use_of_a_uart(steps: list[tuple[int, int, int]]) -> None:
    uart = Uart16550()
    for register, value, what in steps:
        if what == 0:
            uart.write(register, value)
        elif what == 1:
            assert 0 <= uart.read(register) <= 255
        elif what == 2:
            uart.receive(value)
        else:
            taken = uart.take_transmitted()
            assert taken is None or 0 <= taken <= 255
        assert uart.interrupt in (True, False)
    uart.reset()
    uart.write(0, 0x41)
    assert uart.take_transmitted() == 0x41
