"""What a control plane believes of its leases always ends before the leases do."""

from __future__ import annotations

from math import inf

import pytest

from controlplane.core.leases import Kind, Lease, LeaseBook, LeaseLostError, believed_until

A = Lease(Kind.REPLACEMENT, "a", 1, 10.0)
B = Lease(Kind.SCRUB, "b", 4, 20.0)


def book(*leases: Lease) -> LeaseBook:
    made = LeaseBook()
    for lease in leases:
        made.hold(lease)
    return made


def test_belief_is_counted_from_the_question_and_ends_early() -> None:
    assert 100 < believed_until(100.0, 10.0) < 110
    assert believed_until(100.0, None) == inf


def test_held_until_its_time() -> None:
    held = book(A)
    held.require(A.kind, "a", 1, 9.9)
    for kind, key, epoch, now in (
        (A.kind, "a", 1, 10.0), (A.kind, "a", 2, 1.0), (Kind.SCRUB, "a", 1, 1.0),
        (A.kind, "b", 1, 1.0),
    ):  # fmt: skip
        with pytest.raises(LeaseLostError):
            held.require(kind, key, epoch, now)
    assert (held.epoch(A.kind, "a", 9.0), held.epoch(A.kind, "a", 10.0)) == (1, None)


def test_what_was_not_renewed_is_lost() -> None:
    held = book(A, B)
    longer = Lease(A.kind, "a", 1, 30.0)
    assert held.renewed([A, B], [longer]) == [B]
    assert held.held() == (longer,)
    assert held.next_expiry() == 30.0


def test_a_renewal_of_another_epoch_is_none() -> None:
    held = book(A)
    assert held.renewed([A], [Lease(A.kind, "a", 2, 30.0)]) == [A]
    assert len(held) == 0


def test_what_was_taken_after_the_renewal_was_sent_stays() -> None:
    held = book(A, B)
    assert held.renewed([A], [A]) == []
    assert held.held() == (A, B)


def test_what_was_let_go_meanwhile_does_not_come_back() -> None:
    held = book(A)
    assert held.let_go(A.kind, "a", 2) is None
    assert held.let_go(A.kind, "a", 1) == A
    assert held.renewed([A], [Lease(A.kind, "a", 1, 30.0)]) == []
    assert held.next_expiry() == inf


def test_what_has_ended_is_given_up_once() -> None:
    held = book(A, B)
    assert held.expired(9.9) == []
    assert held.expired(10.0) == [A]
    assert held.expired(10.0) == []


def test_an_older_epoch_takes_no_newer_one_s_place() -> None:
    newer = Lease(A.kind, "a", 2, 5.0)
    held = book(newer)
    held.hold(A)
    assert held.held() == (newer,)
