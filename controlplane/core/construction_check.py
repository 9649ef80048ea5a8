"""Whether a volume can be built from a construction: all problems at once, each with its path.

Pure, and over the parsed value alone: no daemon is asked. A construction with no violations fits
the limits of the storage and can be built where its targets answer. Descriptions read on from the
path ("gen: is 0, must be at least 1") and never carry a key or what stands in a TLS field.

A draft, of which some fields could not be read, is judged as well: what stands at those paths is
not looked at, and neither is what would follow from it alone.

A read-only parent may hold regions that are not `read_only`, as in the original system: nothing is
ever written to a parent, whatever its regions say.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import urlsplit

from stairlib.model.construction import (
    DEPTH_MAX,
    FLUSH_TIMEOUT_MAX,
    FLUSH_TIMEOUT_MIN,
    GENERATION_MAX,
    NODES_MAX,
    PATH_BYTES_MAX,
    TARGETS_PER_REGION,
    U64_MAX,
    URL_LENGTH_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    canonical_address,
    children,
    join_path,
    total_bytes,
)
from stairlib.model.errors import FieldViolation
from stairlib.model.geometry import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN
from stairlib.model.violations import ViolationList

KEY_BYTES = 32
_PEM_MARK = "-----BEGIN"
_HTTP_PORT = 80
_GEOMETRY_REASONS = {
    "block_size": "BLOCK_SIZE_INVALID",
    "blocks_per_extent": "EXTENT_SIZE_INVALID",
    "extent_count": "EXTENT_COUNT_INVALID",
}
_GEOMETRY_FIELDS = tuple(_GEOMETRY_REASONS)


@dataclass(frozen=True, slots=True)
class CheckSummary:
    """What a construction amounts to; None is what cannot be said of a draft.

    Regions and targets include those of read-only parents. `total_bytes` is the size of the
    address space; each of the `sources` (files and URLs, whose size the request does not say)
    counts 0. `depth` is the number of levels, 1 for a bare region. `block_size` is the outermost
    one's.
    """

    total_bytes: int | None
    regions: int | None
    targets: int | None
    encrypted: bool | None
    depth: int | None
    block_size: int | None
    sources: int | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every problem found (`omitted` more are not listed), and the summary of what there is."""

    violations: tuple[FieldViolation, ...]
    summary: CheckSummary
    omitted: int = 0

    @property
    def valid(self) -> bool:
        """Whether a volume can be built from it."""
        return not self.violations


def check(construction: Construction, *, unread: frozenset[str] = frozenset()) -> CheckReport:
    """Judge a construction, or a draft with placeholders at the paths `unread`. Never raises."""
    checker = _Checker(unread)
    checker.node(construction, "", 1)
    size = total_bytes(construction) if checker.sized else None
    if size is not None and size > U64_MAX:
        field = "extent_count" if isinstance(construction, RegionSpec) else "sub_volumes"
        text = "makes more bytes than 64 bits can count, must be less"
        checker.refuse(field, "SIZE_OVERFLOW", text)
        size = None
    found = checker.violations
    return CheckReport(found.listed, checker.summary(construction.block_size, size), found.omitted)


