"""What the facts of a host mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.cli.doctor.facts import (
    ClockFacts,
    DirectoryFacts,
    Facts,
    LimitFacts,
    PortFacts,
    ProgramFacts,
    PythonFacts,
    SocketFacts,
)
from controlplane.cli.doctor.judgement import Verdict, judge, works
from controlplane.cli.doctor.report import closing, data

GIB = 1 << 30
DIRECTORY = DirectoryFacts("/data", "/data", "ext4", 100 * GIB, 10**6, (), 0.0002, True)
GOOD = Facts(
    python=PythonFacts((3, 11, 2), 64, True, "/usr/bin/python3"),
    programs=(ProgramFacts("vmmd", "/bin/vmmd"),),
    directories=(DIRECTORY,),
    ports=(PortFacts("vmmd", "127.0.0.1:55401", free=True),),
    limits=LimitFacts(65536, 65536, -1, 4, 16 * GIB),
    clock=ClockFacts(True, 1e-9, False, "tsc", True),
    sockets=SocketFacts("/tmp/stairwell-vmmd-XXXXXXXX", 28),
    qemu=ProgramFacts("qemu", "/bin/qemu", "QEMU emulator version 7.2.4"),
    kvm=True,
    docker=ProgramFacts("docker", "/bin/docker", "27.1"),
    compose=ProgramFacts("docker", "/bin/docker", "2.29"),
    extras=(("textual", "tui", True),),
    tools=(ProgramFacts("fio", "/bin/fio"),),
)


def found(facts: Facts) -> dict[str, Verdict]:
    """Whatever is not well, by name."""
    return {one.name: one.verdict for one in judge(facts) if one.verdict is not Verdict.OK}


def test_a_good_host_has_nothing_to_do():
    assert found(GOOD) == {}
    assert works(judge(GOOD))
    assert closing(judge(GOOD)) == "all that is needed works; try `stairwell demo`"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"python": replace(GOOD.python, version=(3, 10, 9))}, "interpreter"),
        ({"python": replace(GOOD.python, bits=32)}, "interpreter"),
        ({"python": replace(GOOD.python, little_endian=False)}, "byte order"),
        ({"python": replace(GOOD.python, broken=(("grpc", "ImportError: no"),))}, "grpc"),
        ({"programs": (ProgramFacts("vmmd", None),)}, "vmmd"),
        ({"directories": (replace(DIRECTORY, failed=(("flock", "refused"),)),)}, "/data"),
        ({"directories": (replace(DIRECTORY, free_bytes=GIB - 1),)}, "/data: space"),
        ({"limits": replace(GOOD.limits, open_files=255)}, "open files"),
        ({"limits": replace(GOOD.limits, memory_available=100)}, "memory"),
        ({"clock": replace(GOOD.clock, went_back=True)}, "monotonic"),
        ({"clock": replace(GOOD.clock, random_ready=False)}, "randomness"),
    ],
)
def test_what_the_programs_cannot_do_without_fails(changes, name):
    facts = replace(GOOD, **changes)
    assert found(facts) == {name: Verdict.FAILED}
    assert not works(judge(facts))
    assert data(judge(facts))["works"] is False
    assert "fail" in closing(judge(facts))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"directories": (replace(DIRECTORY, file_system="tmpfs"),)}, "/data"),
        ({"directories": (replace(DIRECTORY, file_system="nfs4"),)}, "/data"),
        ({"directories": (replace(DIRECTORY, file_system="overlay"),)}, "/data"),
        ({"directories": (replace(DIRECTORY, file_system=""),)}, "/data"),
        ({"directories": (replace(DIRECTORY, sync_seconds=0.2),)}, "/data: syncs"),
        ({"directories": (replace(DIRECTORY, free_bytes=2 * GIB),)}, "/data: space"),
        ({"directories": (replace(DIRECTORY, free_inodes=12),)}, "/data: inodes"),
        ({"limits": replace(GOOD.limits, open_files=1024)}, "open files"),
        ({"limits": replace(GOOD.limits, processes=64)}, "processes"),
        ({"limits": replace(GOOD.limits, processors=1)}, "processors"),
        ({"limits": replace(GOOD.limits, memory_available=GIB)}, "memory"),
        ({"clock": replace(GOOD.clock, synchronised=False)}, "time of day"),
        ({"clock": replace(GOOD.clock, resolution=0.01)}, "monotonic"),
        ({"sockets": SocketFacts("/very/long", 71)}, "socket paths"),
        ({"ports": (PortFacts("vmmd", "127.0.0.1:1", free=False, error="x"),)}, "127.0.0.1:1"),
    ],
)
def test_what_is_worth_a_word_fails_nothing(changes, name):
    facts = replace(GOOD, **changes)
    assert found(facts) == {name: Verdict.WARNING}
    assert works(judge(facts))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"qemu": ProgramFacts("qemu", None)}, "QEMU"),
        ({"qemu": ProgramFacts("qemu", "/q", "QEMU emulator version 6.9.1")}, "QEMU"),
        ({"qemu": ProgramFacts("qemu", "/q", "", "no answer after 5 s")}, "QEMU"),
        ({"docker": ProgramFacts("docker", "/d", "", "cannot connect")}, "docker"),
        ({"compose": ProgramFacts("docker", "/d", "", "unknown command")}, "compose"),
        ({"kvm": False}, "KVM"),
        ({"extras": (("textual", "tui", False),)}, "tui"),
        ({"tools": (ProgramFacts("fio", None),)}, "not installed"),
    ],
)
def test_optional_parts_are_told_as_such(changes, name):
    facts = replace(GOOD, **changes)
    assert found(facts) == {name: Verdict.OPTIONAL}
    assert works(judge(facts))


def test_a_file_system_without_fixed_inodes_has_enough():
    assert found(replace(GOOD, directories=(replace(DIRECTORY, free_inodes=0),))) == {}


def test_what_could_not_be_found_out_is_not_taken_as_bad():
    unknown = replace(
        GOOD,
        clock=replace(GOOD.clock, synchronised=None, random_ready=None),
        limits=replace(GOOD.limits, memory_available=None),
        directories=(replace(DIRECTORY, free_bytes=None, free_inodes=None, sync_seconds=None),),
    )
    assert found(unknown) == {}


def test_a_port_with_a_daemon_of_ours_is_well():
    taken = PortFacts("vmmd", "127.0.0.1:55401", free=False, health="SERVING")
    (seen,) = [one.seen for one in judge(replace(GOOD, ports=(taken,))) if one.area == "ports"]
    assert seen == "a daemon answers there: SERVING"
