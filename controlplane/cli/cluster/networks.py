"""Network namespaces: each program a host of its own, on one bridge, made and removed by `ip`.

The bridge is in a namespace too, the switch: in the host's own, the rules that docker makes for all
that is forwarded would be asked about each of its frames. This host has one cable to it.

Invariants: everything is named by the cluster's tag, so that it is found and removed by its name
alone, whatever became of whoever made it; nothing else of this host's network is touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.failure import CommandError

# A command of `ip` takes milliseconds.
SECONDS = 20.0
_NAMESPACES = Path("/run/netns")
_INTERFACES = Path("/sys/class/net")
_BRIDGE = "bridge"


def tag_of(directory: Path) -> str:
    """Six letters that stand for a cluster: names of interfaces have 15 at most."""
    return hashlib.sha256(str(directory).encode()).hexdigest()[:6]


@dataclass(frozen=True, slots=True)
class Networks:
    """Those of the cluster with this tag."""

    tag: str

    @property
    def cable(self) -> str:
        """This host's own end, with the subnet's first address."""
        return f"sw{self.tag}"

    @property
    def switch(self) -> str:
        """The namespace of the bridge. Each program's end there has the program's name: setting it
        down pulls the cable."""
        return self.namespace("switch")

    def namespace(self, name: str) -> str:
        """That of a program."""
        return f"stairwell-{self.tag}-{name}"

    def prefix(self, name: str, hidden: Path | None) -> list[str]:
        """Words before a command that has it run in a program's namespace; `hidden` is a folder
        that the program has for itself: two hosts do not share one either."""
        inside = ["ip", "netns", "exec", self.namespace(name)]
        if hidden is None:
            return inside
        script = 'mount -t tmpfs -o mode=700 tmpfs "$0" && exec "$@"'
        return [*inside, "sh", "-c", script, str(hidden)]

    async def make(self, hosts: Mapping[str, str], subnet: ipaddress.IPv4Network) -> None:
        """The switch, and a namespace for each of `hosts` (addresses by name); those that are there
        stay. CommandError with what `ip` said."""
        if not (_NAMESPACES / self.switch).exists():
            # What is left of a cable whose other end is gone.
            await _ip("link", "del", self.cable, quiet=True)
            await _ip("netns", "add", self.switch)
            await self._switch("link", "add", _BRIDGE, "type", "bridge")
            await self._switch("link", "set", _BRIDGE, "up")
            await _ip(
                "link", "add", self.cable, "type", "veth", "peer", "name", "host",
                "netns", self.switch,
            )  # fmt: skip
            await self._switch("link", "set", "host", "master", _BRIDGE, "up")
            await _ip("addr", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", self.cable)
            await _ip("link", "set", self.cable, "up")
        for name, host in hosts.items():
            namespace = self.namespace(name)
            if (_NAMESPACES / namespace).exists():
                continue
            await self._switch("link", "del", name, quiet=True)
            await _ip("netns", "add", namespace)
            await self._switch(
                "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace
            )  # fmt: skip
            await self._switch("link", "set", name, "master", _BRIDGE, "up")
            inside = ("-n", namespace)
            await _ip(*inside, "addr", "add", f"{host}/{subnet.prefixlen}", "dev", "eth0")
            for device in ("lo", "eth0"):
                await _ip(*inside, "link", "set", device, "up")

    async def _switch(self, *words: str, quiet: bool = False) -> None:
        """`ip` in the switch."""
        await _ip("-n", self.switch, *words, quiet=quiet)

    async def remove(self) -> None:
        """All of it, as far as it is there."""
        for namespace in _names(_NAMESPACES, f"stairwell-{self.tag}-"):
            await _ip("netns", "del", namespace)
        # It goes with the switch, a moment later; here it goes now.
        await _ip("link", "del", self.cable, quiet=True)

    def exist(self) -> bool:
        """Whether anything of it is there."""
        left = (_INTERFACES / self.cable).exists()
        return left or bool(_names(_NAMESPACES, f"stairwell-{self.tag}-"))


def check_possible(subnet: ipaddress.IPv4Network, *, made: bool) -> None:
    """CommandError where namespaces cannot be had here; `made` says that ours are there already."""
    if shutil.which("ip") is None:
        raise CommandError(
            "--netns needs the command `ip`, which is not here",
            "install iproute2, or leave --netns out: all programs then listen on loopback",
        )
    if os.geteuid() != 0:
        raise CommandError(
            "--netns needs root, which makes network namespaces",
            "use sudo, or leave --netns out: all programs then listen on loopback",
        )
    if not made and (taken := _taken(subnet)):
        raise CommandError(
            f"the subnet {subnet} is in use on this host already: {taken}",
            "name another one as `subnet` in the file",
        )


def _names(folder: Path, beginning: str) -> list[str]:
    try:
        return [each for each in os.listdir(folder) if each.startswith(beginning)]
    except OSError:
        return []


def _taken(subnet: ipaddress.IPv4Network) -> str:
    """The route of this host that overlaps the subnet, in words; empty when none does."""
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        # Little-endian hexadecimal numbers; the default route overlaps everything.
        address, mask = (int.from_bytes(bytes.fromhex(fields[at]), "little") for at in (1, 7))
        if mask and ipaddress.IPv4Network((address, mask.bit_count())).overlaps(subnet):
            route = ipaddress.IPv4Network((address, mask.bit_count()))
            return f"{route} is routed to {fields[0]}"
    return ""


async def _ip(*words: str, quiet: bool = False) -> None:
    await run_ip(("ip", *words), quiet=quiet)


async def run_ip(command: Sequence[str], *, quiet: bool = False) -> None:
    """Runs one command to its end; CommandError with what it said, unless it is `quiet`."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        said = b"it took too long"
    if process.returncode and not quiet:
        raise CommandError(
            f"`{' '.join(command)}` failed: {said.decode(errors='replace').strip()}",
            "leave --netns out where this host does not let you make networks",
        )
