"""Records, and the chain they make over two files."""

from __future__ import annotations

import numpy as np
import pytest

from downstaird.core.log import LOG_NAMES, Log, LogReader
from downstaird.core.log_record import (
    EXTENT,
    HEADER,
    HEADER_BYTES,
    Record,
    decode,
    encode,
    parse_head,
    record_bytes,
)
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import DataError

TAG = 77
SIZE = 512


@pytest.fixture
def files():
    disk = MemoryDisk()
    return [disk.open(name, create=True) for name in LOG_NAMES]


def log_of(files):
    return Log(files, tag=TAG, block_size=SIZE, zero_bytes=4096)


def replay(files, *, first=0, sequence=1, chain=0, void=(), tag=TAG, followed=0):
    reader = LogReader(files, tag=tag, block_size=SIZE, void=void)
    return reader.replay(first, sequence, chain, followed)


def record_of(*addresses, flush=1):
    contexts = np.arange(len(addresses) * 4, dtype=np.uint64).reshape(-1, 4) + flush
    return Record(
        flush=flush, generation=3, addresses=np.array(addresses, dtype=np.int64), contexts=contexts
    )


def data_of(record):
    return [bytes([record.flush]) * SIZE * len(record.addresses)]


def append(log, *addresses, flush=1):
    record = record_of(*addresses, flush=flush)
    return log.append(record, data_of(record))


def test_a_record_comes_back_as_it_was() -> None:
    extents = np.zeros(2, dtype=EXTENT)
    extents["extent"] = (4, 9)
    extents["flush"] = (8, 1 << 63)
    contexts = np.arange(12, dtype=np.uint64).reshape(3, 4)
    record = Record(
        sequence=5,
        previous=99,
        flush=8,
        generation=2,
        extents=extents,
        remaps=np.array([[3, 7], [4, 0]], dtype=np.uint32),
        discards=np.array([[100, 3]], dtype=np.int64),
        addresses=np.array([9, 10, 40], dtype=np.int64),
        contexts=contexts,
        remap_contexts=np.full((8, 4), 6, dtype=np.uint64),
    )
    raw = b"".join(encode(record, [b"a" * SIZE, b"b" * (2 * SIZE)], tag=TAG, block_size=SIZE))
    assert len(raw) == record_bytes(record.table_bytes, record.data_bytes, SIZE)
    assert len(raw) % 4096 == 0
    head = parse_head(raw[:HEADER_BYTES], tag=TAG, block_size=SIZE)
    found = decode(head, raw[HEADER_BYTES : HEADER_BYTES + head.table_bytes])
    for name in ("extents", "remaps", "discards", "addresses", "contexts", "remap_contexts"):
        assert (getattr(found, name) == getattr(record, name)).all(), name
    assert (found.sequence, found.previous, found.flush, found.generation) == (5, 99, 8, 2)
    assert found.checksum == record.checksum


def test_any_changed_byte_of_header_or_table_is_noticed() -> None:
    record = record_of(1, 2)
    raw = bytearray(b"".join(encode(record, data_of(record), tag=TAG, block_size=SIZE)))
    for at in [*range(HEADER.size), *range(HEADER_BYTES, HEADER_BYTES + record.table_bytes, 7)]:
        raw[at] ^= 0x10
        head = parse_head(bytes(raw[:HEADER_BYTES]), tag=TAG, block_size=SIZE)
        if head is not None:
            table = bytes(raw[HEADER_BYTES : HEADER_BYTES + head.table_bytes])
            assert decode(head, table) is None, at
        raw[at] ^= 0x10


def test_records_follow_each_other_over_both_files(files) -> None:
    log = log_of(files)
    places = [append(log, 1, 2), append(log, 3, flush=2)]
    log.switch()
    places.append(append(log, 4, flush=3))
    assert [(place.log, place.offset) for place in places] == [(0, 0), (0, 4096), (1, 0)]
    chain = replay(files)
    assert [found.place for found in chain.found] == places
    assert [found.record.flush for found in chain.found] == [1, 2, 3]
    assert (chain.active, chain.ends, chain.next_sequence) == (1, (8192, 4096), 4)
    assert chain.chain == log.chain
    assert files[0].pread(SIZE, places[0].data_offset) == b"\1" * SIZE


