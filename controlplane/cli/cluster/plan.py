"""What a cluster.toml says, checked as a whole, and the commands it comes to. Pure but for the
clock and the files: nothing is opened here.

The members are called as in docker-compose.yml: ds1, ds2 and so on, their ports ten apart.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.cli.failure import CommandError
from stairlib.model.geometry import Geometry
from stairlib.rpc.flags import FLAGS
from stairlib.runtime.addresses import MAX_PORT, Address

LOOPBACK = "127.0.0.1"
PORT_STEP = 10
# A downstairs keeps the port after its own for its data connection.
PORTS_OF_A_MEMBER = 2
MEMBERS_MAX = 200
SUBNET = "10.203.117.0/24"
CONTROLPLANE, VMMD = "controlplane", "vmmd"

TEMPLATE = """\
# A cluster of local processes: `stairwell cluster up --file cluster.toml` starts it,
# `stairwell cluster down` ends it. Every key may be left out; what is written here is what it is
# then.

# Where all state, logs and certificates are; from where this file is.
directory = "cluster"

# With certificates of its own, made at the first start, in DIRECTORY/pki. Without, plain text on
# this host.
tls = false

# The addresses with --netns, in which each program is a host of its own: the first is the
# bridge's, on this host.
subnet = "10.203.117.0/24"

[controlplane]
port = 55400
# metrics = 55482                      # serve them to Prometheus at this port
# console = 55480                      # the web console
# flags = ["--log-level", "debug"]     # more words for its command line

[vmmd]
port = 55401
# config = "server.toml"               # its configuration; left out: devices without a CPU
# metrics = 55481
# flags = []

[downstairs]
count = 4                              # three members and a spare: ds1, ds2, ds3, ds4
port = 8810                            # of ds1; 8820, 8830 and so on are the next ones'
block_size = 4096                      # bytes
extent_size = 16384                    # blocks in one extent
extent_count = 128                     # 8 GiB, sparse: what is not written takes no space
# flags = []                           # as ["--encrypted"], for volumes with a key
"""

_TOP = {"directory", "tls", "subnet", CONTROLPLANE, VMMD, "downstairs"}
_KEYS = {
    CONTROLPLANE: {"port", "metrics", "console", "flags"},
    VMMD: {"port", "config", "metrics", "flags"},
    "downstairs": {
        "count", "port", "block_size", "extent_size", "extent_count", "flags",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked cluster.toml. `members` is how many downstairs there are; ports are those of the
    programs, `extra_ports` those of metrics and the console by the names of their programs."""

    file: Path
    directory: Path
    tls: bool = False
    subnet: ipaddress.IPv4Network = ipaddress.IPv4Network(SUBNET)  # noqa: RUF009 - immutable
    controlplane_port: int = 55400
    vmmd_port: int = 55401
    vmmd_config: Path | None = None
    members: int = 4
    first_port: int = 8810
    geometry: Geometry = Geometry(4096, 16384, 128)  # noqa: RUF009 - immutable
    extra_ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All programs, in the order in which they are listed."""
        return (CONTROLPLANE, VMMD, *self.member_names)

    @property
    def member_names(self) -> tuple[str, ...]:
        """ds1 and so on."""
        return tuple(f"ds{number}" for number in range(1, self.members + 1))

    def port(self, name: str) -> int:
        """Of a program's gRPC."""
        if name == CONTROLPLANE:
            return self.controlplane_port
        if name == VMMD:
            return self.vmmd_port
        return self.first_port + PORT_STEP * self.member_names.index(name)

    def ports(self, name: str) -> tuple[int, ...]:
        """All that a program listens on."""
        own = self.port(name)
        if name in self.member_names:
            return tuple(range(own, own + PORTS_OF_A_MEMBER))
        return (own, *self.extra_ports.get(name, {}).values())

    def host(self, name: str, *, netns: bool) -> str:
        """Where a program listens."""
        return str(self.subnet[2 + self.names.index(name)]) if netns else LOOPBACK

    def address(self, name: str, *, netns: bool) -> str:
        """As host:port."""
        return str(Address(self.host(name, netns=netns), self.port(name)))


