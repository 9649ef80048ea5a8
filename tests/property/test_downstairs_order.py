"""The work queue against a naive model that compares every pair of ops."""

from hypothesis import given, settings
from hypothesis import strategies as st

from downstaird.core.work_queue import Claim, Order, WorkQueue

ASYNCHRONOUS = {"flush", "copy"}
ORDERS = {
    "read": Order.LOOK,
    "write": Order.CHANGE,
    "flush": Order.BARRIER,
    "states": Order.SURVEY,
    "copy": Order.FOLLOW,
    "noop": Order.FREE,
}


def must_not_pass(earlier, later):
    """Whether `later` must start after `earlier`, from the rules as they are told to people."""
    overlap = earlier["first"] < later["end"] and later["first"] < earlier["end"]
    pair = (earlier["kind"], later["kind"])
    if pair in {("read", "write"), ("write", "read"), ("write", "write")}:
        return overlap
    return pair in {
        ("write", "flush"),
        ("flush", "write"),
        ("flush", "flush"),
        ("write", "states"),
        ("states", "write"),
        ("flush", "states"),
        ("states", "flush"),
        ("flush", "copy"),
        ("copy", "copy"),
    }


class Model:
    """Each op is waiting, running or done; whatever may start, starts, in arrival order."""

    def __init__(self):
        self.ops = []
        self.state = {}
        self.lane = None
        self.started = []

    def offer(self, op):
        self.ops.append(op)
        self.state[op["job"]] = "waiting"
        self.settle()

    def finish(self, job):
        for other in [job, *self.ops_of(job).get("joined", [])]:
            self.state[other] = "done"
        if self.lane == job:
            self.lane = None
        self.settle()

    def ops_of(self, job):
        return next(op for op in self.ops if op["job"] == job)

    def settle(self):
        for index, op in enumerate(self.ops):
            if self.state[op["job"]] != "waiting":
                continue
            waiting_before = [
                other for other in self.ops[:index] if self.state[other["job"]] == "waiting"
            ]
            if any(must_not_pass(other, op) for other in waiting_before):
                continue
            if any(self.state.get(job, "done") != "done" for job in op["deps"]):
                continue
            if op["kind"] == "flush" and self.lane is not None:
                continue
            self.started.append(op["job"])
            if op["kind"] in ASYNCHRONOUS:
                self.state[op["job"]] = "running"
                if op["kind"] == "flush":
                    self.lane = op["job"]
            else:
                self.state[op["job"]] = "done"


class Real:
    """The queue driven as a session drives it, without joining, so that both can be compared."""

    def __init__(self):
        self.queue = WorkQueue()
        self.started = []

    def offer(self, op):
        claim = Claim(
            op["job"],
            ORDERS[op["kind"]],
            None,
            op["first"],
            op["end"],
            dependencies=frozenset(op["deps"]),
            asynchronous=op["kind"] in ASYNCHRONOUS,
            needs_lane=op["kind"] == "flush",
        )
        if self.queue.offer(claim):
            self.started.append(op["job"])

    def finish(self, job, *, lane):
        self.queue.finish(job)
        if lane:
            self.queue.lane_free = True
        self.started += [claim.job for claim in self.queue.release()]


OPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(ORDERS)),
        st.integers(0, 900),
        st.integers(0, 300),
        st.lists(st.integers(0, 30), max_size=2),
        st.booleans(),
        st.integers(0, 5),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(OPS)
def test_the_queue_starts_what_the_model_starts(steps):
    model, real = Model(), Real()
    for job, (kind, first, length, back, finish, which) in enumerate(steps):
        ranged = kind in {"read", "write"}
        op = {
            "job": job,
            "kind": kind,
            "first": first if ranged else 0,
            "end": first + length if ranged else 0,
            "deps": [job - 1 - distance for distance in back],
        }
        model.offer(op)
        real.offer(op)
        assert sorted(real.started) == sorted(model.started)
        running = [each for each, state in model.state.items() if state == "running"]
        if finish and running:
            done = running[which % len(running)]
            lane = model.lane == done
            model.finish(done)
            real.finish(done, lane=lane)
            assert real.started == model.started
    while running := [each for each, state in model.state.items() if state == "running"]:
        lane = model.lane == running[0]
        model.finish(running[0])
        real.finish(running[0], lane=lane)
    assert real.started == model.started
    assert len(real.started) == len(steps)
    assert real.queue.idle
