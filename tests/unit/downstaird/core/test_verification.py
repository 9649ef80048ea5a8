"""Checking a region: what is read, what is found."""

from downstaird.core.verification import BAD_BLOCKS_NAMED_MAX, Verification
from stairlib.model.context import plain_contexts


def check(engine):
    verification = Verification(engine)
    for _ in verification.steps():
        pass
    return verification


def test_holes_are_not_read(engine):
    engine.write(3, plain_contexts(bytes(1024), 512), bytes(1024))
    engine.write(40, plain_contexts(b"x" * 512, 512), b"x" * 512)
    found = check(engine)
    assert (found.blocks_read, found.blocks_bad, found.extents_done) == (3, 0, 8)
    assert [call for call in engine.calls if call[0] == "read"] == [("read", 3, 2), ("read", 40, 1)]


def test_damage_is_found_and_named(engine):
    engine.write(20, plain_contexts(b"x" * 1024, 512), b"x" * 1024)
    engine.data[21 * 512] ^= 1
    found = check(engine)
    assert found.blocks_bad == 1
    assert found.bad_blocks[0].block == 21


def test_what_cannot_be_read_counts_as_bad_and_the_rest_is_checked(engine):
    engine.write(0, plain_contexts(b"x" * 512, 512), b"x" * 512)
    engine.write(64, plain_contexts(b"x" * 512, 512), b"x" * 512)
    engine.fail_with = "EXTENT_FAULTED"
    found = check(engine)
    assert (found.blocks_read, found.blocks_bad) == (2, 2)
    assert "disk is gone" in found.bad_blocks[0].reason


def test_not_more_than_a_page_of_blocks_is_named(make_engine):
    engine = make_engine()
    count = engine.definition.geometry.block_count
    engine.write(0, plain_contexts(b"x" * 512 * count, 512), b"x" * 512 * count)
    engine.data[:] = bytes(len(engine.data))
    found = check(engine)
    assert found.blocks_bad == count
    assert len(found.bad_blocks) == min(count, BAD_BLOCKS_NAMED_MAX)