def parse_plan(text: str, file: Path) -> Plan:
    """The plan of a file's text; CommandError with everything that is wrong with it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CommandError(
            f"{file}: {error}", "`stairwell cluster init` writes an example"
        ) from None
    reader = _Reader()
    reader.unknown(data, _TOP, "")
    tables = {name: reader.table(data, name) for name in _KEYS}
    plane, host, members = tables[CONTROLPLANE], tables[VMMD], tables["downstairs"]
    base = file.absolute().parent
    default = Plan(file, base / "cluster")
    config = reader.text(host, "vmmd.", "config", "")
    plan = Plan(
        file=file.absolute(),
        directory=base / reader.text(data, "", "directory", "cluster"),
        tls=reader.boolean(data, "", "tls"),
        subnet=reader.subnet(data),
        controlplane_port=reader.port(plane, "controlplane.", "port", default.controlplane_port),
        vmmd_port=reader.port(host, "vmmd.", "port", default.vmmd_port),
        vmmd_config=base / config if config else None,
        members=reader.number(members, "downstairs.", "count", default.members, 1, MEMBERS_MAX),
        first_port=reader.port(members, "downstairs.", "port", default.first_port),
        geometry=reader.geometry(members, default.geometry),
        extra_ports={
            name: {
                key: reader.port(tables[name], f"{name}.", key, 0)
                for key in ("metrics", "console")
                if key in tables[name]
            }
            for name in (CONTROLPLANE, VMMD)
        },
        flags={name: reader.words(tables[name], f"{name}.", "flags") for name in _KEYS},
    )
    reader.consistent(plan)
    if reader.problems:
        raise CommandError(
            f"{file} is not right",
            "`stairwell cluster init` writes an example with every key",
            tuple(reader.problems),
        )
    return plan


class _Reader:
    """Collects every problem before anything is said, so that one run shows them all."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def unknown(self, table: Mapping[str, Any], known: set[str], before: str) -> None:
        """Notes keys that there are not."""
        self.problems += [
            f"{before}{key}: there is no such key; there are {', '.join(sorted(known))}"
            for key in table
            if key not in known
        ]

    def table(self, data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """A table of the file, empty when it is not there."""
        found = data.get(name, {})
        if not isinstance(found, dict):
            self.problems.append(f"{name}: must be a table, [{name}]")
            return {}
        self.unknown(found, _KEYS[name], f"{name}.")
        return found

    def text(self, table: Mapping[str, Any], before: str, key: str, default: str) -> str:
        """A text that is not empty."""
        found = table.get(key, default)
        if not isinstance(found, str) or (key in table and not found.strip()):
            self.problems.append(f"{before}{key}: must be a text, not {found!r}")
            return default
        return found

    def boolean(self, table: Mapping[str, Any], before: str, key: str) -> bool:
        """A switch, off when it is left out."""
        found = table.get(key, False)
        if not isinstance(found, bool):
            self.problems.append(f"{before}{key}: must be true or false, not {found!r}")
            return False
        return found

    def number(
        self, table: Mapping[str, Any], before: str, key: str, default: int, least: int, most: int
    ) -> int:
        """A whole number within limits."""
        found = table.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            self.problems.append(
                f"{before}{key}: must be a whole number from {least} to {most}, not {found!r}"
            )
            return default
        return found

    def port(self, table: Mapping[str, Any], before: str, key: str, default: int) -> int:
        """A port, which others have to know beforehand: never 0 in the file."""
        return self.number(table, before, key, default, 1, MAX_PORT) if key in table else default

    def words(self, table: Mapping[str, Any], before: str, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            self.problems.append(f"{before}{key}: must be a list of texts, not {found!r}")
            return ()
        return tuple(found)

    def subnet(self, table: Mapping[str, Any]) -> ipaddress.IPv4Network:
        """The network of the namespaces."""
        found = table.get("subnet", SUBNET)
        try:
            # A number would be taken for an address.
            network = ipaddress.IPv4Network(found if isinstance(found, str) else "")
        except ValueError:
            self.problems.append(f"subnet: must be an IPv4 network as {SUBNET}, not {found!r}")
            return ipaddress.IPv4Network(SUBNET)
        return network

    def geometry(self, table: Mapping[str, Any], default: Geometry) -> Geometry:
        """The shape of every region."""
        keys = ("block_size", "extent_size", "extent_count")
        fields = ("block_size", "blocks_per_extent", "extent_count")
        values = [
            self.number(table, "downstairs.", key, getattr(default, name), 1, 1 << 40)
            for key, name in zip(keys, fields, strict=True)
        ]
        geometry = Geometry(*values)
        names = dict(zip(fields, keys, strict=True))
        self.problems += [f"downstairs.{names[name]}: {rule}" for name, rule in geometry.problems()]
        return geometry

    def consistent(self, plan: Plan) -> None:
        """Notes what does not fit together."""
        owners: dict[int, str] = {}
        for name in plan.names:
            for port in plan.ports(name):
                if port > MAX_PORT:
                    self.problems.append(f"{name} would have port {port}: there are {MAX_PORT}")
                elif other := owners.get(port):
                    self.problems.append(f"{name} and {other} would both have port {port}")
                owners.setdefault(port, name)
        needed = len(plan.names) + 3
        if plan.subnet.num_addresses < needed:
            self.problems.append(
                f"subnet: {plan.subnet} has too few addresses, {needed} are needed"
            )


@dataclass(frozen=True, slots=True)
class Layout:
    """What a plan is run with: where its programs are (`netns`: each at an address of its own), its
    regions' ids by member, and the folder of its sockets."""

    plan: Plan
    netns: bool
    regions: Mapping[str, str]
    sockets: Path

    def host(self, name: str) -> str:
        """Where a program listens."""
        return self.plan.host(name, netns=self.netns)

    def address(self, name: str) -> str:
        """As host:port."""
        return self.plan.address(name, netns=self.netns)

    @property
    def pki(self) -> Path:
        """Where the certificates are, if there are any."""
        return self.plan.directory / "pki"

    def command(self, name: str) -> list[str]:
        """What runs a program."""
        plan = self.plan
        more = [*self._security(name), *plan.flags.get(_kind(name), ())]
        for flag, port in plan.extra_ports.get(name, {}).items():
            more += [f"--{flag}", f"{self.host(name)}:{port}"]
        if name == CONTROLPLANE:
            data = str(plan.directory / CONTROLPLANE)
            where = ["--vmmd", self.address(VMMD), "--data", data]
            return ["controlplane", "run", self.address(name), *where, *more]
        if name == VMMD:
            config = plan.vmmd_config or plan.directory / "server.toml"
            folder = ["--runtime-directory", str(self.sockets / VMMD)]
            return ["vmmd", "run", str(config), self.address(name), *folder, *more]
        shape = plan.geometry
        return [
            "downstaird", "run", "-d", str(plan.directory / name), "-p", str(plan.port(name)),
            "-a", self.host(name), "--data-port", str(plan.port(name) + 1),
            "--create", "-u", self.regions[name], "--block-size", str(shape.block_size),
            "--extent-size", str(shape.blocks_per_extent),
            "--extent-count", str(shape.extent_count),
            *more,
        ]  # fmt: skip

    def _security(self, name: str) -> list[str]:
        if self.plan.tls:
            files = (f"{name}.pem", f"{name}.key", "ca.pem")
            pairs = zip(FLAGS, files, strict=True)
            return [word for flag, file in pairs for word in (flag, str(self.pki / file))]
        # The network of the namespaces is on this host alone.
        return ["--insecure"] if self.netns else []

    def disks(self, volume_id: str) -> list[dict[str, Any]]:
        """The walk-through's disk on the first three members, as a crucible-disks file."""
        vcr = self._construction(volume_id, 1, self.plan.member_names[:3])
        return [
            {
                "device": "nvme", "name": "block2", "read_only": False, "slot": 3,
                "volume_construction_request": vcr,
            }
        ]  # fmt: skip

    def replacement(self, volume_id: str) -> dict[str, Any]:
        """The request that puts ds4 into the place of ds3."""
        names = [*self.plan.member_names[:2], self.plan.member_names[3]]
        return {"name": "block2", "vcr": self._construction(volume_id, 2, tuple(names))}

    def _construction(
        self, volume_id: str, generation: int, members: tuple[str, ...]
    ) -> dict[str, Any]:
        shape = self.plan.geometry
        files: dict[str, str] = {}
        if self.plan.tls:
            files = {
                "cert_pem": str(self.pki / f"{VMMD}.pem"),
                "key_pem": str(self.pki / f"{VMMD}.key"),
                "root_cert_pem": str(self.pki / "ca.pem"),
            }
        region = {
            "type": "region",
            "block_size": shape.block_size,
            "blocks_per_extent": shape.blocks_per_extent,
            "extent_count": shape.extent_count,
            "gen": generation,
            "opts": {
                "id": volume_id,
                "lossy": False,
                "read_only": False,
                "target": [self.address(name) for name in members],
                **files,
            },
        }
        return {
            "type": "volume",
            "block_size": shape.block_size,
            "id": volume_id,
            "read_only_parent": None,
            "sub_volumes": [region],
        }


def _kind(name: str) -> str:
    """Whose flags a program has."""
    return name if name in (CONTROLPLANE, VMMD) else "downstairs"
