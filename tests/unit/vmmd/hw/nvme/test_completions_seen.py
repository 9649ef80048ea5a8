"""What a guest on another processor sees of a completion queue while it is written to."""

import mmap
import struct
import subprocess
import sys

import pytest

from vmmd.hw.nvme import bits
from vmmd.hw.nvme.queue import CompletionQueue, SubmissionQueue

ENTRIES = 4
POSTS = 200_000
IDENTIFIER = 0x1234
BYTES = ENTRIES * bits.CQ_ENTRY_BYTES
STOP_AT = 2048

# Another process, as a guest is one: until it is told to stop, it looks for an entry without the
# identifier that all of them have.
WATCHER = f"""
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = memoryview(mmap.mmap(file.fileno(), 0))
words, stop = memory.cast("Q"), memory[{STOP_AT}:]
print("looking", flush=True)
while not stop[0]:
    for place in {list(range(1, 2 * ENTRIES, 2))}:
        word = words[place]
        if word >> 32 & 0xFFFF != {IDENTIFIER}:
            sys.exit(f"an entry was seen that ends in {{word:#018x}}")
"""


@pytest.fixture
def shared(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file:
        yield path, memoryview(mmap.mmap(file.fileno(), 0))


def queues(view, identifier=1):
    completions = CompletionQueue(identifier, ENTRIES, view, 0, interrupts=True)
    commands = SubmissionQueue(7, ENTRIES, memoryview(bytearray(64 * ENTRIES)), completions)
    return completions, commands


def test_nothing_is_seen_that_is_not_meant(shared):
    path, memory = shared
    completions, commands = queues(memory[:BYTES])

    def post():
        completions.reserve(1)
        completions.post(commands, IDENTIFIER, 0)
        assert completions.doorbell(completions.tail)

    for _ in range(ENTRIES):
        post()
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watcher.stdout.readline() == b"looking\n"
    for _ in range(POSTS):
        post()
    memory[STOP_AT] = 1
    _out, said = watcher.communicate(timeout=60)
    assert (watcher.returncode, said.decode()) == (0, "")


def test_an_entry_is_what_the_specification_says():
    view = memoryview(bytearray(BYTES))
    completions, commands = queues(view)
    assert commands.doorbell(2)
    commands.take(2)
    completions.release()
    completions.post(commands, 0xBEEF, 0x4281, 0xCAFEF00D)
    assert struct.unpack_from("<IIHHHH", view) == (
        0xCAFEF00D, 0, 2, 7, 0xBEEF, 0x4281 << 1 | 1,
    )  # fmt: skip
