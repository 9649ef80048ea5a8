"""Ports for tests: some to listen on, of which no other copy of the tests knows, and one to refuse.

They are taken below the range that the system hands out by itself: nobody takes one while its owner
is down.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from stairlib.runtime.ports import can_listen

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether the port can be taken now."""
    return can_listen(LOOPBACK, port)


def reserve(port: int) -> bool:
    """Keeps other copies of the tests off the port for as long as this process lives.

    A daemon that is killed for a while frees its port, and another copy would take it. The UDP port
    of the same number is in nobody's way and says whose it is.
    """
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        mark.bind((LOOPBACK, port))
    except OSError:
        mark.close()
        return False
    mark.detach()
    return True


def free_ports(count: int, step: int = 1) -> int:
    """The first of `count` ports, `step` apart, that are free and now ours, as are those after."""
    for _ in range(500):
        base = random.randrange(10_000, 30_000, 10)
        ports = [base + step * n + more for n in range(count) for more in (0, 1)]
        if all(is_free(port) for port in ports) and all(reserve(port) for port in ports):
            return base
    raise AssertionError("no free ports")


@contextmanager
def refusing() -> Iterator[int]:
    """A TCP port that refuses everybody for as long as the context lasts.

    It is bound and nobody listens: a port that was only found free may be another test's server by
    the time it is asked.
    """
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        yield held.getsockname()[1]
