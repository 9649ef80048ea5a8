"""What was found out about a host, as plain values: no judgement and no I/O.

A field that is None could not be found out, which is never the same as a bad value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PythonFacts:
    """The interpreter that runs this, and of what it should be able to import, what it cannot."""

    version: tuple[int, int, int]
    bits: int
    little_endian: bool
    executable: str
    # Names of modules that are needed and cannot be imported, with why.
    broken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A program that was looked for. `version` is what it says of itself, "" when it says nothing;
    `error` is why it did not say so."""

    name: str
    path: str | None
    version: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """A directory for state. `looked_at` is itself, or the nearest one above it that exists.

    `failed` names what was tried there and did not work, with the system's word for why.
    `sync_seconds` is the median time of an fdatasync after a write of 4 KiB.
    """

    path: str
    looked_at: str
    file_system: str
    free_bytes: int | None
    free_inodes: int | None
    failed: tuple[tuple[str, str], ...] = ()
    sync_seconds: float | None = None
    holes: bool | None = None


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port on loopback and the daemon that has it by default. `free`: nobody listens there.
    `health` is what the one who does says of its health, `error` why it says nothing."""

    daemon: str
    address: str
    free: bool
    health: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """Limits of a process and what memory there is; -1 is no limit."""

    open_files: int
    open_files_hard: int
    processes: int
    processors: int
    memory_available: int | None


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """`synchronised`: whether the kernel's clock is kept right by something. `went_back`: whether
    the monotonic clock did so while it was watched. `random_ready`: the kernel has entropy."""

    synchronised: bool | None
    resolution: float
    went_back: bool
    source: str
    random_ready: bool | None


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """Where vmmd keeps the unix sockets of machines by default, and how many bytes that has."""

    directory: str
    length: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All of a host."""

    python: PythonFacts
    programs: tuple[ProgramFacts, ...]
    directories: tuple[DirectoryFacts, ...]
    ports: tuple[PortFacts, ...]
    limits: LimitFacts
    clock: ClockFacts
    sockets: SocketFacts
    qemu: ProgramFacts
    kvm: bool
    docker: ProgramFacts
    compose: ProgramFacts
    # Optional modules, and the extra of this package that brings each.
    extras: tuple[tuple[str, str, bool], ...]
    tools: tuple[ProgramFacts, ...]