class _Checker:
    """One walk over a construction, collecting violations and what the summary counts."""

    def __init__(self, unread: frozenset[str]) -> None:
        self.violations = ViolationList()
        # Whether every node was seen, whether the geometry of each region was, and so on: what the
        # summary can be sure of.
        self.whole = True
        self.sized = True
        self._targets_known = True
        self._keys_known = True
        self._unread = unread
        self._regions = 0
        self._targets_seen = 0
        self._sources = 0
        self._encrypted = False
        self._depth = 0
        self._nodes = 0
        self._target_paths: dict[str, str] = {}

    def refuse(self, field: str, reason: str, description: str) -> None:
        """Note one problem, unless the field could not even be read."""
        if field not in self._unread:
            self.violations.refuse(field, reason, description)

    def summary(self, block_size: int, size: int | None) -> CheckSummary:
        """What was counted, as far as it is certain."""
        whole = self.whole
        encrypted = self._encrypted if whole and self._keys_known else None
        return CheckSummary(
            total_bytes=size,
            regions=self._regions if whole else None,
            targets=self._targets_seen if whole and self._targets_known else None,
            encrypted=True if self._encrypted else encrypted,
            depth=self._depth if whole else None,
            block_size=None if "block_size" in self._unread else block_size,
            sources=self._sources if whole else None,
        )

    def node(self, node: Construction, path: str, depth: int) -> None:
        """Check the node at `path`, `depth` levels from the top, and what is below it."""
        if path in self._unread:
            self.whole = self.sized = False
            return
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            self._over_limit(path, depth)
            return
        self._depth = max(self._depth, depth)
        match node:
            case VolumeSpec():
                self._volume(node, path, depth)
            case RegionSpec():
                self._region(node, path)
            case FileSpec():
                self._sources += 1
                self._block_size(node.block_size, path)
                self._path(node.path, join_path(path, "path"), "must name a file")
            case UrlSpec():
                self._sources += 1
                self._block_size(node.block_size, path)
                self._url(node.url, join_path(path, "url"))

    def _over_limit(self, path: str, depth: int) -> None:
        self.whole = self.sized = False
        if depth > DEPTH_MAX:
            text = f"is at level {depth}, must not be below level {DEPTH_MAX}"
            self.refuse(path, "TOO_DEEP", text)
        elif self._nodes == NODES_MAX + 1:
            text = f"is node {self._nodes}, must not be more than {NODES_MAX} in one request"
            self.refuse(path, "TOO_MANY_NODES", text)

    def _volume(self, volume: VolumeSpec, path: str, depth: int) -> None:
        self._block_size(volume.block_size, path)
        if join_path(path, "sub_volumes") in self._unread:
            self.whole = self.sized = False
        elif not volume.sub_volumes and volume.read_only_parent is None:
            self.refuse(
                join_path(path, "sub_volumes"),
                "VOLUME_EMPTY",
                "is empty, must hold at least one region or volume",
            )
        comparable = join_path(path, "block_size") not in self._unread
        for at, child in children(volume, path):
            if comparable and child.block_size != volume.block_size and at not in self._unread:
                self.refuse(
                    join_path(at, "block_size"),
                    "BLOCK_SIZE_MISMATCH",
                    f"is {child.block_size}, must be {volume.block_size} as in the volume it is in",
                )
            self.node(child, at, depth + 1)

    def _region(self, region: RegionSpec, path: str) -> None:
        self._regions += 1
        self._targets_seen += len(region.options.targets)
        for name, text in region.geometry.problems():
            self.refuse(join_path(path, name), _GEOMETRY_REASONS[name], text)
        at = join_path(path, "gen")
        if region.generation < 1:
            self.refuse(at, "GENERATION_ZERO", f"is {region.generation}, must be at least 1")
        elif region.generation > GENERATION_MAX:
            text = f"is {region.generation}, must be at most {GENERATION_MAX}: it has to rise later"
            self.refuse(at, "GENERATION_TOO_HIGH", text)
        if region.encrypted and join_path(path, "opts.key") not in self._unread:
            self._encrypted = True
        if self._unread:
            self._what_is_known(path)
        self._options(region.options, join_path(path, "opts"))

    def _what_is_known(self, path: str) -> None:
        """Notes what the summary cannot be sure of because of the region at `path`."""
        if any(join_path(path, name) in self._unread for name in _GEOMETRY_FIELDS):
            self.sized = False
        options = join_path(path, "opts")
        self._targets_known &= join_path(options, "target") not in self._unread
        self._keys_known &= join_path(options, "key") not in self._unread

    def _options(self, options: RegionOptions, path: str) -> None:
        self._targets(options.targets, join_path(path, "target"))
        if options.key is not None:
            self._key(options.key, join_path(path, "key"))
        seconds = options.flush_timeout
        if seconds is not None and not FLUSH_TIMEOUT_MIN <= seconds <= FLUSH_TIMEOUT_MAX:
            text = (
                f"is {seconds}, must be from {FLUSH_TIMEOUT_MIN} to {FLUSH_TIMEOUT_MAX:.0f} "
                "seconds, or null for 0.5"
            )
            self.refuse(join_path(path, "flush_timeout"), "FLUSH_TIMEOUT_INVALID", text)
        self._tls(options, path)

    def _targets(self, targets: tuple[str, ...], path: str) -> None:
        if len(targets) != TARGETS_PER_REGION:
            self.refuse(
                path,
                "TARGET_COUNT",
                f"has {len(targets)} addresses, must have exactly {TARGETS_PER_REGION}",
            )
        for slot, target in enumerate(targets):
            at = f"{path}[{slot}]"
            if at in self._unread:
                continue
            first = self._target_paths.setdefault(target, at)
            if first != at:
                self.refuse(
                    at,
                    "DUPLICATE_TARGET",
                    f"is {target}, which {first} has already; must be a downstairs of its own",
                )

    def _key(self, key: Secret, path: str) -> None:
        try:
            length = len(base64.b64decode(key.reveal(), validate=True))
        except (binascii.Error, ValueError):  # the latter: text that is not ASCII
            self.refuse(path, "KEY_INVALID", f"is not base64, must be base64 of {KEY_BYTES} bytes")
            return
        if length != KEY_BYTES:
            text = f"is base64 of {length} bytes, must be base64 of exactly {KEY_BYTES}"
            self.refuse(path, "KEY_INVALID", text)

    def _tls(self, options: RegionOptions, path: str) -> None:
        given = {
            "cert_pem": options.cert_pem,
            "key_pem": options.key_pem,
            "root_cert_pem": options.root_cert_pem,
        }
        some = any(value is not None for value in given.values())
        for name, value in given.items():
            at = join_path(path, name)
            if value is None:
                if some:
                    text = (
                        "is missing, must be given with the other two TLS paths (or none of them)"
                    )
                    self.refuse(at, "TLS_INCOMPLETE", text)
            elif _PEM_MARK in value:
                text = "holds PEM text, must be the path of a file that does"
                self.refuse(at, "PEM_TEXT_GIVEN", text)
            else:
                self._path(value, at, "must name a file, or be null")

    def _path(self, value: str, at: str, empty: str) -> None:
        """The rules of a file's name. It is not shown: people paste secrets in its place."""
        if not value:
            self.refuse(at, "PATH_EMPTY", empty)
        elif "\0" in value:
            self.refuse(at, "PATH_INVALID", "holds a NUL, must be a path without one")
        elif len(value.encode(errors="replace")) > PATH_BYTES_MAX:
            self.refuse(at, "PATH_INVALID", f"must be a path of at most {PATH_BYTES_MAX} bytes")

    def _block_size(self, size: int, path: str) -> None:
        if not BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX or size & (size - 1):
            text = f"is {size}, must be a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"
            self.refuse(join_path(path, "block_size"), "BLOCK_SIZE_INVALID", text)

    def _url(self, url: str, path: str) -> None:
        try:
            parts = urlsplit(url)
            credentials = parts.username is not None or parts.password is not None
            legal = parts.scheme in ("http", "https") and _is_plain(url)
            # Refuses a port that is none, and a host that cannot be one.
            host = parts.hostname or ""
            port = _HTTP_PORT if parts.port is None else parts.port
            canonical_address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except ValueError:
            legal, credentials = False, False
        if not legal:
            self.refuse(path, "URL_INVALID", "must be an http or https URL with a host")
        elif credentials:
            text = "holds a user or password, must not: requests are stored and shown"
            self.refuse(path, "URL_CREDENTIALS", text)


def _is_plain(url: str) -> bool:
    """Whether a URL is written as RFC 3986 wants it: printable ASCII without blanks, and short."""
    return len(url) <= URL_LENGTH_MAX and url.isascii() and url.isprintable() and " " not in url
