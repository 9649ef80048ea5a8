"""The daemon's data connection and its repairs as in plain text, over TLS: the same tests, with
every daemon, and every client, showing certificates."""

from __future__ import annotations

import functools

import pytest

from tests.certificates import Authority
from tests.contract.downstairs.test_downstairs_data import (
    test_a_connection_cut_in_the_middle_of_a_frame_changes_nothing,
    test_a_large_first_frame_is_not_waited_for,
    test_a_peer_that_never_reads_holds_no_more_than_the_bound,
    test_a_stream_that_is_cancelled_ends_its_session,
    test_bad_bytes_end_their_connection_only,
    test_frames_may_come_in_any_pieces,
    test_many_large_reads_at_once_are_all_answered_though_the_peer_is_slow,
    test_the_same_frames_go_over_a_grpc_stream,
    test_writes_and_flushes_at_full_tilt_keep_their_order,
)
from tests.contract.downstairs.test_downstairs_repair import (
    test_a_source_lost_in_the_middle_fails_the_copy_and_another_goes_on,
    test_a_source_that_is_not_there_is_an_answer_not_a_hang,
    test_an_empty_region_is_filled_from_another,
    test_contents_are_equal_after_a_repair_under_writes,
    test_the_end_of_the_session_ends_its_copies,
)

__all__ = [
    "test_a_connection_cut_in_the_middle_of_a_frame_changes_nothing",
    "test_a_large_first_frame_is_not_waited_for",
    "test_a_peer_that_never_reads_holds_no_more_than_the_bound",
    "test_a_source_lost_in_the_middle_fails_the_copy_and_another_goes_on",
    "test_a_source_that_is_not_there_is_an_answer_not_a_hang",
    "test_a_stream_that_is_cancelled_ends_its_session",
    "test_an_empty_region_is_filled_from_another",
    "test_bad_bytes_end_their_connection_only",
    "test_contents_are_equal_after_a_repair_under_writes",
    "test_frames_may_come_in_any_pieces",
    "test_many_large_reads_at_once_are_all_answered_though_the_peer_is_slow",
    "test_the_end_of_the_session_ends_its_copies",
    "test_the_same_frames_go_over_a_grpc_stream",
    "test_writes_and_flushes_at_full_tilt_keep_their_order",
]


@pytest.fixture
def serve(serve, tmp_path):
    """As the fixture of the same name, with certificates."""
    files = Authority(tmp_path / "certificates").issue("daemon", "downstairs1")
    return functools.partial(serve, tls=files)
