"""A repair moves its bytes beside the loop: while its threads are held, guests go on at both
ends."""

import asyncio
import os
import sys
import threading
from collections import defaultdict

import pytest

from downstaird import extent_copier, repair_intake
from downstaird.core.repair_work import MergeJob, ReadJob
from downstaird.repair_intake import Intake
from downstaird.repair_sending import RepairSending
from downstaird.repair_threads import NICER_BY
from downstaird.services import repair_service
from downstaird.store.files import DirectoryFile
from stairlib.model.errors import DataError
from stairlib.wire.frame import OpKind, OpStatus
from tests.contract.downstairs.test_downstairs_repair import (
    EXTENTS,
    PER_EXTENT,
    begin,
    copies,
    equal,
    eventually,
    flush,
    pattern,
)

WAIT_SECONDS = 30


def in_messages(monkeypatch):
    """As from a source that offers no connection for the blocks."""
    monkeypatch.setattr(RepairSending, "offer", lambda _self: b"")


class Held:
    """Stands where the threads must pass; notes which came."""

    def __init__(self, inner):
        self.inner = inner
        self.came = threading.Event()
        self.may_go = threading.Event()
        self.threads = set()

    def run(self, *job):
        self.threads.add(threading.current_thread().name)
        self.came.set()
        assert self.may_go.wait(WAIT_SECONDS)
        return self.inner(*job)


@pytest.fixture(params=[(MergeJob, "run"), (ReadJob, "run"), (ReadJob, "send")])
def held(request, monkeypatch):
    owner, name = request.param
    found = Held(getattr(owner, name))
    monkeypatch.setattr(owner, name, lambda *job: found.run(*job))
    if name == "run":
        in_messages(monkeypatch)
    yield found
    found.may_go.set()


async def test_guests_go_on_while_the_threads_of_a_repair_are_held(serve, upstairs, tmp_path, held):
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    for extent in range(EXTENTS):
        await a.write(extent * PER_EXTENT, pattern(extent, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    futures = b.start_ops(*copies(source, upstairs, 1))
    await asyncio.to_thread(held.came.wait, WAIT_SECONDS)
    # In the first extent, which is being copied, and at the source as the session would.
    for client in (a, b):
        await client.write(5, pattern(99, 2))
        assert await client.read(5, 2) == pattern(99, 2)
        await client.flush(2)
    # The first extent may have been read after these writes: in memory, and so not by the threads.
    assert not any(future.done() for future in futures[1:])
    held.may_go.set()
    answers = await asyncio.wait_for(asyncio.gather(*futures), WAIT_SECONDS)
    assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    for client in (a, b):
        await client.flush(3)
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    await equal(a, b)
    assert await b.read(5, 2) == pattern(99, 2)
    assert await b.read(PER_EXTENT, PER_EXTENT) == pattern(1, PER_EXTENT)
    assert all(name.startswith("repair") for name in held.threads)


async def test_what_was_on_its_way_when_the_session_ended_does_not_count(
    serve, upstairs, tmp_path, monkeypatch
):
    held = Held(MergeJob.run)
    monkeypatch.setattr(MergeJob, "run", lambda job: held.run(job))
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    await a.write(0, pattern(1, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    b.start_ops(*copies(source, upstairs, 1, [0]))
    await asyncio.to_thread(held.came.wait, WAIT_SECONDS)
    host = target.daemon.host
    spare = host.engine.chunks.space
    before = spare.end - spare.free_count()
    # Taken over: the older session ends.
    await target.session(upstairs, generation=2)
    held.may_go.set()
    await eventually(lambda: not host.repair_threads.busy)
    assert not host.engine.contexts(0, PER_EXTENT).any()
    assert spare.end - spare.free_count() < before


async def test_a_medium_that_fails_on_the_thread_fails_the_copy_and_keeps_nothing(
    serve, upstairs, tmp_path, monkeypatch
):
    def fails(_job):
        raise DataError("cannot write: no space left", reason="NO_SPACE")

    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    await a.write(0, pattern(1, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    with monkeypatch.context() as patched:
        patched.setattr(MergeJob, "run", fails)
        [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.NO_SPACE
    space = target.daemon.host.engine.chunks.space
    assert space.free_count() == space.end - 1
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.OK
    assert await b.read(0, PER_EXTENT) == pattern(1, PER_EXTENT)


BOTH = (
    (MergeJob, "run"),
    (DirectoryFile, "write_past_cache"),
    (DirectoryFile, "datasync"),
    (extent_copier, "mismatches"),
)
MESSAGES = (
    *BOTH,
    (ReadJob, "run"),
    (DirectoryFile, "pread"),
    (repair_intake, "checksum"),
    (repair_service, "checksum"),
    (repair_service, "encode_chunk"),
)
APART = (*BOTH, (ReadJob, "send"), (DirectoryFile, "sendfile"), (Intake, "receive"))


@pytest.mark.parametrize("moves", [MESSAGES, APART], ids=["messages", "connection"])
async def test_nothing_that_moves_or_hashes_the_bytes_of_a_transfer_runs_on_the_loop(
    serve, upstairs, tmp_path, monkeypatch, moves
):
    if moves is MESSAGES:
        in_messages(monkeypatch)
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    for extent in range(EXTENTS):
        await a.write(extent * PER_EXTENT, pattern(extent, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    came = defaultdict(set)

    def noted(owner, name):
        inner = getattr(owner, name)

        def step(*args, **named):
            came[owner, name].add(threading.current_thread().name)
            return inner(*args, **named)

        monkeypatch.setattr(owner, name, step)

    for owner, name in moves:
        noted(owner, name)
    answers = await b.do(*copies(source, upstairs, 1))
    assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    steps = {move: came[move] for move in moves if came[move]}
    assert set(moves) - set(steps) <= {(DirectoryFile, "datasync")}
    loops = threading.current_thread().name
    assert not [move for move, threads in steps.items() if loops in threads]
    await b.flush(2)
    await equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize(
    "moves",
    [((MergeJob, "run"), (ReadJob, "run")), ((MergeJob, "run"), (ReadJob, "send"))],
    ids=["messages", "connection"],
)
async def test_the_threads_of_a_repair_give_way_to_all_others(
    serve, upstairs, tmp_path, monkeypatch, moves
):
    if (ReadJob, "run") in moves:
        in_messages(monkeypatch)
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    await a.write(0, pattern(1, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    found = {}

    def noted(owner, name):
        inner = getattr(owner, name)

        def step(*args):
            found[name, owner] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return inner(*args)

        monkeypatch.setattr(owner, name, step)

    for owner, name in moves:
        noted(owner, name)
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.OK
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert len(found) == 2
    assert all(nice == min(19, own + NICER_BY) for nice in found.values())
    # A flush is the guest's: its thread does not.
    noted(DirectoryFile, "datasync")
    await b.flush(2)
    assert found["datasync", DirectoryFile] == own
