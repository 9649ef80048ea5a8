"""Freed buffers stay with the process: the next ones cost no faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from stairlib.runtime.memory import keep_freed_buffers

if sys.argv[1] == "keep":
    keep_freed_buffers()

def work():
    for _ in range(50):
        buffers = [bytearray(1 << 20) for _ in range(4)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_buffers_of_a_mib_are_used_again():
    assert faults("keep") * 10 < faults("do not")
