"""Regions on real files and file systems: killed, full, read-only, cut off from the disk. Each ends
in a clear state, and no flushed write is lost.

STAIRWELL_TORTURE_SECONDS: how long all of it takes, about (`make torture-storage DURATION=...`).
STAIRWELL_TORTURE_SEED: another run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import uuid
from time import monotonic

import pytest

from tests.torture_storage.filesystems import file_system
from tests.torture_storage.workload import FLUSHED, Torment

SECONDS = float(os.environ.get("STAIRWELL_TORTURE_SECONDS", "40"))
SEED = int(os.environ.get("STAIRWELL_TORTURE_SEED", "1"))
KINDS = ("ext4", "xfs")
# Shares of the time: kills once, the other two for each kind of file system.
KILLS, CUTS, FULL = 0.4 * SECONDS, 0.15 * SECONDS, 0.1 * SECONDS
KILLS_MIN, CUTS_MIN, FULL_MIN = 100, 5, 5


def torment(directory, more=0) -> Torment:
    made = Torment(directory, random.Random(SEED + more))
    made.create()
    return made


def rounds(seconds: float, least: int):
    """Numbers from 0 on, for so long, but so many at least."""
    end, number = monotonic() + seconds, 0
    while number < least or monotonic() < end:
        yield number
        number += 1


def downstaird(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "downstaird", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_daemon_killed_at_any_moment_loses_no_flushed_write(tmp_path) -> None:
    region = torment(tmp_path / "r")
    for _ in rounds(KILLS, KILLS_MIN):
        region.killed_round()
    print(f"{region.rounds} kills, {region.flushes} flushes acknowledged")
    assert region.flushes > region.rounds
    assert not region.refusals


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_gone_loses_no_flushed_write(tmp_path, kind) -> None:
    """EIO from one moment on, and what was not synced lost: then mounted again."""
    with file_system(kind, tmp_path) as mounted:
        region = torment(mounted.path / "r", more=2)
        for number in rounds(CUTS, CUTS_MIN):
            child = region.start()
            child.until_flushed(region.rng.randrange(0, 30))
            child.work_for(0.01 * region.rng.random())
            with child.between_calls():
                mounted.cut_off()
            child.until_over()
            mounted.unmount()
            mounted.mount()
            region.settle(child)
            # It says what happened, in a sentence, each time.
            assert len(region.refusals) == number + 1
            refusal = region.refusals[-1]
            # A context block that cannot be read faults its extent, until the next opening here.
            assert refusal.startswith(("IO_ERROR could not ", "EXTENT_FAULTED extent ")), refusal
            assert "Input/output error" in refusal, refusal
        print(f"{kind}: {region.rounds} cuts, {region.flushes} flushes acknowledged")
        mounted.unmount()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_file_system_fails_flushes_and_loses_none(tmp_path, kind) -> None:
    with file_system(kind, tmp_path) as mounted:
        region = torment(mounted.path / "r", more=3)
        for number in rounds(FULL, FULL_MIN):
            before = len(region.refusals)
            left = region.rng.randrange(0, 4 << 20) if number % 2 else 0
            with mounted.filled(left):
                child = region.start()
                child.work_for(1.0)
                child.kill()
                # With the disk still full it opens, and holds what was flushed.
                region.settle(child)
            assert all(
                refusal.startswith("NO_SPACE no space left") for refusal in region.refusals[before:]
            ), region.refusals[before:]
            # With space again it goes on.
            child = region.start()
            child.until_flushed(3)
            assert child.heard.startswith(FLUSHED * 3), child.heard
            child.kill()
            region.settle(child)
        print(f"{kind}: {region.rounds} rounds, {len(region.refusals)} found no space")
        assert region.refusals


@pytest.mark.parametrize("kind", KINDS)
def test_commands_on_a_full_and_on_a_read_only_file_system(tmp_path, kind) -> None:
    with file_system(kind, tmp_path) as mounted:
        path = mounted.path / "new"
        create = ("create", "-d", path, "-u", uuid.uuid4(), "--block-size", 4096)
        with mounted.filled(left=0):
            done = downstaird(*create)
            assert done.returncode == 1
            assert done.stderr.startswith("downstaird: no space left to ")
            assert "free space" in done.stderr
            assert "not a region" in downstaird("info", "-d", path).stderr
        assert downstaird(*create).returncode == 0
        mounted.unmount()
        mounted.mount("ro")
        refused = downstaird("run", "-d", path, "-p", 0)
        assert refused.returncode == 1
        assert "Read-only file system; remount it for writing" in refused.stderr
        assert "Traceback" not in refused.stderr
        for command in ("verify", "info", "dump"):
            done = downstaird(command, "-d", path)
            assert done.returncode == 0, done.stderr
        with subprocess.Popen(
            [sys.executable, "-m", "downstaird", "run", "-d", path, "-p", "0", "--mode", "ro"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as served:
            assert served.stdout.readline().endswith(b"mode=ro\n")
            served.terminate()
            assert served.wait(30) == 0