def test_one_record_costs_one_sync(files) -> None:
    log = log_of(files)
    append(log, 1)
    assert files[0]._disk.syncs == ["log-0"]


def test_a_retired_file_is_not_taken_again(files) -> None:
    log = log_of(files)
    append(log, 1)
    append(log, 2)
    log.switch()
    append(log, 3)
    sequence, chain = log.next_sequence - 1, replay(files).found[1].record.checksum
    log.retire(0, keep_bytes=4096)
    found = replay(files, first=1, sequence=sequence, chain=chain)
    assert [each.record.sequence for each in found.found] == [3]
    assert found.active == 1
    # The older state file can be read with it still; once it is used again, space is given back.
    assert [each.record.sequence for each in replay(files).found] == [1, 2, 3]
    log.switch()
    assert files[0].size() == 4096


def test_what_earlier_rounds_left_behind_the_chain_is_not_read(files, monkeypatch) -> None:
    log = log_of(files)
    append(log, 1)
    append(log, 2)
    chain = log.chain
    log.switch()
    append(log, 3)
    log.retire(0, keep_bytes=1 << 20)
    places = []
    pread = files[0].pread

    def noted(size, offset):
        places.append(offset)
        return pread(size, offset)

    monkeypatch.setattr(files[0], "pread", noted)
    found = replay(files, first=1, sequence=3, chain=chain)
    assert [each.record.sequence for each in found.found] == [3]
    assert found.lost is None
    # Tables lie behind their headers.
    assert places
    assert not any(place % 4096 == HEADER_BYTES for place in places)


def test_a_torn_last_record_ends_the_chain(files) -> None:
    log = log_of(files)
    append(log, 1)
    place = append(log, 2)
    files[0].pwritev([b"torn"], place.data_offset + 100)
    assert [each.record.sequence for each in replay(files).found] == [1]


def test_a_stale_record_with_the_right_number_is_not_taken(files) -> None:
    log = log_of(files)
    append(log, 1)
    # A record that was torn, is replaced, and has left a whole one behind it.
    other = log_of(files)
    other.resume(0, (4096, 0), 2, log.chain)
    append(other, 2, flush=2)
    append(other, 3, flush=3)
    append(log, 2, flush=9)
    assert [each.record.flush for each in replay(files).found] == [1, 9]


def test_records_of_another_region_are_not_taken(files) -> None:
    append(log_of(files), 1)
    with pytest.raises(DataError, match="not this region's") as foreign:
        replay(files, tag=TAG + 1)
    assert foreign.value.metadata == {"file": "memory/log-0", "offset": "0"}


def test_a_changed_tag_is_damage_and_not_another_region(files) -> None:
    log = log_of(files)
    append(log, 1)
    append(log, 2)
    files[0].pwritev([b"\xff"], 9)
    chain = replay(files)
    assert chain.lost is not None
    assert (chain.lost.offset, chain.lost.sequence, chain.lost.highest) == (0, 1, 2)


def test_a_void_record_is_skipped(files) -> None:
    log = log_of(files)
    append(log, 1)
    append(log, 2)
    chain = replay(files, void=(2,))
    assert [each.record.sequence for each in chain.found] == [1]
    assert chain.next_sequence == 3
    log.resume(0, chain.ends, chain.next_sequence, chain.chain)
    append(log, 5)
    assert [each.record.sequence for each in replay(files, void=(2,)).found] == [1, 3]


@pytest.mark.parametrize("damage", ["header", "table"])
@pytest.mark.parametrize("later", ["same file", "other file"])
def test_a_lost_record_before_a_whole_one_is_said_with_its_place(files, damage, later) -> None:
    log = log_of(files)
    append(log, 1)
    place = append(log, 2)
    if later == "other file":
        log.switch()
    append(log, 3)
    append(log, 4)
    at = {"header": place.offset, "table": place.offset + 130}[damage]
    files[0].pwritev([b"\xff\xfe\xfd"], at)
    chain = replay(files)
    assert [each.record.sequence for each in chain.found] == [1]
    assert chain.lost is not None
    assert chain.lost.file == "memory/log-0"
    assert (chain.lost.offset, chain.lost.sequence, chain.lost.highest) == (4096, 2, 4)
    assert "4096" in chain.lost.text


