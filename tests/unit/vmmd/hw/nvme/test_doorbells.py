"""Shadow doorbells: what is taken from memory, and when the guest is asked to ring."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from vmmd.block.backend import BlockOp
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import AdminOpcode, IoOpcode

SHADOW, EVENTS = 0x20000, 0x21000
TAIL, HEAD = 8, 12  # of queue 1
CONFIGURE = AdminOpcode.DOORBELL_BUFFER_CONFIG


@pytest.fixture
def shadow(rig: Any) -> Any:
    """A controller that was told where they are."""
    assert rig.admin(CONFIGURE, prp1=SHADOW, prp2=EVENTS) == (0, 0)
    return rig


def store(rig: Any, page: int, slot: int, value: int) -> None:
    struct.pack_into("<I", rig.ram.bytes, page + slot, value)


def load(rig: Any, page: int, slot: int) -> int:
    return int(struct.unpack_from("<I", rig.ram.bytes, page + slot)[0])


def leave_tail(rig: Any) -> None:
    store(rig, SHADOW, TAIL, rig.tails[1])


def rings(rig: Any, slot: int, old: int, new: int) -> bool:
    """Whether a guest that moves from `old` to `new` rings, by the specification's rule."""
    return (new - load(rig, EVENTS, slot) - 1) % 65536 < (new - old) % 65536


def test_they_are_offered_only_where_memory_is_ordered(make_rig: Any) -> None:
    for offered in (True, False):
        rig = make_rig(shadow=offered)
        rig.enable()
        rig.admin(AdminOpcode.IDENTIFY, prp1=0x100000, cdw10=1)
        assert struct.unpack_from("<H", rig.ram.bytes, 0x100000 + 256) == (offered << 8,)
        status = bits.OK if offered else bits.INVALID_OPCODE
        assert rig.admin(CONFIGURE, prp1=SHADOW, prp2=EVENTS) == (status, 0)


@pytest.mark.parametrize(
    "pages", [(SHADOW + 8, EVENTS), (SHADOW, EVENTS + 4), (1 << 40, EVENTS), (SHADOW, 1 << 40)]
)
def test_bad_pages(rig: Any, pages: tuple[int, int]) -> None:
    assert rig.admin(CONFIGURE, prp1=pages[0], prp2=pages[1]) == (bits.INVALID_FIELD, 0)
    rig.io(IoOpcode.FLUSH)  # by its register, as before
    assert len(rig.requests) == 1


def test_queues_begin_where_they_are(rig: Any) -> None:
    for _ in range(5):
        rig.io(IoOpcode.FLUSH)
        rig.answer()
        rig.reap(1)
    assert rig.admin(CONFIGURE, prp1=SHADOW, prp2=EVENTS) == (0, 0)
    assert (load(rig, SHADOW, TAIL), load(rig, SHADOW, HEAD)) == (5, 5)


def test_the_tail_is_taken_from_memory_and_not_from_the_register(shadow: Any) -> None:
    identifiers = [shadow.queue(1, IoOpcode.FLUSH, namespace=1) for _ in range(3)]
    leave_tail(shadow)
    # The register write is an older one.
    shadow.take(shadow.core.register_write(bits.REG_DOORBELLS + 8, 4, 1))
    assert [r.op for r in shadow.requests] == [BlockOp.FLUSH] * 3
    # And a still older one does not turn the queue back.
    shadow.take(shadow.core.register_write(bits.REG_DOORBELLS + 8, 4, 2))
    assert len(shadow.requests) == 3
    shadow.answer()
    assert [found[0] for found in shadow.reap(1)] == identifiers


def test_a_guest_that_submits_is_asked_to_ring(shadow: Any) -> None:
    shadow.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(shadow)
    shadow.ring(1)
    assert rings(shadow, TAIL, 1, 2)
    assert not rings(shadow, TAIL, 0, 1)


def test_what_is_left_before_the_guest_saw_the_index_is_found(shadow: Any) -> None:
    """The guest adds an entry between our store of the index and our second look."""
    looks = []

    def meanwhile() -> None:
        looks.append(load(shadow, EVENTS, TAIL))
        if len(looks) == 1:
            shadow.queue(1, IoOpcode.FLUSH, namespace=1)
            leave_tail(shadow)

    shadow.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(shadow)
    shadow.at_barrier = meanwhile
    shadow.ring(1)
    assert len(shadow.requests) == 2
    assert looks == [1, 2]


