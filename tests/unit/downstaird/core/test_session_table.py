"""Grants, tokens and their ends."""

import uuid

import pytest

from downstaird.core import session_table
from downstaird.core.promotion import Proposal
from downstaird.core.session_table import TOKEN_SECONDS, SessionTable
from stairlib.model.errors import LimitError, RefusedError

A, B = uuid.UUID(int=1), uuid.UUID(int=2)


def proposal(upstairs=A, *, read_only=False, generation=1):
    return Proposal(upstairs, uuid.uuid4(), generation, read_only, False, (1,), None, None)


def test_a_token_is_good_once():
    table = SessionTable()
    grant, ended = table.grant(proposal(), b"t", 0.0)
    assert ended == []
    assert table.connect(b"t", 1.0) is grant
    with pytest.raises(RefusedError):
        table.connect(b"t", 1.0)
    with pytest.raises(RefusedError):
        table.connect(b"", 1.0)


def test_a_token_is_good_for_a_while():
    table = SessionTable()
    table.grant(proposal(), b"t", 0.0)
    with pytest.raises(RefusedError):
        table.connect(b"t", TOKEN_SECONDS)
    assert len(table.expire(TOKEN_SECONDS)) == 1
    assert table.writer is None


def test_a_connected_session_does_not_expire():
    table = SessionTable()
    table.grant(proposal(), b"t", 0.0)
    table.connect(b"t", 1.0)
    assert table.expire(1000.0) == []
    assert table.writer is not None


def test_a_new_writer_ends_the_one_before_connected_or_not():
    table = SessionTable()
    first, _ = table.grant(proposal(), b"1", 0.0)
    second, ended = table.grant(proposal(), b"2", 0.0)
    assert ended == [first]
    with pytest.raises(RefusedError):
        table.connect(b"1", 0.0)
    assert table.connect(b"2", 0.0) is second


def test_the_end_of_an_old_connection_does_not_remove_the_new_session():
    table = SessionTable()
    first, _ = table.grant(proposal(), b"1", 0.0)
    second, _ = table.grant(proposal(), b"2", 0.0)
    assert not table.remove(first.serial)
    assert table.writer is second
    assert table.remove(second.serial)
    assert table.writer is None


def test_readers_share_a_region_one_session_each():
    table = SessionTable()
    first, _ = table.grant(proposal(A, read_only=True), b"1", 0.0)
    other, ended = table.grant(proposal(B, read_only=True), b"2", 0.0)
    assert ended == []
    again, ended = table.grant(proposal(A, read_only=True), b"3", 0.0)
    assert ended == [first]
    assert table.grants() == [other, again]
    assert table.writer is None


def test_readers_are_bounded(monkeypatch):
    monkeypatch.setattr(session_table, "READERS_MAX", 2)
    table = SessionTable()
    table.grant(proposal(uuid.uuid4(), read_only=True), b"1", 0.0)
    table.grant(proposal(A, read_only=True), b"2", 0.0)
    with pytest.raises(LimitError):
        table.grant(proposal(uuid.uuid4(), read_only=True), b"3", 0.0)
    table.grant(proposal(A, read_only=True), b"4", 0.0)