def test_a_record_with_damaged_data_is_kept_when_a_later_one_proves_it(files) -> None:
    log = log_of(files)
    places = [append(log, address) for address in (1, 2, 3)]
    files[0].pwritev([b"\xff\xfe\xfd"], places[1].data_offset)
    chain = replay(files)
    assert [each.whole for each in chain.found] == [True, False, True]
    assert (chain.lost, chain.next_sequence) == (None, 4)


def test_a_record_that_the_state_knows_of_is_not_torn(files) -> None:
    log = log_of(files)
    append(log, 1)
    place = append(log, 2)
    files[0].pwritev([b"\xff\xfe\xfd"], place.data_offset)
    chain = replay(files, followed=2)
    assert [each.whole for each in chain.found] == [True, False]
    assert (chain.lost, chain.next_sequence) == (None, 3)
    files[0].pwritev([b"\xff\xfe\xfd"], place.offset)
    chain = replay(files, followed=2)
    assert chain.lost is not None
    assert (chain.lost.offset, chain.lost.sequence, chain.lost.highest) == (4096, 2, 2)


def test_the_last_record_is_torn_when_its_data_is_damaged(files) -> None:
    log = log_of(files)
    first = append(log, 1)
    log.switch()
    place = append(log, 2)
    files[1].pwritev([b"\xff\xfe\xfd"], place.data_offset)
    chain = replay(files)
    assert [each.place for each in chain.found] == [first]
    assert (chain.lost, chain.next_sequence, chain.active) == (None, 2, 0)


@pytest.mark.parametrize("later", [0, 1, 2])
@pytest.mark.parametrize("before", [0, 1])
def test_a_torn_record_is_made_anew_in_the_other_file(files, before, later) -> None:
    """After a power cut a checkpoint begins at once, and the next flush takes the same number."""
    log = log_of(files)
    for number in range(before):
        append(log, number, flush=number + 1)
    again = log_of(files)
    again.resume(0, (log.active_bytes, 0), log.next_sequence, log.chain)
    torn = append(log, 7, flush=7)
    files[0].pwritev([b"\xff\xfe\xfd"], torn.data_offset)
    assert [each.record.sequence for each in replay(files).found] == [*range(1, before + 1)]
    again.switch()
    for number in range(later + 1):
        append(again, 8, flush=8 + number)
    chain = replay(files)
    flushes = [*range(1, before + 1), *range(8, 8 + later + 1)]
    assert [each.record.flush for each in chain.found] == flushes
    assert all(each.whole for each in chain.found)
    assert (chain.lost, chain.next_sequence) == (None, before + later + 2)
    assert (chain.active, chain.chain) == (1, again.chain)


def test_what_replaced_a_torn_record_may_be_torn_as_well(files) -> None:
    log = log_of(files)
    first = append(log, 1)
    again = log_of(files)
    again.resume(0, (log.active_bytes, 0), log.next_sequence, log.chain)
    torn = append(log, 7, flush=7)
    again.switch()
    new = append(again, 8, flush=8)
    for file, place in zip(files, (torn, new), strict=True):
        file.pwritev([b"\xff\xfe\xfd"], place.data_offset)
    chain = replay(files)
    assert [each.place for each in chain.found] == [first]
    assert (chain.lost, chain.next_sequence) == (None, 2)
    # Known to have been synced, and a torn one of the same number is no proof of another.
    chain = replay(files, followed=2)
    assert [(each.place, each.whole) for each in chain.found] == [(first, True), (torn, False)]


def test_a_newer_version_is_refused(files, monkeypatch) -> None:
    monkeypatch.setattr("downstaird.core.log_record.VERSION", 2)
    append(log_of(files), 1)
    with pytest.raises(DataError) as newer:
        replay(files)
    assert newer.value.reason == "FORMAT_VERSION"
    assert newer.value.metadata["offset"] == "0"
