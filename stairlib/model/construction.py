"""Volume construction requests (VCRs) as frozen typed values: what a volume is built from.

A construction is a tree. Its inner nodes are volumes, its leaves regions, files and URLs; any
node may be the root. Invariants, whatever built the value:

- addresses are canonical text, so that equal addresses are equal strings: IPv4 `a.b.c.d:port`,
  IPv6 `[addr]:port` compressed and in lower case, or a lower-case host name `name:port`;
- `flush_timeout` is a finite value of 32-bit precision, as it is on the wire;
- a key never appears in `repr` or `str`, and neither do the TLS paths (people paste the PEM there).

What a value *means* is not judged here: `controlplane.core.construction_check` says whether a
volume can be built from it. Field paths are the JSON's own: `sub_volumes[0].opts.target[2]`.
"""

from __future__ import annotations

import ipaddress
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from stairlib.model.geometry import Geometry

# Levels of nodes from the root to the deepest leaf. Each clone of a clone adds one; protobuf itself
# stops at 100, and the walks over a construction are recursive.
DEPTH_MAX = 32
# Nodes of one construction: above any real volume, and few enough to judge in half a second. So
# many regions take 2 MiB as a message and 6 MiB as JSON; a JSON text inside a call, which is at
# most 4 MiB, ends at about 11,000.
NODES_MAX = 16384
# What a region is kept by: the upstairs drives exactly this many copies.
TARGETS_PER_REGION = 3
# A generation asked for; the control plane raises what it hands out to machines above it, into
# what is left of 64 bits.
GENERATION_MAX = (1 << 63) - 1
# Seconds without a flush: from what an event loop can tell from none, to a year.
FLUSH_TIMEOUT_MIN = 0.001
FLUSH_TIMEOUT_MAX = 31_536_000.0
# Bytes of a path in UTF-8 (Linux: PATH_MAX), and letters of a URL.
PATH_BYTES_MAX = 4095
URL_LENGTH_MAX = 4096
# The field, and so the step of a path, that leads to a volume's parent.
PARENT = "read_only_parent"
U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1

_HOST_NAME_MAX = 253
_HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_PORT_MAX = 65535
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# What nearly every target is, in the spelling that is kept: IPv4 and a port of up to four digits.
_COMMON_ADDRESS = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}:[1-9][0-9]{{0,3}}", re.ASCII)


class Secret:
    """A string that is shown to nobody by accident; `reveal` is the one way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself. For what needs it, never for messages."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class RegionOptions:
    """How one region set is reached and kept. `flush_timeout` is in seconds, None means 0.5.

    `targets` is in slot order. `key` is base64 of 32 bytes, None means not encrypted. The TLS
    fields are paths of files. Raises ValueError when an address or the
    time cannot be what it has to be.
    """

    id: UUID
    targets: tuple[str, ...]
    lossy: bool = False
    flush_timeout: float | None = None
    key: Secret | None = None
    cert_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)
    root_cert_pem: str | None = field(default=None, repr=False)
    control: str | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        canonical = tuple(canonical_address(target) for target in self.targets)
        object.__setattr__(self, "targets", canonical)
        if self.control is not None:
            control = canonical_address(self.control, port_min=0)
            object.__setattr__(self, "control", control)
        if self.flush_timeout is not None:
            object.__setattr__(self, "flush_timeout", as_f32(self.flush_timeout))


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A region set: three copies of one region. `generation` is the JSON's `gen`."""

    geometry: Geometry
    options: RegionOptions
    generation: int

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self.geometry.block_size

    @property
    def encrypted(self) -> bool:
        """Whether the blocks are encrypted before they leave the upstairs."""
        return self.options.key is not None


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A local file; its length is its size."""

    id: UUID
    block_size: int
    path: str


@dataclass(frozen=True, slots=True)
class UrlSpec:
    """Something read over HTTP, never written."""

    id: UUID
    block_size: int
    url: str


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Sub-volumes one after another, over a parent that serves the blocks none of them owns."""

    id: UUID
    block_size: int
    sub_volumes: tuple[Construction, ...]
    read_only_parent: Construction | None = None


