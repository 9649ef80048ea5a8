"""One cluster of local processes: brought up, looked at, and taken down again.

What has to be known from one command to the next is in DIRECTORY/cluster.json; which processes
there are is read from the system each time. Invariants: what an `up` that fails has started is
ended again; `down` removes what it finds, not what it remembers; only what was made here is removed
with the volumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.cli.cluster import processes
from controlplane.cli.cluster.networks import Networks, check_possible, tag_of
from controlplane.cli.cluster.plan import CONTROLPLANE, Layout, Plan
from controlplane.cli.commands.pki import AUTHORITY_DAYS, CERTIFICATE_DAYS
from controlplane.cli.daemons import Daemon, health, program, serves
from controlplane.cli.failure import CommandError
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish
from stairlib.rpc.tls import TlsFiles
from stairlib.runtime.ports import can_listen

STATE, LOCK = "cluster.json", "lock"
DISKS, REPLACE = "crucible-disks.json", "replace.json"
VERSION = 1
# All of them start at once, and share the processors.
UP_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class Look:
    """How one program is: `health` is SERVING, another word of its own, or empty where it does not
    answer; `pid` 0 where it does not run."""

    name: str
    address: str
    pid: int
    health: str
    log: Path

    @property
    def word(self) -> str:
        """For people."""
        if not self.pid:
            return "not running"
        return self.health.lower().replace("_", " ") or "no answer"


class House:
    """The cluster of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = plan.directory
        self.networks = Networks(tag_of(self.folder))
        self._state = self._read()

    @property
    def is_made(self) -> bool:
        """Whether it was up before, and was not taken down with its volumes."""
        return bool(self._state)

    def leftover(self) -> bool:
        """Whether anything of it is there, remembered or not."""
        return self.is_made or bool(processes.running(self.folder)) or self.networks.exist()

    @property
    def netns(self) -> bool:
        """Whether its programs are in network namespaces."""
        return bool(self._state.get("netns"))

    @property
    def layout(self) -> Layout:
        """What it is run with."""
        return Layout(
            self.plan, self.netns, self._state["regions"], Path(self._state["sockets"])
        )  # fmt: skip

    @property
    def tls(self) -> TlsFiles | None:
        """What an operator shows the programs."""
        if not self.plan.tls:
            return None
        pki = self.folder / "pki"
        return TlsFiles(str(pki / "operator.pem"), str(pki / "operator.key"), str(pki / "ca.pem"))

    def log(self, name: str) -> Path:
        """What a program prints."""
        return self.folder / "logs" / f"{name}.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Two commands do not change one cluster at once; a folder that was made for nothing goes
        again."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = _locked(self.folder / LOCK)
        except OSError as error:
            raise CommandError(
                f"cannot write to {self.folder}: {error.strerror}",
                "name another `directory` in the file",
            ) from None
        if descriptor is None:
            raise CommandError(
                f"another command is at work on the cluster in {self.folder}",
                "wait for it, or end it",
            )
        try:
            yield
        finally:
            if not (self.folder / STATE).exists():
                (self.folder / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            os.close(descriptor)

    async def look(self) -> list[Look]:
        """Every program as it is now."""
        if not self.is_made:
            raise CommandError(
                f"there is no cluster in {self.folder}", "`stairwell cluster up` makes one"
            )
        found = processes.programs(self.folder)
        layout, tls = self.layout, self.tls

        async def one(name: str) -> Look:
            pid, address = found.get(name, 0), layout.address(name)
            said = await health(address, tls) if pid else ""
            return Look(name, address, pid, said, self.log(name))

        return list(await asyncio.gather(*(one(name) for name in self.plan.names)))

    async def up(self, *, netns: bool, told: Callable[[str], None]) -> None:
        """Starts what does not run; returns when all of it serves. CommandError otherwise, with
        nothing left of what this began. `told` hears of each program that serves."""
        there = processes.programs(self.folder)
        missing = [name for name in self.plan.names if name not in there]
        if not missing:
            raise CommandError(
                f"the cluster in {self.folder} is up already",
                "`stairwell cluster status` shows it, `stairwell cluster down` ends it",
            )
        if there and netns != self.netns:
            raise CommandError(
                f"a part of the cluster in {self.folder} is up {'without' if netns else 'with'} "
                "--netns",
                "end it first: `stairwell cluster down`",
            )
        if netns:
            check_possible(self.plan.subnet, made=self.networks.exist())
        else:
            self._check_ports(missing)
        self._prepare(netns=netns)
        try:
            if netns:
                hosts = {name: self.layout.host(name) for name in self.plan.names}
                await self.networks.make(hosts, self.plan.subnet)
            await self._start(missing, told)
        except BaseException:
            # Ctrl-C too. What ran before goes on, with its networks.
            if not there:
                await asyncio.shield(self._end())
            raise

    async def down(self, *, volumes: bool) -> list[str]:
        """Ends all of it; with `volumes` what it has stored goes as well. The names of those that
        had to be killed."""
        killed = await self._end()
        if volumes:
            self._discard()
        return killed

    async def _end(self) -> list[str]:
        killed = await processes.stop(self.folder)
        if self.networks.exist():
            await self.networks.remove()
        sockets = self._state.get("sockets", "")
        if sockets:
            shutil.rmtree(sockets, ignore_errors=True)
        return killed

    def _discard(self) -> None:
        """Removes what was made here and nothing else."""
        made = [STATE, DISKS, REPLACE, "server.toml", "pki", "logs", CONTROLPLANE]
        made += self._state.get("regions", {})
        for name in made:
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._state = {}

    def _check_ports(self, names: list[str]) -> None:
        """CommandError that names every port which another program has."""
        taken = [
            f"port {port} of {name}"
            for name in names
            for port in self.plan.ports(name)
            if not can_listen(self.plan.host(name, netns=False), port)
        ]
        if taken:
            raise CommandError(
                "another program has what this cluster needs",
                f"end it, or name other ports in {self.plan.file}",
                tuple(taken),
            )

    def _prepare(self, *, netns: bool) -> None:
        """Folders, certificates, the walk-through's files; all of it stays as it is where it is
        there."""
        (self.folder / "logs").mkdir(exist_ok=True)
        known = self._state
        regions = dict(known.get("regions", {}))
        for name in self.plan.member_names:
            regions.setdefault(name, str(uuid.uuid4()))
        # Short: the path of a socket has 107 bytes at most.
        sockets = Path(known.get("sockets") or tempfile.mkdtemp(prefix="sw-"))
        for name in self.plan.names:
            (sockets / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state = {
            "version": VERSION,
            "netns": netns,
            "sockets": str(sockets),
            "regions": regions,
            "volume": known.get("volume") or str(uuid.uuid4()),
        }
        _write(self.folder / STATE, self._state)
        config = self.folder / "server.toml"
        if not config.exists():
            config.write_text('# Devices run, without a CPU.\nengine = "none"\n')
        if self.plan.tls:
            self._issue()
        if self.plan.members >= 3:
            _write(self.folder / DISKS, self.layout.disks(self._state["volume"]))
        if self.plan.members >= 4:
            _write(self.folder / REPLACE, self.layout.replacement(self._state["volume"]))

    def _issue(self) -> None:
        """An authority, and a certificate for each program at its address; `stairwell pki renew`
        renews them."""
        pki = self.layout.pki
        made = (pki / "ca.pem").exists()
        authority = Authority(pki) if made else Authority.found(pki, AUTHORITY_DAYS)
        issued = {one.name: one.hosts for one in authority.issued()}
        wishes = [
            Wish(name, Role.DAEMON, (self.layout.host(name),)) for name in self.plan.names
        ] + [Wish("operator", Role.OPERATOR), Wish("viewer", Role.VIEWER)]
        for wish in wishes:
            if wish.name not in issued or not set(wish.hosts) <= set(issued[wish.name]):
                authority.issue(wish, CERTIFICATE_DAYS, replace=True)

    async def _start(self, names: list[str], told: Callable[[str], None]) -> None:
        """Starts these, all at once, and waits until each serves."""
        daemons = [self._launched(name) for name in names]

        async def one(daemon: Daemon) -> None:
            if not await serves(daemon, self.tls, UP_SECONDS):
                what = "does not serve" if daemon.is_running else "ended instead of serving"
                raise daemon.failed(f"{what} at {daemon.address}")
            told(f"{daemon.name} serves at {daemon.address}")

        try:
            async with asyncio.TaskGroup() as group:
                for daemon in daemons:
                    group.create_task(one(daemon))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _launched(self, name: str) -> Daemon:
        layout = self.layout
        sockets = layout.sockets / name
        command = layout.command(name)
        if self.netns:
            member = name in self.plan.member_names
            prefix = self.networks.prefix(name, sockets if member else None)
            command = [*prefix, program(command[0]), *command[1:]]
        daemon = Daemon(
            name,
            command,
            self.log(name),
            processes.environment(self.folder, name, sockets),
            f"see all of it: `stairwell cluster logs {name}`",
        )
        daemon.address = layout.address(name)
        return daemon

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / STATE).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CommandError(f"{self.folder / STATE} cannot be read: {error}") from None
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise CommandError(
                f"{self.folder / STATE} is of another version of this program",
                "take the cluster down with that one",
            )
        return found


def next_steps(house: House) -> list[str]:
    """What one would type now, in order."""
    plan, layout = house.plan, house.layout
    host, port = layout.host(CONTROLPLANE), plan.port(CONTROLPLANE)
    client = ["stairwell"]
    if house.netns:
        client += ["-s", host]
        client += [] if plan.tls else ["--insecure"]
    if port != 55400:
        client += ["-p", str(port)]
    if (tls := house.tls) is not None:
        client += ["--tls-ca", tls.root, "--tls-cert", tls.cert, "--tls-key", tls.key]
    words = " ".join(client)
    steps = []
    if plan.members >= 3:
        steps.append(f"{words} new crub --crucible-disks {plan.directory / DISKS}")
        steps.append(f"{words} state run --wait")
    if plan.members >= 4:
        steps.append(f"{words} vcr -u block2 --vcr-replace {plan.directory / REPLACE}")
        steps.append(f"{words} disk status block2")
    return steps


def _locked(path: Path) -> int | None:
    """A descriptor that holds the file's lock; None while another one does. OSError when it cannot
    be written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may just have removed it.
        gone = not os.fstat(descriptor).st_nlink
    except BlockingIOError:
        gone = True
    if gone:
        os.close(descriptor)
        return None
    return descriptor


def _write(path: Path, data: Any) -> None:
    """As a whole: a reader never sees half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(data, indent=4) + "\n")
    part.replace(path)
