"""No guest makes the NVMe controller raise, reach beyond its disk, or stop working."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile_guest import LONGEST_RUN, HostileGuest, seeds

STEP = st.integers(0, 13).map(lambda step: bytes((step,)))
RUNS = st.one_of(
    st.binary(max_size=600),
    st.lists(st.tuples(STEP, st.binary(min_size=8, max_size=30)).map(b"".join), max_size=40).map(
        b"".join
    ),
)


@settings(max_examples=200, deadline=None)
@given(RUNS)
@example(b"")
def test_any_run(data: bytes) -> None:
    HostileGuest()(data)


def test_runs_that_get_somewhere() -> None:
    guest = HostileGuest()
    for seed in seeds():
        guest(seed)


@pytest.mark.parametrize("number", range(4))
def test_damaged_runs(number: int) -> None:
    chance = random.Random(number)
    guest = HostileGuest()
    known = seeds()
    for _ in range(60):
        data = bytearray(b"".join(chance.choices(known, k=4)))
        for _ in range(chance.randint(1, 12)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        guest(bytes(data))


def test_a_long_run() -> None:
    chance = random.Random(7)
    HostileGuest()(chance.randbytes(LONGEST_RUN * 12))
