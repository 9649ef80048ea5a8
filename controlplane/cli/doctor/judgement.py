"""What the facts of a host mean: what works, what does not, and what to do. Pure.

Invariant: whatever is not "ok" comes with something to do about it, and what only an optional part
needs never fails a host.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
from controlplane.cli.units import format_bytes, format_seconds

PYTHON_MIN = (3, 11)
# For disks over vhost-user: docs/machines.md.
QEMU_MIN = (7, 2)
# Each downstairs has a few files and a connection for each session; a region's are few, a machine
# has three connections for each region. Below this a host's worth of them runs out.
OPEN_FILES_WISHED = 4096
OPEN_FILES_MIN = 256
PROCESSES_MIN = 256
# The demo needs about this: SPACE_FACTOR times what its guest writes, and a gibibyte.
FREE_BYTES_WISHED = 6 << 30
FREE_BYTES_MIN = 1 << 30
FREE_INODES_MIN = 1000
MEMORY_WISHED = 2 << 30
MEMORY_MIN = 512 << 20
# A flush waits for one fdatasync on two of three hosts.
SYNC_SECONDS_SLOW = 0.05
CLOCK_RESOLUTION_MAX = 1e-3
# What `vmmd run --runtime-directory` takes at most: a socket's whole path has 107 bytes.
SOCKET_DIRECTORY_MAX = 70

GOOD_FILE_SYSTEMS = frozenset({"ext4", "xfs", "btrfs", "ext3", "zfs", "f2fs", "bcachefs"})
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
REMOTE_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs"})


class Verdict(enum.StrEnum):
    """How it stands. OPTIONAL: only what its remark names does without."""

    OK = "ok"
    OPTIONAL = "optional"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was seen, and what to do if that is not well."""

    area: str
    name: str
    verdict: Verdict
    seen: str
    advice: str = ""


def judge(facts: Facts) -> list[Finding]:
    """Everything, in the order people read it."""
    found = [
        *python(facts.python),
        *programs(facts.programs),
        *(one for directory in facts.directories for one in state_directory(directory)),
        *limits(facts.limits),
        *clock(facts.clock),
        *map(port, facts.ports),
        *sockets(facts.sockets),
        *virtual_machines(facts.qemu, kvm=facts.kvm),
        *containers(facts.docker, facts.compose),
        *extras(facts.extras),
        *tools(facts.tools),
    ]
    assert all(one.advice for one in found if one.verdict is not Verdict.OK)
    return found


def works(findings: Iterable[Finding]) -> bool:
    """Whether the programs can run here at all."""
    return all(one.verdict is not Verdict.FAILED for one in findings)


# ----- areas


def python(facts: PythonFacts) -> Iterator[Finding]:
    """The interpreter and what it imports."""
    version = ".".join(map(str, facts.version))
    seen = f"{version}, {facts.bits} bits, {facts.executable}"
    needed = f"use Python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} or newer with 64 bits"
    if facts.version[:2] < PYTHON_MIN or facts.bits < 64:
        yield Finding("python", "interpreter", Verdict.FAILED, seen, needed)
    else:
        yield Finding("python", "interpreter", Verdict.OK, seen)
    if not facts.little_endian:
        yield Finding(
            "python", "byte order", Verdict.FAILED, "big-endian",
            "regions and frames are little-endian and were never tried here: use another machine",
        )  # fmt: skip
    for name, why in facts.broken:
        yield Finding(
            "python", name, Verdict.FAILED, f"cannot be imported: {why}",
            "install the package anew: `make setup`, or `pip install --force-reinstall stairwell`",
        )  # fmt: skip
    if not facts.broken:
        yield Finding("python", "packages", Verdict.OK, "all that is needed can be imported")


def programs(found: Iterable[ProgramFacts]) -> Iterator[Finding]:
    """The commands of this package."""
    for one in found:
        if one.path is None:
            yield Finding(
                "programs", one.name, Verdict.FAILED, "neither beside this Python nor on PATH",
                "install the package, or activate its environment: `. .venv/bin/activate`",
            )  # fmt: skip
        else:
            yield Finding("programs", one.name, Verdict.OK, one.path)


def state_directory(one: DirectoryFacts) -> Iterator[Finding]:
    """One directory for state."""
    area = "files"
    where = one.path
    seen = one.file_system or "file system not known"
    if one.looked_at != one.path:
        seen += f" (of {one.looked_at}; the directory is not there yet)"
    if one.failed:
        what = "; ".join(f"{name}: {why}" for name, why in one.failed)
        yield Finding(
            area, where, Verdict.FAILED, f"{seen}; {what}",
            "name a directory that you may write to, on a local file system (ext4, xfs or btrfs)",
        )  # fmt: skip
    elif one.file_system in GOOD_FILE_SYSTEMS:
        holes = "" if one.holes is not False else ", without holes"
        synced = (
            "" if one.sync_seconds is None else f", a sync takes {format_seconds(one.sync_seconds)}"
        )
        yield Finding(area, where, Verdict.OK, seen + holes + synced)
    else:
        yield Finding(area, where, Verdict.WARNING, seen, _file_system_advice(one.file_system))
    if one.sync_seconds is not None and one.sync_seconds > SYNC_SECONDS_SLOW:
        yield Finding(
            area, f"{where}: syncs", Verdict.WARNING,
            f"an fdatasync takes {format_seconds(one.sync_seconds)}",
            "each flush of a guest waits for one: put regions on a quicker disk",
        )  # fmt: skip
    yield from _space(one)


