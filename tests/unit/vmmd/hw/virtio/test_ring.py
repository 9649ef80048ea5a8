"""Chains as guests write them, well and badly."""

from __future__ import annotations

import struct

import pytest

from tests.unit.vmmd.hw.virtio.driver import BASE, INDIRECT, NEXT, WRITE, DriverRing, PlainMemory
from vmmd.hw.virtio.ring import BrokenChainError


@pytest.fixture
def memory() -> PlainMemory:
    return PlainMemory()


def test_a_chain_has_its_buffers_in_order(memory) -> None:
    driver = DriverRing(memory)
    head = driver.offer(
        [
            (memory.place(b"abc"), 3, False),
            (memory.place(b"de"), 2, False),
            (memory.place(4), 4, True),
        ]
    )
    ring = driver.device()
    assert ring.waiting == 1
    chain = ring.chain(ring.next_head())
    assert chain.head == head
    assert [bytes(part) for part in chain.readable] == [b"abc", b"de"]
    assert [len(part) for part in chain.writable] == [4]
    assert ring.waiting == 0


def test_what_is_given_back_is_seen_at_once_and_in_order(memory) -> None:
    driver = DriverRing(memory)
    heads = [driver.offer([(memory.place(1), 1, True)]) for _ in range(3)]
    ring = driver.device()
    for _ in heads:
        ring.next_head()
    ring.give_back([(heads[2], 1), (heads[0], 0)])
    assert driver.collect() == [(heads[2], 1), (heads[0], 0)]
    ring.give_back([(heads[1], 7)])
    assert driver.collect() == [(heads[1], 7)]


def test_indexes_wrap_at_sixteen_bits(memory) -> None:
    driver = DriverRing(memory, entries=4, start=0xFFFE)
    ring = driver.device()
    ring.taken = 0xFFFE
    for _ in range(5):
        head = driver.offer([(memory.place(1), 1, True)])
        assert ring.waiting == 1
        assert ring.next_head() == head
        ring.give_back([(head, 1)])
        assert driver.collect() == [(head, 1)]
    assert ring.used == ring.taken == 3


def test_an_indirect_table_is_followed(memory) -> None:
    driver = DriverRing(memory)
    table = struct.pack("<QIHH", memory.place(b"hello"), 5, NEXT, 1)
    table += struct.pack("<QIHH", memory.place(2), 2, WRITE, 0)
    driver.describe(0, memory.place(table), len(table), INDIRECT, 0)
    driver.put(0)
    ring = driver.device()
    chain = ring.chain(ring.next_head())
    assert bytes(chain.readable[0]) == b"hello"
    assert len(chain.writable[0]) == 2


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        ([(BASE, 4, NEXT, 0)], "left"),
        ([(BASE, 4, NEXT, 9)], "descriptor 9"),
        ([(0, 4, 0, 0)], "no memory"),
        ([(BASE, 1 << 31, 0, 0)], "no memory"),
        ([((1 << 64) - 2, 4, 0, 0)], "no memory"),
        ([(BASE, 4, WRITE | NEXT, 1), (BASE, 4, 0, 0)], "behind a writable"),
        ([(BASE, 17, INDIRECT, 0)], "indirect table of 17"),
        ([(BASE, 0, INDIRECT, 0)], "indirect table of 0"),
        ([(BASE, 16 << 20, INDIRECT, 0)], "indirect table of"),
        ([(8, 16, INDIRECT, 0)], "no memory"),
        ([(BASE, 16, INDIRECT | NEXT, 1)], "before another"),
    ],
)
def test_a_chain_that_leads_nowhere_is_told(memory, descriptors, why) -> None:
    memory.place(64)
    driver = DriverRing(memory)
    for index, descriptor in enumerate(descriptors):
        driver.describe(index, *descriptor)
    driver.put(0)
    ring = driver.device()
    with pytest.raises(BrokenChainError, match=why):
        ring.chain(ring.next_head())


def test_a_table_within_a_table_is_refused(memory) -> None:
    driver = DriverRing(memory)
    inner = memory.place(struct.pack("<QIHH", BASE, 16, INDIRECT, 0))
    driver.describe(0, inner, 16, INDIRECT, 0)
    driver.put(0)
    ring = driver.device()
    with pytest.raises(BrokenChainError, match="within"):
        ring.chain(ring.next_head())
