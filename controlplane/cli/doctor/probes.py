"""Finds out about this host: files are tried in a temporary one, ports by binding, programs by
asking for their version. Leaves nothing behind, and waits for nobody longer than PATIENCE_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import importlib
import importlib.util
import os
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
from stairlib.model.errors import StairwellError
from stairlib.rpc.health_check import check

PATIENCE_SECONDS = 5.0
HEALTH_SECONDS = 2.0
SYNC_TRIES = 9
SYNC_BYTES = 4096
HOLE_BYTES = 8 << 20
CLOCK_LOOKS = 20_000
OWN_PROGRAMS = ("controlplane", "vmmd", "downstaird", "dsc", "stairwell")
HANDY_TOOLS = ("qemu-img", "nbdcopy", "nbdinfo", "fio", "grpcurl")
MODULES = (
    "aiohttp", "alembic", "cryptography", "grpc", "google.protobuf", "numpy", "rich", "sqlalchemy",
    "structlog", "uvloop", "xxhash",
)  # fmt: skip
EXTRAS = (("psycopg", "postgres"), ("starlette", "console"), ("textual", "tui"))
# The daemons' defaults, and the downstairs of the walk-through.
PORTS = (
    ("controlplane", 55400), ("vmmd", 55401), ("downstaird", 8810), ("downstaird", 8820),
    ("downstaird", 8830), ("downstaird", 8840), ("dsc", 9998), ("downstaird agent", 17000),
)  # fmt: skip
LOOPBACK = "127.0.0.1"
# adjtimex(2): the answer where nothing keeps the clock right.
_TIME_ERROR = 5
_TIMEX_BYTES = 512
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02


async def examine(directories: Sequence[Path]) -> Facts:
    """All facts. `directories` are those that are to hold state."""
    files = await asyncio.gather(
        *(asyncio.to_thread(directory_facts, each) for each in directories)
    )
    ports = await asyncio.gather(*(port_facts(name, port) for name, port in PORTS))
    programs = [asyncio.to_thread(own_program, name) for name in OWN_PROGRAMS]
    programs += [asyncio.to_thread(tool, name) for name in HANDY_TOOLS]
    asked = [
        asyncio.to_thread(asked_program, "qemu-system-x86_64", "--version"),
        asyncio.to_thread(asked_program, "docker", "version", "--format", "{{.Server.Version}}"),
        asyncio.to_thread(asked_program, "docker", "compose", "version", "--short"),
    ]
    found, (qemu, docker, compose) = await asyncio.gather(
        asyncio.gather(*programs), asyncio.gather(*asked)
    )
    return Facts(
        python=python_facts(),
        programs=tuple(found[: len(OWN_PROGRAMS)]),
        directories=tuple(files),
        ports=tuple(ports),
        limits=limit_facts(),
        clock=await asyncio.to_thread(clock_facts),
        sockets=socket_facts(),
        qemu=qemu,
        kvm=os.access("/dev/kvm", os.R_OK | os.W_OK),
        docker=docker,
        compose=compose,
        extras=tuple(
            (name, extra, importlib.util.find_spec(name) is not None) for name, extra in EXTRAS
        ),
        tools=tuple(found[len(OWN_PROGRAMS) :]),
    )


# ----- Python and programs


def python_facts() -> PythonFacts:
    """The interpreter; every module that is needed is really imported."""
    broken = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken extension may raise anything
            broken.append((name, f"{type(error).__name__}: {error}"))
    return PythonFacts(
        version=sys.version_info[:3],
        bits=struct.calcsize("P") * 8,
        little_endian=sys.byteorder == "little",
        executable=sys.executable,
        broken=tuple(broken),
    )


def own_program(name: str) -> ProgramFacts:
    """A command of this package: beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    return ProgramFacts(name, str(beside) if beside.exists() else shutil.which(name))


def tool(name: str) -> ProgramFacts:
    """Whether a program is on PATH."""
    return ProgramFacts(name, shutil.which(name))


def asked_program(name: str, *arguments: str) -> ProgramFacts:
    """A program and the first line that it answers."""
    path = shutil.which(name)
    if path is None:
        return ProgramFacts(name, None, error="not installed")
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ProgramFacts(name, path, error=f"no answer after {PATIENCE_SECONDS:.0f} s")
    except OSError as error:
        return ProgramFacts(name, path, error=str(error.strerror))
    line = _first_line(done.stdout)
    if done.returncode:
        said = _first_line(done.stderr) or line or f"exit status {done.returncode}"
        return ProgramFacts(name, path, error=said)
    return ProgramFacts(name, path, version=line)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# ----- files


