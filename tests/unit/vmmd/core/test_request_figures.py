"""What a guest asked by kind and size, and what failed by kind and reason."""

from __future__ import annotations

from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.core.request_figures import REASONS, SIZE_BOUNDS, RequestFigures, op_of


def test_sizes_are_counted_by_the_bound_they_do_not_pass() -> None:
    figures = RequestFigures()
    figures.asked(
        [
            Request(BlockOp.READ, 1, 0, 1),
            Request(BlockOp.READ, 2, 0, 2),
            Request(BlockOp.READ, 3, 0, 3),
            Request(BlockOp.WRITE, 4, 0, 256),
            Request(BlockOp.FLUSH, 5),
            # 2 GiB: more than the last bound.
            Request(BlockOp.DISCARD, 6, 0, 1 << 19),
        ],
        4096,
    )
    write, read, discard = figures.sizes()
    told = dict(zip(SIZE_BOUNDS, read.at_most, strict=True))
    assert [told[bound] for bound in (2048, 4096, 8192, 16384, 1 << 30)] == [0, 1, 2, 3, 3]
    assert (read.kind, read.count) == ("read", 3)
    told = dict(zip(SIZE_BOUNDS, write.at_most, strict=True))
    assert (told[1 << 19], told[1 << 20]) == (0, 1)
    assert (discard.kind, discard.at_most[-1], discard.count) == ("discard", 0, 1)
    assert figures.discarded_bytes == 1 << 31


def test_a_failure_is_told_with_what_was_asked_and_why() -> None:
    figures = RequestFigures()
    assert len(figures.failures()) == 4 * len(REASONS)
    assert not any(count for _kind, _reason, count in figures.failures())
    batch = [Request(BlockOp.READ, one := object()), Request(BlockOp.WRITE, two := object())]
    for token, status in (
        (one, BlockStatus.FAILED),
        (two, BlockStatus.READ_ONLY),
        (two, BlockStatus.ABORTED),
    ):
        figures.failed(op_of(batch, token), status)
    figures.failed(BlockOp.DISCARD, BlockStatus.UNSUPPORTED)
    assert {each for each in figures.failures() if each[2]} == {
        ("read", "failed", 1),
        ("write", "read_only", 1),
        ("write", "failed", 1),
        ("discard", "unsupported", 1),
    }
