"""When what goes over a wire arrives, to the microsecond, on a clock of the test's own."""

import random

import pytest

from stairlib.link.shape import (
    PIECE_BYTES,
    QUEUE_SECONDS,
    RETRANSMIT_SECONDS,
    SEGMENT_BYTES,
    Shape,
    Wire,
    bytes_per_second,
    seconds,
    share,
)
from stairlib.model.errors import InvalidRequestError


def wire(**values):
    return Wire(Shape(**values), random.Random(1))


def test_nothing_is_in_the_way_of_a_clear_one():
    clear = wire()
    assert clear.send(1 << 30, 5.0) == 5.0
    assert clear.wait(5.0) == 0
    assert clear.piece_bytes == PIECE_BYTES


def test_a_delay_is_added_to_each_and_holds_up_nothing():
    late = wire(delay=0.25)
    assert [late.send(1000, now) for now in (1.0, 1.5)] == [1.25, 1.75]
    assert late.wait(1.0) == 0


def test_jitter_adds_up_to_so_much():
    arrivals = [wire(delay=1, jitter=0.5).send(1, 0.0)]
    shaky = wire(delay=1, jitter=0.5)
    arrivals += [shaky.send(1, 0.0) for _ in range(1000)]
    assert 1 <= min(arrivals) < 1.01
    assert 1.49 < max(arrivals) <= 1.5


def test_a_rate_is_that_of_all_who_send():
    slow = wire(rate=1000)
    assert [slow.send(500, 10.0) for _ in range(4)] == [10.5, 11.0, 11.5, 12.0]
    # Idle since: no credit is saved up.
    assert slow.send(500, 20.0) == 20.5


def test_who_would_wait_longer_than_the_queue_takes_waits_before_it():
    slow = wire(rate=1000)
    slow.send(1000, 10.0)
    assert slow.wait(10.0) == pytest.approx(1 - QUEUE_SECONDS)
    assert slow.wait(11.0 - QUEUE_SECONDS) == pytest.approx(0)
    assert slow.wait(12.0) == 0


def test_pieces_of_a_slow_one_are_small_so_that_all_have_their_turn():
    assert wire(rate=1e6).piece_bytes == 20_000
    assert wire(rate=1).piece_bytes == 1
    assert wire(rate=1e12).piece_bytes == PIECE_BYTES


def test_a_lost_packet_is_a_time_without_bytes():
    assert wire(loss=1.0).send(1, 0.0) == RETRANSMIT_SECONDS
    assert wire(loss=1.0, delay=0.5).send(1, 0.0) == 0.5 + 2 * 0.5
    # An end carries nothing that could be lost.
    assert wire(loss=1.0).send(0, 0.0) == 0


def test_the_more_packets_the_likelier_a_loss():
    def losses(size):
        lossy = wire(loss=0.01)
        return sum(lossy.send(size, 0.0) > 0 for _ in range(4000))

    assert losses(1) == pytest.approx(40, abs=20)
    assert losses(20 * SEGMENT_BYTES) == pytest.approx(4000 * (1 - 0.99**20), abs=120)


def test_what_is_not_named_stays():
    before = Shape(delay=1, rate=5, stalled=True)
    assert Shape.from_json({"rate": 7}, before) == Shape(delay=1, rate=7, stalled=True)
    assert Shape.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    "values",
    [
        {"delay": -1}, {"delay": 61}, {"loss": 1.01}, {"rate": 0.5}, {"jitter": "1"},
        {"delay": float("nan")}, {"bandwidth": 1},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(values):
    with pytest.raises(InvalidRequestError):
        Shape.from_json(values)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (seconds, "20ms", 0.02), (seconds, "1.5 s", 1.5), (seconds, "2", 2),
        (seconds, "50us", 5e-5),
        (bytes_per_second, "4MiB", 4 << 20), (bytes_per_second, "512K/s", 512 << 10),
        (bytes_per_second, "8mbit", 1e6), (bytes_per_second, "0", 0),
        (share, "2%", 0.02), (share, "0.5", 0.5),
    ],
)  # fmt: skip
def test_values_as_people_write_them(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize("read", [seconds, bytes_per_second, share])
@pytest.mark.parametrize("text", ["", "fast", "1 2", "3 parsecs", "-1", "1e9"])
def test_others_are_refused_with_an_example(read, text):
    with pytest.raises(InvalidRequestError, match="write for example"):
        read(text)