def directory_facts(wanted: Path) -> DirectoryFacts:
    """Tries in a directory what the programs do there; in the nearest one above if it is not there
    yet."""
    wanted = wanted.absolute()
    place = next(each for each in (wanted, *wanted.parents) if each.is_dir())
    free_bytes = free_inodes = None
    with contextlib.suppress(OSError):
        space = os.statvfs(place)
        # One without blocks keeps no data, as /proc.
        if space.f_blocks:
            free_bytes, free_inodes = space.f_bavail * space.f_frsize, space.f_favail
    failed: list[tuple[str, str]] = []
    if wanted.exists() and not wanted.is_dir():
        failed.append(("the path", "it is not a directory"))
    sync_seconds: float | None = None
    holes: bool | None = None
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=".doctor-", dir=place))
            )
            file = stack.enter_context((folder / "file").open("w+b", buffering=0))
        except OSError as error:
            failed.append(("making a file", _why(error)))
        else:
            for name, attempt in _attempts(folder, file.fileno()):
                try:
                    attempt()
                except OSError as error:
                    failed.append((name, _why(error)))
            with contextlib.suppress(OSError):
                sync_seconds = _sync_seconds(file.fileno())
                holes = _punches(file.fileno())
    return DirectoryFacts(
        str(wanted), str(place), file_system_of(place), free_bytes, free_inodes, tuple(failed),
        sync_seconds, holes,
    )  # fmt: skip


def _attempts(folder: Path, descriptor: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What regions, agents and the control plane's database need, by name."""
    yield "flock", lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield "scattered write", lambda: os.pwritev(descriptor, [bytes(512), bytes(512)], 0)
    yield "fdatasync", lambda: os.fdatasync(descriptor)
    yield "rename", lambda: os.replace(folder / "file", folder / "renamed")
    yield "sync of a directory", lambda: _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_seconds(descriptor: int) -> float:
    """The median of some fdatasyncs, each after a write."""
    taken = []
    for number in range(SYNC_TRIES):
        os.pwrite(descriptor, os.urandom(SYNC_BYTES), number * SYNC_BYTES)
        begun = time.perf_counter()
        os.fdatasync(descriptor)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def _punches(descriptor: int) -> bool:
    """Whether a hole can be made; without it freed chunks are filled with zeros."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    done = libc.fallocate(descriptor, _FALLOC_KEEP_SIZE_PUNCH_HOLE, 0, SYNC_BYTES)
    return bool(done == 0)


def file_system_of(place: Path) -> str:
    """The type of the file system a directory is on, as "ext4"; "" where it is not told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = os.stat(place).st_dev
    except OSError:
        return ""
    found: list[tuple[int, str]] = []
    resolved = str(place.resolve())
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        point = words[4].replace("\\040", " ")
        same_device = words[2] == f"{os.major(device)}:{os.minor(device)}"
        if same_device or resolved == point or resolved.startswith(point.rstrip("/") + "/"):
            # By the device if it is told so; else the innermost mount above (btrfs has its own).
            found.append((len(point) + (1 << 20) * same_device, rest.split()[0]))
    return max(found)[1] if found else ""


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


# ----- limits, clock, sockets, ports


def limit_facts() -> LimitFacts:
    """This process's limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return LimitFacts(
        soft, hard, processes, len(os.sched_getaffinity(0)), _memory_available()
    )  # fmt: skip


def _memory_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def clock_facts() -> ClockFacts:
    """Looks at the monotonic clock many times, and asks the kernel about the other one."""
    last, went_back = time.monotonic_ns(), False
    for _ in range(CLOCK_LOOKS):
        now = time.monotonic_ns()
        went_back |= now < last
        last = now
    return ClockFacts(
        synchronised=_synchronised(),
        resolution=time.get_clock_info("monotonic").resolution,
        went_back=went_back,
        source=_clock_source(),
        random_ready=_random_ready(),
    )


def _synchronised() -> bool | None:
    """adjtimex with modes 0 changes nothing."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _clock_source() -> str:
    try:
        path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        return path.read_text().strip()
    except OSError:
        return ""


def _random_ready() -> bool | None:
    try:
        return len(os.getrandom(16, os.GRND_NONBLOCK)) == 16
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None


def socket_facts() -> SocketFacts:
    """What vmmd would take if it is not told another place."""
    directory = str(Path(tempfile.gettempdir()) / "stairwell-vmmd-XXXXXXXX")
    return SocketFacts(directory, len(os.fsencode(directory)))


async def port_facts(daemon: str, port: int) -> PortFacts:
    """Whether a loopback port can be bound, else who has it."""
    address = f"{LOOPBACK}:{port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            pass
        else:
            return PortFacts(daemon, address, free=True)
    try:
        return PortFacts(
            daemon, address, free=False, health=await check(address, "", HEALTH_SECONDS)
        )
    except StairwellError as error:
        return PortFacts(daemon, address, free=False, error=error.reason.lower().replace("_", " "))