Construction = VolumeSpec | RegionSpec | FileSpec | UrlSpec


def type_name(construction: Construction) -> str:
    """The JSON's `type` of this node."""
    match construction:
        case VolumeSpec():
            return "volume"
        case RegionSpec():
            return "region"
        case FileSpec():
            return "file"
        case UrlSpec():
            return "url"


def join_path(path: str, name: str) -> str:
    """The path of field `name` of the node at `path`; the root's path is empty."""
    return f"{path}.{name}" if path else name


def in_parent(path: str) -> bool:
    """Whether the node at `path` is a read-only parent or inside one: it is never written."""
    return PARENT in path.split(".")


def children(construction: Construction, path: str = "") -> Iterator[tuple[str, Construction]]:
    """(path, node) of what is directly below a node: sub-volumes in order, then the parent."""
    if not isinstance(construction, VolumeSpec):
        return
    for index, child in enumerate(construction.sub_volumes):
        yield join_path(path, f"sub_volumes[{index}]"), child
    if construction.read_only_parent is not None:
        yield join_path(path, PARENT), construction.read_only_parent


def walk(construction: Construction, path: str = "") -> Iterator[tuple[str, Construction]]:
    """(path, node) of every node, a node before what is below it, read-only parents included."""
    waiting = [(path, construction)]
    while waiting:
        at, node = waiting.pop()
        yield at, node
        waiting.extend(reversed(list(children(node, at))))


def regions(construction: Construction, path: str = "") -> Iterator[tuple[str, RegionSpec]]:
    """(path, region) of every region of the tree, those of read-only parents included."""
    for at, node in walk(construction, path):
        if isinstance(node, RegionSpec):
            yield at, node


def total_bytes(construction: Construction) -> int:
    """Size of the address space, as far as the request says it; a file or a URL counts 0.

    Sub-volumes add up; a read-only parent counts only where there are none.
    """
    match construction:
        case RegionSpec():
            return construction.geometry.total_bytes
        case VolumeSpec():
            if construction.sub_volumes:
                return sum(total_bytes(child) for child in construction.sub_volumes)
            parent = construction.read_only_parent
            return total_bytes(parent) if parent is not None else 0
        case _:
            return 0


def volume_id(construction: Construction) -> UUID:
    """The UUID a construction is known by; a bare region has its options' id."""
    if isinstance(construction, RegionSpec):
        return construction.options.id
    return construction.id


def as_f32(value: float) -> float:
    """The 32-bit value nearest to `value`, as a Python float. ValueError unless that is finite."""
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", float(value)))[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise ValueError("must be a finite number of seconds")
    return rounded


def canonical_address(text: str, *, port_min: int = 1) -> str:
    """The one spelling of "ip:port", "[ipv6]:port" or "name:port"; ValueError says the rule."""
    if port_min <= 1 and _COMMON_ADDRESS.fullmatch(text):
        return text
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError('must be "ip:port", "[ipv6]:port" or "name:port"')
    if not _PORT.fullmatch(port_text) or not port_min <= int(port_text) <= _PORT_MAX:
        raise ValueError(f"must end in a port from {port_min} to {_PORT_MAX}")
    return f"{_canonical_host(host)}:{int(port_text)}"


def _canonical_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return f"[{_canonical_ipv6(host[1:-1])}]"
    if ":" in host:
        raise ValueError("must have its IPv6 address in brackets, as [::1]:8810")
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if labels[-1].isdigit():
        # No host name ends in a number, so this can only be meant as an address.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("must have an IPv4 address of four numbers from 0 to 255") from None
    if len(name) > _HOST_NAME_MAX or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError("must have a host name of letters, digits, hyphens and dots")
    return name


def _canonical_ipv6(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("must have a legal IPv6 address between the brackets") from None
    mapped = address.ipv4_mapped
    if mapped is None:
        return address.compressed
    # Python versions differ in how they print these; RFC 5952 asks for the mixed form.
    scope = f"%{address.scope_id}" if address.scope_id else ""
    return f"::ffff:{mapped}{scope}"