def test_completions_are_taken_without_ringing(shadow: Any) -> None:
    """Over several rounds of the ring, the guest never has to write the head's register."""
    head = 0
    for _ in range(50):
        shadow.queue(1, IoOpcode.FLUSH, namespace=1)
        leave_tail(shadow)
        shadow.ring(1)
        shadow.answer()
        found = shadow.reap(1, consume=False)
        assert len(found) == 1
        after = (head + 1) % 16
        assert not rings(shadow, HEAD, head, after)
        store(shadow, SHADOW, HEAD, after)
        head = after
        shadow.heads[1] = head
        shadow.phases[1] ^= head == 0


def test_a_full_completion_queue_asks_to_ring_and_goes_on(make_rig: Any) -> None:
    rig = make_rig()
    rig.enable()
    rig.create_io(size=4)
    assert rig.admin(CONFIGURE, prp1=SHADOW, prp2=EVENTS) == (0, 0)
    for _ in range(3):
        rig.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(rig)
    rig.ring(1)
    rig.answer()
    rig.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(rig)
    rig.ring(1)
    assert rig.requests == []
    assert rings(rig, HEAD, 0, 1)
    store(rig, SHADOW, HEAD, 1)
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 12, 4, 1))
    assert len(rig.requests) == 1


def test_completions_see_what_was_submitted_meanwhile(shadow: Any) -> None:
    shadow.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(shadow)
    shadow.ring(1)
    shadow.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(shadow)
    shadow.answer()
    assert len(shadow.requests) == 1


def test_a_tail_that_cannot_be_is_refused_once(shadow: Any) -> None:
    held = shadow.queue(0, AdminOpcode.ASYNC_EVENT)
    shadow.ring(0)
    store(shadow, SHADOW, TAIL, 0xFFFFFFFF)
    shadow.take(shadow.core.register_write(bits.REG_DOORBELLS + 8, 4, 1))
    shadow.take(shadow.core.register_write(bits.REG_DOORBELLS + 8, 4, 1))
    assert shadow.core.refused_doorbells == 1
    assert [found[0] for found in shadow.reap(0)] == [held]
    shadow.queue(1, IoOpcode.FLUSH, namespace=1)
    leave_tail(shadow)
    shadow.ring(1)
    assert len(shadow.requests) == 1


def test_a_guest_that_never_stops_gets_its_turns_and_no_more(shadow: Any) -> None:
    """It adds an entry that is answered at once at every look, and takes the answer."""

    def meanwhile() -> None:
        shadow.queue(1, 0x55, namespace=1)
        leave_tail(shadow)
        store(shadow, SHADOW, HEAD, (shadow.tails[1] - 1) % 16)

    shadow.at_barrier = meanwhile
    effects = shadow.core.register_write(bits.REG_DOORBELLS + 8, 4, 1)
    assert effects.again
    shadow.at_barrier = lambda: None
    assert not shadow.core.process().again
    assert shadow.core.refused_doorbells == 0


def test_queues_made_later_begin_at_nothing(shadow: Any) -> None:
    store(shadow, SHADOW, 16, 7)
    store(shadow, SHADOW, 20, 7)
    shape = 15 << 16 | 2
    create_cq, create_sq = AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ
    assert shadow.admin(create_cq, prp1=0x30000, cdw10=shape, cdw11=3) == (0, 0)
    assert shadow.admin(create_sq, prp1=0x31000, cdw10=shape, cdw11=2 << 16 | 1) == (0, 0)
    assert (load(shadow, SHADOW, 16), load(shadow, SHADOW, 20)) == (0, 0)
    assert shadow.core.refused_doorbells == 0


def test_a_reset_forgets_them(shadow: Any) -> None:
    shadow.core.register_write(bits.REG_CC, 4, 0)
    shadow.tails, shadow.heads, shadow.phases = {0: 0, 1: 0}, {0: 0, 1: 0}, {0: 1, 1: 1}
    shadow.ram.bytes[0x1000:0xA000] = bytes(0x9000)
    shadow.enable()
    shadow.create_io()
    shadow.io(IoOpcode.FLUSH)
    assert len(shadow.requests) == 1
