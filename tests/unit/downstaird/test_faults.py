"""Trouble on purpose."""

import random

import pytest

from downstaird.faults import CHANCE, LOSSY_SECONDS, Delays, FaultPlan, with_faults
from stairlib.model.errors import DataError


def test_without_faults_the_engine_is_the_engine(engine):
    assert with_faults(engine, FaultPlan(lossy=True), random.Random(1)) is engine


@pytest.mark.parametrize(
    ("plan", "call"),
    [
        (FaultPlan(read_errors=CHANCE), lambda engine: engine.read(0, 1)),
        (FaultPlan(flush_errors=CHANCE), lambda engine: engine.begin_flush(1, 1)),
        (
            FaultPlan(write_errors=CHANCE),
            lambda engine: engine.write(0, engine.contexts(0, 1), bytes(512)),
        ),
    ],
)
def test_one_call_in_four_fails_and_the_rest_pass(engine, plan, call):
    faulty, failed = with_faults(engine, plan, random.Random(7)), 0
    for _ in range(400):
        try:
            call(faulty)
        except DataError:
            failed += 1
    assert 60 < failed < 140
    assert len(engine.calls) == 400 - failed
    assert faulty.definition is engine.definition


def test_a_probability_is_taken_as_given(engine):
    faulty = with_faults(engine, FaultPlan(read_errors=1.0), random.Random(7))
    for _ in range(20):
        with pytest.raises(DataError, match="on purpose"):
            faulty.read(0, 1)


def test_delays():
    assert Delays(FaultPlan(), random.Random(1)).next() == 0.0
    assert Delays(FaultPlan(latency_seconds=0.5), random.Random(1)).next() == 0.5
    lossy = Delays(FaultPlan(lossy=True), random.Random(1))
    assert {lossy.next() for _ in range(100)} == {0.0, LOSSY_SECONDS}


def test_a_session_may_be_lossy_where_the_daemon_is_not():
    delays = Delays(FaultPlan(latency_seconds=0.5), random.Random(1))
    assert {delays.next(lossy=True) for _ in range(100)} == {0.5, 0.5 + LOSSY_SECONDS}
    assert {delays.next() for _ in range(100)} == {0.5}