def _file_system_advice(name: str) -> str:
    if name in MEMORY_FILE_SYSTEMS:
        return "what is kept there is gone after a restart of the host: fine for a trial only"
    if name in REMOTE_FILE_SYSTEMS:
        return "locks and syncs over a network are not what is tested: use a local file system"
    if name == "overlay":
        return "a container's own layer goes with the container: mount a volume there"
    return "tested are ext4 and xfs, and btrfs in use: prefer one of them"


def _space(one: DirectoryFacts) -> Iterator[Finding]:
    if one.free_bytes is not None:
        seen = f"{format_bytes(one.free_bytes)} free"
        name = f"{one.path}: space"
        if one.free_bytes < FREE_BYTES_MIN:
            yield Finding("files", name, Verdict.FAILED, seen, "free some, or name another place")
        elif one.free_bytes < FREE_BYTES_WISHED:
            yield Finding(
                "files", name, Verdict.WARNING, seen,
                f"the demo wants {format_bytes(FREE_BYTES_WISHED)}; `--bytes 64MiB` needs less",
            )  # fmt: skip
        else:
            yield Finding("files", name, Verdict.OK, seen)
    # Some file systems have no fixed number of inodes, and say 0.
    if one.free_inodes is not None and 0 < one.free_inodes < FREE_INODES_MIN:
        yield Finding(
            "files", f"{one.path}: inodes", Verdict.WARNING, f"{one.free_inodes} free",
            "remove files, or name another place",
        )  # fmt: skip


def limits(facts: LimitFacts) -> Iterator[Finding]:
    """Of processes, and memory."""
    files = facts.open_files
    seen = "no limit" if files < 0 else f"{files} (at most {_count(facts.open_files_hard)})"
    raise_it = f"`ulimit -n {OPEN_FILES_WISHED}`, or LimitNOFILE= of the service"
    if 0 <= files < OPEN_FILES_MIN:
        yield Finding("limits", "open files", Verdict.FAILED, seen, raise_it)
    elif 0 <= files < OPEN_FILES_WISHED:
        yield Finding(
            "limits", "open files", Verdict.WARNING, seen,
            f"enough for some dozen regions; for more: {raise_it}",
        )  # fmt: skip
    else:
        yield Finding("limits", "open files", Verdict.OK, seen)
    if 0 <= facts.processes < PROCESSES_MIN:
        yield Finding(
            "limits", "processes", Verdict.WARNING, str(facts.processes),
            "each machine and each region is one, with some threads: "
            f"`ulimit -u {8 * PROCESSES_MIN}`",
        )  # fmt: skip
    memory = facts.memory_available
    if memory is not None:
        seen = f"{format_bytes(memory)} available"
        if memory < MEMORY_MIN:
            yield Finding("limits", "memory", Verdict.FAILED, seen, "end other programs")
        elif memory < MEMORY_WISHED:
            yield Finding(
                "limits", "memory", Verdict.WARNING, seen,
                "the demo's six daemons take about a gibibyte; end other programs",
            )  # fmt: skip
        else:
            yield Finding("limits", "memory", Verdict.OK, seen)
    if facts.processors < 2:
        yield Finding(
            "limits", "processors", Verdict.WARNING, str(facts.processors),
            "all works, slowly: repairs and guests share one processor",
        )  # fmt: skip
    else:
        yield Finding("limits", "processors", Verdict.OK, str(facts.processors))


def clock(facts: ClockFacts) -> Iterator[Finding]:
    """Time, and randomness for identities and keys."""
    source = f", {facts.source}" if facts.source else ""
    if facts.went_back:
        yield Finding(
            "clock", "monotonic", Verdict.FAILED, f"it went back while it was watched{source}",
            "choose another clock source in /sys/devices/system/clocksource; leases rely on it",
        )  # fmt: skip
    elif facts.resolution > CLOCK_RESOLUTION_MAX:
        yield Finding(
            "clock", "monotonic", Verdict.WARNING,
            f"steps of {format_seconds(facts.resolution)}{source}",
            "latencies are told no finer than that: choose another clock source",
        )  # fmt: skip
    else:
        yield Finding("clock", "monotonic", Verdict.OK, f"never went back{source}")
    if facts.synchronised is False:
        yield Finding(
            "clock", "time of day", Verdict.WARNING, "nothing keeps it right",
            "traces over several hosts and the dates of certificates need it: run chrony or "
            "systemd-timesyncd (one host alone does without)",
        )  # fmt: skip
    elif facts.synchronised:
        yield Finding("clock", "time of day", Verdict.OK, "kept right")
    if facts.random_ready is False:
        yield Finding(
            "clock", "randomness", Verdict.FAILED, "the kernel has no entropy yet",
            "keys and identities wait for it: add a virtio-rng device or run rngd",
        )  # fmt: skip
    elif facts.random_ready:
        yield Finding("clock", "randomness", Verdict.OK, "the kernel's generator is ready")


