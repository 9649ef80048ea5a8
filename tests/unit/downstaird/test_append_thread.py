"""The thread that writes and syncs without the interpreter."""

import asyncio
import errno
import gc
import os
import threading

import pytest

from downstaird.append_thread import AppendThread
from tests.native_forms import needs_compiled

pytestmark = needs_compiled


@pytest.fixture
async def thread():
    made = AppendThread("test")
    yield made
    made.close()


async def appended(thread, file, front, data, end, offset):
    """What the appending came to."""
    over = asyncio.Event()
    thread.appender.begin(file, front, data, end, offset)
    thread.wait(over.set)
    await asyncio.wait_for(over.wait(), 30)
    assert not thread.appender.has_ended(), "it is told once"
    return thread.appender.outcome


async def test_parts_lie_one_after_the_other(thread, tmp_path):
    path = tmp_path / "log"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    data = os.urandom(3 << 20)
    assert await appended(thread, file, b"front", memoryview(data), b"", 7) == (0, True)
    assert await appended(thread, file, b"", bytearray(b"x"), b"end", 7) == (0, True)
    os.close(file)
    assert path.read_bytes() == bytes(7) + b"xend" + b"t" + data


@pytest.mark.parametrize(
    ("path", "flags", "expected"),
    [
        ("/dev/full", os.O_WRONLY, (errno.ENOSPC, False)),
        ("/dev/null", os.O_RDONLY, (errno.EBADF, False)),
        # It takes all, and has nothing to sync.
        ("/dev/null", os.O_WRONLY, (errno.EINVAL, True)),
    ],
)
async def test_a_failure_says_what_failed(thread, path, flags, expected):
    file = os.open(path, flags)
    try:
        assert await appended(thread, file, b"a", b"b", b"c", 0) == expected
        # The next one is not concerned.
        assert await appended(thread, file, b"a", b"b", b"c", 0) == expected
    finally:
        os.close(file)


async def test_what_was_begun_is_done_before_it_ends(tmp_path):
    thread = AppendThread("test")
    file = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    thread.appender.begin(file, b"a", b"b", b"c", 0)
    thread.wait(lambda: None)
    thread.close()
    assert os.pread(file, 9, 0) == b"abc"
    os.close(file)


def descriptors():
    """Of this process; what others gave up for the collector is gone."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_it_need_not_have_done_anything():
    before = descriptors()
    AppendThread("test").close()
    assert descriptors() == before


async def test_it_leaves_no_descriptor_and_no_thread(tmp_path):
    file = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    before, threads = descriptors(), threading.active_count()
    thread = AppendThread("test")
    assert await appended(thread, file, b"a", b"b", b"c", 0) == (0, True)
    assert threading.active_count() == threads + 1
    thread.close()
    # The thread is kept here: nothing is left to the collector.
    assert (descriptors(), threading.active_count()) == (before, threads)
    thread.close()
    os.close(file)


async def test_one_at_a_time(thread, tmp_path):
    file = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    thread.appender.begin(file, b"a", b"b", b"c", 0)
    with pytest.raises(AssertionError):
        thread.appender.begin(file, b"d", b"e", b"f", 0)
    over = asyncio.Event()
    thread.wait(over.set)
    await asyncio.wait_for(over.wait(), 30)
    assert thread.appender.outcome == (0, True)
    assert os.pread(file, 9, 0) == b"abc"
    os.close(file)
