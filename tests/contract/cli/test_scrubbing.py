"""`disk scrub` and `disk scrub-stop`: what the client asks, prints and returns."""

from __future__ import annotations

import os
import signal

import pytest

from controlplane.cli import session as sessions
from stairlib.model.errors import StateError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as pb

STATE = pb.ScrubState


def scrub(state: str = "RUNNING", done: int = 0, **more) -> pb.Scrub:
    return pb.Scrub(
        disk="block2", state=STATE.Value(f"SCRUB_STATE_{state}"), bytes_done=done << 20,
        bytes_total=100 << 20, **more,
    )  # fmt: skip


def watched(*found: pb.Scrub) -> list[pb.WatchDiskResponse]:
    return [pb.WatchDiskResponse(disk=pb.Disk(name="block2", scrubs=[one])) for one in found]


@pytest.fixture(autouse=True)
def disk(plane) -> pb.Disk:
    """The disk before the scrub."""
    found = pb.Disk(name="block2")
    plane.answers["GetDisk"] = pb.GetDiskResponse(disk=found)
    return found


def started(plane, *found: pb.Scrub) -> None:
    plane.answers["StartScrub"] = pb.StartScrubResponse(scrub=scrub())
    plane.answers["WatchDisk"] = [*watched(*found), plane.hang]


def test_it_is_followed_until_done(plane, client):
    started(
        plane,
        scrub(updated_at=10.0),
        scrub(done=50, updated_at=12.0),
        scrub(done=60, blocked_on="vmmd is away", updated_at=13.0),
        scrub("DONE", 100, recorded_generation=3),
    )
    code, out, err = client("disk", "scrub", "block2", "--limit", "50MiB")
    assert (code, err) == (0, "")
    assert "waiting: vmmd is away" in out
    assert out.splitlines()[-1].startswith("done: block2 has all its blocks itself")
    (request,) = plane.requests("StartScrub")
    assert (request.name, request.path) == ("block2", "")
    assert request.bytes_per_second_max == 50 << 20
    assert request.request_id


def test_json_is_one_document_at_the_end(plane, client):
    started(plane, scrub(), scrub("DONE", 100, recorded_generation=3))
    data = client.json("disk", "scrub", "block2")
    assert (data["state"], data["recorded_generation"]) == ("done", 3)


def test_not_waiting(plane, client):
    started(plane)
    code, out, _ = client("disk", "scrub", "block2", "--path", "sub_volumes[1]", "--no-wait")
    assert code == 0
    assert out == "block2: scrub running, no limit\n"
    assert plane.requests("StartScrub")[0].path == "sub_volumes[1]"
    assert plane.requests("WatchDisk") == []
    assert client.json("disk", "scrub", "block2", "--no-wait")["state"] == "running"


def test_one_that_is_done_already_is_not_followed(plane, client):
    done = scrub("DONE", 100, recorded_generation=3)
    plane.answers["StartScrub"] = pb.StartScrubResponse(scrub=done)
    code, out, _ = client("disk", "scrub", "block2")
    assert code == 0
    assert out.startswith("done: ")
    assert plane.requests("WatchDisk") == []


def test_one_that_fails_is_exit_1_and_says_what_to_do(plane, client):
    started(plane, scrub(), scrub("FAILED", 7, last_error="block 7 of the parent is damaged"))
    code, _, err = client("disk", "scrub", "block2")
    assert code == 1
    assert "error: the scrub failed: block 7 of the parent is damaged" in err
    assert "`stairwell disk scrub block2`" in err


def test_one_that_somebody_stops_is_exit_1(plane, client):
    started(plane, scrub(), scrub("STOPPED", 7))
    code, _, err = client("disk", "scrub", "block2")
    assert code == 1
    assert "stopped: block2 keeps its parent" in err


def test_the_follower_goes_on_after_the_control_plane_restarted(plane, client, monkeypatch):
    monkeypatch.setattr(sessions, "RECONNECT_DELAY_FIRST", 0.01)
    started(plane)
    plane.answers["WatchDisk"] = [
        [*watched(scrub(done=5)), UnavailableError("shutting down")],
        watched(scrub("DONE", 100)),
    ]
    code, _, err = client("disk", "scrub", "block2")
    assert code == 0
    assert err.count("trying again") == 1


def test_a_disk_that_was_made_again_has_another_life(plane, client):
    started(plane)
    plane.answers["WatchDisk"] = [pb.WatchDiskResponse(disk=pb.Disk(name="block2"))]
    code, _, err = client("disk", "scrub", "block2")
    assert code == 1
    assert "was deleted and made again" in err


class Interrupting(list):
    """A stream that interrupts the client once its messages were sent, and hangs."""

    def __init__(self, messages: list, hang: object, kind: signal.Signals) -> None:
        super().__init__([*messages, hang])
        self.kind = kind

    def __iter__(self):
        *messages, hang = super().__iter__()
        yield from messages
        os.kill(os.getpid(), self.kind)
        yield hang


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_leaving_says_that_it_goes_on(plane, client, kind, code):
    path = "sub_volumes[1]"
    started(plane)
    plane.answers["WatchDisk"] = Interrupting(watched(scrub(done=5, path=path)), plane.hang, kind)
    found, _, err = client("disk", "scrub", "block2", "--path", path)
    assert found == code
    assert "the scrub goes on without you" in err
    assert "`stairwell disk scrub-stop block2 --path 'sub_volumes[1]'`" in err
    assert plane.requests("StopScrub") == []


def test_following_again_leaves_the_rate_as_it_is(plane, client):
    running = scrub(done=5, bytes_per_second_max=7)
    for found, path, limit, asked in (
        (running, "", (), 7),
        (running, "", ("--limit", "0"), 0),
        (running, "sub_volumes[1]", (), 0),
        (scrub("STOPPED", bytes_per_second_max=7), "", (), 0),
    ):
        plane.answers["GetDisk"] = pb.GetDiskResponse(disk=pb.Disk(scrubs=[found]))
        started(plane)
        assert client("disk", "scrub", "block2", "--path", path, "--no-wait", *limit)[0] == 0
        assert plane.requests("StartScrub")[-1].bytes_per_second_max == asked


def test_a_wrong_rate_is_refused_before_anything_is_sent(plane, client):
    code, _, err = client("disk", "scrub", "block2", "--limit", "fast")
    assert code == 1
    assert "--limit: 'fast' is not a size" in err
    assert plane.asked == []


def test_a_refusal_says_why(plane, client):
    plane.answers["StartScrub"] = StateError("it has no read-only parent", reason="NO_PARENT")
    code, out, err = client("disk", "scrub", "block2")
    assert (code, out) == (1, "")
    assert "error: it has no read-only parent (NO_PARENT)" in err


def test_stopping(plane, client):
    plane.answers["StopScrub"] = pb.StopScrubResponse(scrub=scrub("STOPPED", 25))
    code, out, _ = client("disk", "scrub-stop", "block2", "--path", "sub_volumes[1]")
    assert code == 0
    assert "25 MiB of 100 MiB" in out
    (request,) = plane.requests("StopScrub")
    assert (request.name, request.path) == ("block2", "sub_volumes[1]")
    assert client.json("disk", "scrub-stop", "block2")["state"] == "stopped"


def test_help_teaches(client):
    code, out, _ = client("disk", "scrub", "--help")
    assert code == 0
    for text in ("read-only parent", "--path", "--limit", "--no-wait", "goes on"):
        assert text in " ".join(out.split())
