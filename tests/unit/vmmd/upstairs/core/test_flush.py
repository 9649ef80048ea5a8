"""When a flush counts as durable."""

from __future__ import annotations

import pytest

from vmmd.upstairs.core.flush import FlushBook, judge
from vmmd.upstairs.core.replay import Mutation


@pytest.mark.parametrize(
    ("acked", "pending", "active", "verdict"),
    [
        (0b011, 0b100, 0b111, True),
        (0b001, 0b110, 0b111, None),
        (0b001, 0b000, 0b111, False),
        (0b011, 0b000, 0b111, True),
        # One of the two is only under repair: the second active one is waited for.
        (0b101, 0b010, 0b011, None),
        # With one active member left, the one under repair is all there is.
        (0b101, 0b010, 0b001, True),
        (0b000, 0b000, 0b000, False),
    ],
)
def test_judgement(acked, pending, active, verdict):
    record = Mutation(1, 1, (), 0, is_flush=True)
    record.acked, record.pending = acked, pending
    assert judge(record, active) is verdict


def test_a_departing_member_and_one_under_repair_are_not_enough():
    record = Mutation(1, 1, (), 0, is_flush=True)
    record.acked = 0b1100
    assert judge(record, 0b1000, 0b1000) is False
    record.pending = 0b0001
    assert judge(record, 0b1000, 0b1000) is None
    record.acked, record.pending = 0b1001, 0
    assert judge(record, 0b1001, 0b1000) is True


@pytest.mark.parametrize(
    ("acked", "pending", "active", "verdict"),
    [
        # Old (8) and new (4) have it, and both others still answer: one of the two is to leave.
        (0b1100, 0b0011, 0b1111, None),
        (0b1101, 0b0010, 0b1111, True),
        (0b1001, 0b0110, 0b1111, True),
        (0b0101, 0b1010, 0b1111, True),
        # There is nobody else to wait for.
        (0b1100, 0b0000, 0b1100, True),
        (0b1100, 0b0001, 0b1100, True),
    ],
)
def test_the_old_and_the_new_member_of_a_slot_are_one_copy(acked, pending, active, verdict):
    record = Mutation(1, 1, (), 0, is_flush=True)
    record.acked, record.pending = acked, pending
    assert judge(record, active, 0b1000, 0b0100) is verdict


def test_a_flush_without_a_caller_is_due_after_the_timeout():
    book = FlushBook(0.5)
    assert not book.due(100.0)
    book.mutated(Mutation(1, 3, (), 100), 1.0)
    book.mutated(Mutation(4, 1, (), 100), 1.4)
    assert not book.due(1.4)
    assert book.due(1.5)
    flush = Mutation(5, 1, (), 0, is_flush=True)
    book.sent(flush)
    assert not book.dirty
    assert book.unproven
    flush.succeeded = True
    assert not book.unproven
