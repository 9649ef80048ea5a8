"""The simulated network keeps TCP's promises, and no others."""

from __future__ import annotations

import random

import pytest

from stairlib.sim.network import Network
from stairlib.sim.schedule import Schedule


@pytest.fixture
def schedule() -> Schedule:
    return Schedule()


@pytest.fixture
def network(schedule) -> Network:
    return Network(schedule, random.Random(1), 0.001, 0.1)


def listening(end):
    got: list[object] = []
    end.received = got.append
    end.closed = lambda reason: got.append(f"closed: {reason}")
    return got


def test_things_arrive_in_order_and_once(schedule, network) -> None:
    connection = network.connect("a", "b")
    got = listening(connection.server)
    for number in range(50):
        connection.client.send(number)
    schedule.run(10)
    assert got == list(range(50))


def test_what_waited_in_a_blocked_way_arrives_in_order_when_it_opens(schedule, network) -> None:
    connection = network.connect("a", "b")
    got = listening(connection.server)
    connection.client.send(0)
    network.block("a", "b")
    for number in range(1, 20):
        connection.client.send(number)
        schedule.run(0.05)
    assert got == []
    network.unblock("a", "b")
    connection.client.send(20)
    schedule.run(10)
    assert got == list(range(21))


def test_an_end_that_hears_nothing_gives_up_and_tells_the_other_one(schedule, network) -> None:
    connection = network.connect("a", "b")
    client, server = listening(connection.client), listening(connection.server)
    network.block("a", "b")
    schedule.run(14)
    assert (client, server) == ([], [])
    schedule.run(12)
    assert server == ["closed: nothing was heard"]
    assert client == ["closed: nothing was heard"]


def test_a_host_without_power_is_silent_and_one_that_is_back_resets(schedule, network) -> None:
    connection = network.connect("a", "b")
    client = listening(connection.client)
    network.went_dark("b")
    schedule.run(5)
    assert client == []
    network.came_back("b")
    schedule.run(6)
    assert client == ["closed: connection reset"]


def test_a_killed_process_closes_its_connections(schedule, network) -> None:
    connection = network.connect("a", "b")
    client = listening(connection.client)
    network.killed("b")
    schedule.run(1)
    assert client == ["closed: connection reset"]


def test_a_call_whose_answer_is_lost_was_carried_out(schedule, network) -> None:
    done: list[str] = []

    def serve(reply) -> None:
        done.append("served")
        reply("answer")

    network.block("b", "a")
    network.call("a", "b", serve, done.append, lambda: done.append("late"), 10.0)
    schedule.run(11)
    assert done == ["served", "late"]
    network.unblock("b", "a")
    schedule.run(10)
    assert done == ["served", "late"]
