"""Power is lost at every place of short workloads; every legal state opens and holds what it may.
STAIRWELL_CRASH_SEEDS=first:count runs other seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from downstaird.store.files import FileDisk
from downstaird.store.memory import MemoryDisk
from tests.crashes.planted import BOUNDS, MUTANTS, SEEDS, look_for
from tests.crashes.power import picks
from tests.crashes.run import SHORT, go_through, places, recorded
from tests.crashes.workload import opened

FIRST, COUNT = map(int, os.environ.get("STAIRWELL_CRASH_SEEDS", "0:6").split(":"))
# Of each place of one workload, how many states are made on a real file system.
_REAL_STATES = 3
_REAL_STEPS = 12


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_every_legal_state_holds_what_it_may(seed: int) -> None:
    found = go_through(seed, SHORT)
    again = f"python -m tests.crashes --seed {seed} --crash {found.crash}"
    assert not found.error, "\n".join([*found.log, found.error, again])
    assert found.states > found.places_whole > 0


def test_a_second_power_cut_is_among_them() -> None:
    assert sum(go_through(seed, SHORT).nested for seed in range(2)) > 0


def test_real_files_are_written_in_the_same_order(tmp_path: Path) -> None:
    in_memory, _ = recorded(3, _REAL_STEPS)
    real, _ = recorded(3, _REAL_STEPS, FileDisk(tmp_path / "region"))
    changes = [[one for one in disk.log if one.kind != "expect"] for disk in (in_memory, real)]
    assert changes[0] == changes[1]
    assert len(changes[0]) > 40


def test_states_of_real_files_open_as_well(tmp_path: Path) -> None:
    real, workload = recorded(3, _REAL_STEPS, FileDisk(tmp_path / "region"))
    made = 0
    for index, medium, expected in places(real.log):
        choices = medium.choices()
        for number, way in enumerate(picks(choices, 1, _REAL_STATES, workload.rng)[1]):
            disk = FileDisk(tmp_path / f"{index}-{number}")
            disk.prepare()
            medium.put(choices, way, disk)
            region = opened(disk, expected)
            if region is not None:
                expected.check(region)
                region.close()
                made += 1
    assert made > 20


def test_a_sector_may_be_any_that_was_written_since_the_last_sync() -> None:
    """The rules themselves: two writes over a synced sector leave three possibilities."""
    from tests.crashes.recording import RecordingDisk

    disk = RecordingDisk(MemoryDisk())
    file = disk.open("a", create=True)
    file.pwritev([b"1" * 512], 0)
    file.datasync()
    disk.sync_directory()
    disk.expect("anything")
    file.pwritev([b"2" * 512], 0)
    file.pwritev([b"3" * 512], 0)
    *_, (_, medium, _) = places(disk.log)
    seen = set()
    for way in picks(medium.choices(), 8, 0, None)[1]:
        target = MemoryDisk()
        medium.put(medium.choices(), way, target)
        seen.add(target.open("a").pread(1, 0))
    assert seen == {b"1", b"2", b"3"}


# The rarest of them took 160 s on two processors with a load average of 15.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, states = look_for(name, monkeypatch)
    assert found is not None, f"not in {SEEDS} seeds, {states} states, {BOUNDS}"