def sockets(facts: SocketFacts) -> Iterator[Finding]:
    """Paths of machines' sockets."""
    seen = f"{facts.directory}: {facts.length} of {SOCKET_DIRECTORY_MAX} bytes"
    if facts.length > SOCKET_DIRECTORY_MAX:
        yield Finding(
            "machines", "socket paths", Verdict.WARNING, seen,
            "name a shorter place: `TMPDIR=/tmp`, or `vmmd run --runtime-directory DIR`",
        )  # fmt: skip
    else:
        yield Finding("machines", "socket paths", Verdict.OK, seen)


def port(facts: PortFacts) -> Finding:
    """A default port: free, or the daemon itself; a stranger there is worth a word."""
    name = f"{facts.address}"
    if facts.free:
        return Finding("ports", name, Verdict.OK, f"free for {facts.daemon}")
    if facts.health:
        return Finding("ports", name, Verdict.OK, f"a daemon answers there: {facts.health}")
    return Finding(
        "ports", name, Verdict.WARNING, f"taken by something that is no daemon of ours "
        f"({facts.error or 'it does not answer'})",
        f"give {facts.daemon} another port on its command line",
    )  # fmt: skip


def virtual_machines(qemu: ProgramFacts, *, kvm: bool) -> Iterator[Finding]:
    """QEMU for guests of one's own, over vhost-user."""
    area = "machines"
    install = "Debian: `apt install qemu-system-x86`; the built-in guest and NBD need none"
    if qemu.path is None:
        yield Finding(area, "QEMU", Verdict.OPTIONAL, "not installed", install)
        return
    version = _version(qemu.version)
    if version is None:
        why = qemu.error or "it does not say its version"
        yield Finding(area, "QEMU", Verdict.OPTIONAL, f"{qemu.path}: {why}", install)
    elif version < QEMU_MIN:
        wanted = ".".join(map(str, QEMU_MIN))
        yield Finding(
            area, "QEMU", Verdict.OPTIONAL, f"{qemu.version} at {qemu.path}",
            f"vhost-user disks want {wanted} or later; NBD works with any",
        )  # fmt: skip
    else:
        yield Finding(area, "QEMU", Verdict.OK, f"{qemu.version} at {qemu.path}")
    if kvm:
        # There are hosts where it opens and runs nothing; vmmd tries, which takes seconds.
        seen = "/dev/kvm can be opened; whether guests run with it vmmd tries at its start"
        yield Finding(area, "KVM", Verdict.OK, seen)
    else:
        yield Finding(
            area, "KVM", Verdict.OPTIONAL, "/dev/kvm is not there or not yours",
            "guests run without it, some ten times slower; else join the group kvm",
        )  # fmt: skip


def containers(docker: ProgramFacts, compose: ProgramFacts) -> Iterator[Finding]:
    """Docker for the test clusters."""
    area = "containers"
    if docker.path is None:
        yield Finding(
            area, "docker", Verdict.OPTIONAL, "not installed",
            "only `docker compose` clusters need it: docs/compose.md",
        )  # fmt: skip
        return
    if docker.error:
        yield Finding(
            area, "docker", Verdict.OPTIONAL, docker.error,
            "start its daemon, or join the group docker; only compose clusters need it",
        )  # fmt: skip
    else:
        yield Finding(area, "docker", Verdict.OK, f"daemon {docker.version}")
    if compose.error or not compose.version:
        yield Finding(
            area, "compose", Verdict.OPTIONAL, f"not there ({compose.error or 'no version told'})",
            "install the plugin docker-compose-v2; only compose clusters need it",
        )  # fmt: skip
    else:
        yield Finding(area, "compose", Verdict.OK, compose.version)


def extras(found: Iterable[tuple[str, str, bool]]) -> Iterator[Finding]:
    """Optional parts of this package."""
    for name, extra, there in found:
        if there:
            yield Finding("extras", extra, Verdict.OK, f"{name} is installed")
        else:
            yield Finding(
                "extras", extra, Verdict.OPTIONAL, f"{name} is not installed",
                f"`pip install 'stairwell[{extra}]'`",
            )  # fmt: skip


def tools(found: Iterable[ProgramFacts]) -> Iterator[Finding]:
    """Programs of others that are handy with disks."""
    missing = [one.name for one in found if one.path is None]
    there = [one.name for one in found if one.path is not None]
    if there:
        yield Finding("tools", "NBD and gRPC", Verdict.OK, ", ".join(there))
    if missing:
        yield Finding(
            "tools", "not installed", Verdict.OPTIONAL, ", ".join(missing),
            "handy and never needed; Debian: qemu-utils, libnbd-bin, fio; grpcurl from its project",
        )  # fmt: skip


# ----- words


def _count(number: int) -> str:
    return "no limit" if number < 0 else str(number)


def _version(text: str) -> tuple[int, int] | None:
    """The first "major.minor" in a text."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
