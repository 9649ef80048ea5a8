"""Whether a volume can be built from a construction: all problems at once, each with its path.

Pure, and over the parsed value alone: no daemon is asked. A construction with no violations fits
the limits of the storage and can be built where its targets answer. Descriptions read on from the
path ("gen: is 0, must be at least 1") and never carry a key or what stands in a TLS field.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import urlsplit

from stairlib.model.construction import (
    DEPTH_MAX,
    NODES_MAX,
    TARGETS_PER_REGION,
    U64_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    children,
    join_path,
    total_bytes,
)
from stairlib.model.errors import FieldViolation
from stairlib.model.geometry import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN

KEY_BYTES = 32
_PEM_MARK = "-----BEGIN"
_GEOMETRY_REASONS = {
    "block_size": "BLOCK_SIZE_INVALID",
    "blocks_per_extent": "EXTENT_SIZE_INVALID",
    "extent_count": "EXTENT_COUNT_INVALID",
}


@dataclass(frozen=True, slots=True)
class CheckSummary:
    """What a construction amounts to. Regions and targets include those of read-only parents.

    `total_bytes` is the size of the address space; files and URLs, whose size the request does not
    say, count 0. `depth` is the number of levels, 1 for a bare region.
    """

    total_bytes: int
    regions: int
    targets: int
    encrypted: bool
    depth: int
    block_size: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every problem found, and the summary of what there is."""

    violations: tuple[FieldViolation, ...]
    summary: CheckSummary

    @property
    def valid(self) -> bool:
        """Whether a volume can be built from it."""
        return not self.violations


def check(construction: Construction) -> CheckReport:
    """Judge a construction. Never raises."""
    checker = _Checker()
    checker.node(construction, "", 1)
    size = 0
    if checker.within_limits:
        size = total_bytes(construction)
        if size > U64_MAX:
            field = "extent_count" if isinstance(construction, RegionSpec) else "sub_volumes"
            checker.refuse(field, "SIZE_OVERFLOW", "add up to more bytes than 64 bits can count")
            size = 0
    summary = CheckSummary(
        total_bytes=size,
        regions=checker.regions,
        targets=checker.targets,
        encrypted=checker.encrypted,
        depth=checker.depth,
        block_size=construction.block_size,
    )
    return CheckReport(tuple(checker.violations), summary)


class _Checker:
    """One walk over a construction, collecting violations and what the summary counts."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []
        self.within_limits = True
        self.regions = 0
        self.targets = 0
        self.encrypted = False
        self.depth = 0
        self._nodes = 0
        self._target_paths: dict[str, str] = {}

    def refuse(self, field: str, reason: str, description: str) -> None:
        """Note one problem."""
        self.violations.append(FieldViolation(field, description, reason))

    def node(self, node: Construction, path: str, depth: int) -> None:
        """Check the node at `path`, `depth` levels from the top, and what is below it."""
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            self._over_limit(path, depth)
            return
        self.depth = max(self.depth, depth)
        match node:
            case VolumeSpec():
                self._volume(node, path, depth)
            case RegionSpec():
                self._region(node, path)
            case FileSpec():
                self._block_size(node.block_size, path)
                if not node.path:
                    self.refuse(join_path(path, "path"), "PATH_EMPTY", "must name a file")
            case UrlSpec():
                self._block_size(node.block_size, path)
                self._url(node.url, join_path(path, "url"))

    def _over_limit(self, path: str, depth: int) -> None:
        self.within_limits = False
        if depth > DEPTH_MAX:
            text = f"is at level {depth}, must not be below level {DEPTH_MAX}"
            self.refuse(path, "TOO_DEEP", text)
        elif self._nodes == NODES_MAX + 1:
            text = f"is node {self._nodes}, must not be more than {NODES_MAX} in one request"
            self.refuse(path, "TOO_MANY_NODES", text)

    def _volume(self, volume: VolumeSpec, path: str, depth: int) -> None:
        self._block_size(volume.block_size, path)
        if not volume.sub_volumes and volume.read_only_parent is None:
            self.refuse(
                join_path(path, "sub_volumes"),
                "VOLUME_EMPTY",
                "is empty, must hold at least one region or volume",
            )
        for at, child in children(volume, path):
            if child.block_size != volume.block_size:
                self.refuse(
                    join_path(at, "block_size"),
                    "BLOCK_SIZE_MISMATCH",
                    f"is {child.block_size}, must be {volume.block_size} as in the volume it is in",
                )
            self.node(child, at, depth + 1)

    def _region(self, region: RegionSpec, path: str) -> None:
        self.regions += 1
        self.targets += len(region.options.targets)
        self.encrypted |= region.encrypted
        for name, text in region.geometry.problems():
            self.refuse(join_path(path, name), _GEOMETRY_REASONS[name], text)
        if region.generation < 1:
            text = f"is {region.generation}, must be at least 1"
            self.refuse(join_path(path, "gen"), "GENERATION_ZERO", text)
        self._options(region.options, join_path(path, "opts"))

    def _options(self, options: RegionOptions, path: str) -> None:
        self._targets(options.targets, join_path(path, "target"))
        if options.key is not None:
            self._key(options.key, join_path(path, "key"))
        if options.flush_timeout is not None and not options.flush_timeout > 0:
            self.refuse(
                join_path(path, "flush_timeout"),
                "FLUSH_TIMEOUT_INVALID",
                f"is {options.flush_timeout}, must be above 0 seconds, or null for 0.5",
            )
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
            elif not value:
                self.refuse(at, "PATH_EMPTY", "must name a file, or be null")

    def _block_size(self, size: int, path: str) -> None:
        if not BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX or size & (size - 1):
            text = f"is {size}, must be a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"
            self.refuse(join_path(path, "block_size"), "BLOCK_SIZE_INVALID", text)

    def _url(self, url: str, path: str) -> None:
        try:
            parts = urlsplit(url)
            legal = parts.scheme in ("http", "https") and bool(parts.hostname)
            credentials = parts.username is not None or parts.password is not None
        except ValueError:
            legal, credentials = False, False
        if not legal:
            self.refuse(path, "URL_INVALID", "must be an http or https URL with a host")
        elif credentials:
            text = "holds a user or password, must not: requests are stored and shown"
            self.refuse(path, "URL_CREDENTIALS", text)
