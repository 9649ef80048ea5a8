"""The reader of volume construction requests: decoded JSON in, typed values and violations out.

It walks the tree once and goes on after every problem, so that one reading tells all of them. It
knows no protobuf: a message is handed over as the JSON values it stands for. No value of a field is
repeated in a violation unless it is an address or an identifier, so none ever carries a secret.

What could not be read stands in the result as a placeholder of the right type, in its own place, so
that everything after it keeps its index. `unread` holds the paths of all of them: such a draft is
for a judge that looks no further at these paths, and for nobody else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from uuid import UUID

from stairlib.model.construction import (
    DEPTH_MAX,
    NODES_MAX,
    TARGETS_PER_REGION,
    U32_MAX,
    U64_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    as_f32,
    canonical_address,
    join_path,
)
from stairlib.model.geometry import Geometry
from stairlib.model.violations import ViolationList

# A guess at what a key was meant to be costs more than all else here; nobody needs many.
GUESSES_MAX = 32
# Addresses read of one region. The right number is three; what is far above is only counted.
TARGETS_READ_MAX = 16

_SHOWN_MAX = 64
# Names under .invalid never exist (RFC 2606).
_PLACEHOLDER_ADDRESS = "unread-{}.invalid:1"
_VOLUME = ("type", "id", "block_size", "sub_volumes", "read_only_parent")
_REGION = ("type", "block_size", "blocks_per_extent", "extent_count", "opts", "gen")
_FILE = ("type", "id", "block_size", "path")
_URL = ("type", "id", "block_size", "url")
_FIELDS_OF_TYPE = {"volume": _VOLUME, "region": _REGION, "file": _FILE, "url": _URL}
_NODE_FIELDS = frozenset(name for names in _FIELDS_OF_TYPE.values() for name in names)
_OPTION_FIELDS = (
    "id",
    "target",
    "lossy",
    "flush_timeout",
    "key",
    "cert_pem",
    "key_pem",
    "root_cert_pem",
    "control",
    "read_only",
)
_NO_ID = UUID(int=0)
_SAMPLE_ID = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
_UUID = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}|[0-9a-f]{32}",
    re.ASCII | re.IGNORECASE,
)


class JsonObject(dict[str, object]):
    """A JSON object that remembers which of its keys were written twice."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        self.repeated: list[str] = []
        super().__init__()
        for name, value in pairs:
            if name in self:
                self.repeated.append(name)
            self[name] = value


class ConstructionReader:
    """One reading: walks the tree once and collects violations.

    The readers of single fields answer a value of the right type whatever they find, so that the
    walk goes on; where it is not what was written, its path is in `unread`.
    """

    def __init__(self) -> None:
        self.violations = ViolationList()
        self.unread: set[str] = set()
        self._nodes = 0
        self._guesses = 0

    def refuse(self, field: str, reason: str, description: str) -> None:
        """Note one problem; what stands at `field` will be a placeholder."""
        self.violations.refuse(field, reason, description)
        self.unread.add(field)

    def guess(self, name: str, names: tuple[str, ...]) -> list[str]:
        """The one of `names` that `name` may be a slip of, if any."""
        self._guesses += 1
        if self._guesses > GUESSES_MAX:
            return []
        return difflib.get_close_matches(name[:_SHOWN_MAX], names, n=1, cutoff=0.45)

    def construction(self, value: object, path: str, depth: int) -> Construction:
        """Read the node at `path`, `depth` levels below nothing."""
        self._nodes += 1
        if self._nodes > NODES_MAX:
            if self._nodes == NODES_MAX + 1:
                self.refuse(
                    path, "TOO_MANY_NODES", f"is node {NODES_MAX + 1}; {NODES_MAX} are the limit"
                )
            return self._unread_node(path)
        if depth > DEPTH_MAX:
            self.refuse(path, "TOO_DEEP", f"is at level {depth}; {DEPTH_MAX} levels are the limit")
            return self._unread_node(path)
        if not isinstance(value, dict):
            self.refuse(path, "WRONG_TYPE", f"must be an object, not {_kind(value)}")
            return self._unread_node(path)
        fields = _Fields(self, value, path)
        violations_before = self.violations.count
        node_type = fields.text("type")
        if self.violations.count > violations_before:
            return self._unread_node(path)
        names = _FIELDS_OF_TYPE.get(node_type)
        if names is None:
            self.refuse(
                join_path(path, "type"),
                "UNKNOWN_TYPE",
                f"is {_shown(node_type)}; must be one of volume, region, file, url",
            )
            return self._unread_node(path)
        fields.only(names, f"a {node_type}", _NODE_FIELDS)
        match node_type:
            case "volume":
                return self._volume(fields, depth)
            case "region":
                return self._region(fields)
            case "file":
                path_text = fields.text("path")
                return FileSpec(fields.uuid("id"), fields.integer("block_size", U64_MAX), path_text)
            case _:
                url = fields.text("url")
                return UrlSpec(fields.uuid("id"), fields.integer("block_size", U64_MAX), url)

    def _unread_node(self, path: str) -> Construction:
        """What stands where no node could be read."""
        self.unread.add(path)
        return FileSpec(_NO_ID, 0, "")

    def _volume(self, fields: _Fields, depth: int) -> VolumeSpec:
        identity = fields.uuid("id")
        block_size = fields.integer("block_size", U64_MAX)
        subs = []
        for index, value in enumerate(fields.array("sub_volumes")):
            at = join_path(fields.path, f"sub_volumes[{index}]")
            subs.append(self.construction(value, at, depth + 1))
            if self._nodes > NODES_MAX:
                break
        parent = None
        if not fields.absent("read_only_parent"):
            at = join_path(fields.path, "read_only_parent")
            parent = self.construction(fields.value("read_only_parent"), at, depth + 1)
        return VolumeSpec(identity, block_size, tuple(subs), parent)

    def _region(self, fields: _Fields) -> RegionSpec:
        geometry = Geometry(
            fields.integer("block_size", U64_MAX),
            fields.integer("blocks_per_extent", U64_MAX),
            fields.integer("extent_count", U32_MAX),
        )
        generation = fields.integer("gen", U64_MAX)
        return RegionSpec(geometry, self._options(fields), generation)

    def _options(self, region: _Fields) -> RegionOptions:
        path = join_path(region.path, "opts")
        value = region.required("opts", "the options of the region, an object")
        if not isinstance(value, dict):
            if value is not None:
                self.refuse(path, "WRONG_TYPE", f"must be an object, not {_kind(value)}")
            self.unread.update(join_path(path, name) for name in _OPTION_FIELDS)
            return RegionOptions(_NO_ID, ())
        fields = _Fields(self, value, path)
        fields.only(_OPTION_FIELDS, "a region's opts", frozenset(_OPTION_FIELDS))
        key = fields.nullable_text("key")
        return RegionOptions(
            id=fields.uuid("id"),
            targets=fields.targets(),
            lossy=fields.flag("lossy"),
            flush_timeout=fields.seconds("flush_timeout"),
            key=None if key is None else Secret(key),
            cert_pem=fields.nullable_text("cert_pem"),
            key_pem=fields.nullable_text("key_pem"),
            root_cert_pem=fields.nullable_text("root_cert_pem"),
            control=fields.control(),
            read_only=fields.flag("read_only"),
        )


class _Fields:
    """The fields of one object, read by name and type."""

    def __init__(self, reader: ConstructionReader, values: dict[str, object], path: str) -> None:
        self._reader = reader
        self._values = values
        self.path = path
        for name in getattr(values, "repeated", ()):
            at = _key_path(path, name)
            reader.violations.refuse(at, "DUPLICATE_KEY", "is written twice; write it once")

    def only(self, names: tuple[str, ...], owner: str, elsewhere: frozenset[str]) -> None:
        """Refuse keys that are not in `names`; those in `elsewhere` may be there as null."""
        for name, value in self._values.items():
            if name in names or (value is None and name in elsewhere):
                continue
            if self._reader.violations.full:
                self._reader.violations.refuse("", "UNKNOWN_FIELD", "")  # only counted
                continue
            near = self._reader.guess(name, names)
            hint = f'; did you mean "{near[0]}"?' if near else f"; it has {', '.join(names)}"
            self._reader.refuse(
                _key_path(self.path, name), "UNKNOWN_FIELD", f"is not a field of {owner}{hint}"
            )

    def absent(self, name: str) -> bool:
        """Whether a key is missing or null."""
        return self._values.get(name) is None

    def value(self, name: str) -> object:
        """What a key holds, None when it is missing."""
        return self._values.get(name)

    def required(self, name: str, what: str) -> object:
        """What a key holds; noted and None when it is missing or null."""
        value = self._values.get(name)
        if value is None:
            how = "is null" if name in self._values else "is missing"
            self._refuse(name, "REQUIRED", f"{how}; must be {what}")
        return value

    def text(self, name: str) -> str:
        """A string that has to be there."""
        value = self.required(name, "a string")
        return "" if value is None else self._as_text(name, value)

    def nullable_text(self, name: str) -> str | None:
        """A string, or None for null or missing. An empty one is refused: it means nothing, and on
        the wire it is what command-line tools make of a null."""
        value = self._values.get(name)
        if value == "":
            self._refuse(name, "EMPTY", "is empty; write null, or leave it out")
        return None if value is None or value == "" else self._as_text(name, value)

    def uuid(self, name: str) -> UUID:
        """A UUID in any of its usual spellings."""
        value = self.required(name, "a UUID")
        if value is None:
            return _NO_ID
        if isinstance(value, str) and _UUID.fullmatch(value):
            return UUID(value)
        found = _shown(value) if isinstance(value, str) else _kind(value)
        self._refuse(name, "INVALID_UUID", f"is {found}; must be a UUID such as {_SAMPLE_ID}")
        return _NO_ID

    def integer(self, name: str, highest: int) -> int:
        """A whole number from 0 to `highest`."""
        value = self.required(name, "a whole number")
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(name, "WRONG_TYPE", f"must be a whole number, not {_kind(value)}")
            return 0
        if not 0 <= value <= highest:
            self._refuse(name, "OUT_OF_RANGE", f"must be from 0 to {highest}")
            return 0
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.required(name, "true or false")
        if value is not None and not isinstance(value, bool):
            self._refuse(name, "WRONG_TYPE", f"must be true or false, not {_kind(value)}")
        return value is True

    def seconds(self, name: str) -> float | None:
        """A number of seconds of 32-bit precision, or None for null or missing."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            self._refuse(name, "WRONG_TYPE", f"must be a number of seconds, not {_kind(value)}")
            return None
        try:
            seconds = as_f32(value)
        except ValueError:
            self._refuse(name, "OUT_OF_RANGE", "must be a finite number of seconds")
            return None
        if seconds == 0:  # or so little that 32 bits cannot tell it from 0
            self._refuse(name, "OUT_OF_RANGE", "is 0, must be above 0 seconds, or null for 0.5")
            return None
        return seconds

    def array(self, name: str) -> list[object]:
        """An array that has to be there; it may be empty."""
        value = self.required(name, "an array")
        if isinstance(value, list):
            return value
        if value is not None:
            self._refuse(name, "WRONG_TYPE", f"must be an array, not {_kind(value)}")
        return []

    def targets(self) -> tuple[str, ...]:
        """The addresses of `target` in their one spelling, placeholders for what is none."""
        values = self.array("target")
        if len(values) > TARGETS_READ_MAX:
            text = f"has {len(values)} addresses, must have exactly {TARGETS_PER_REGION}"
            self._refuse("target", "TARGET_COUNT", text)
        return tuple(
            self._address(f"target[{index}]", value, port_min=1)
            or _PLACEHOLDER_ADDRESS.format(index)
            for index, value in enumerate(values[:TARGETS_READ_MAX])
        )

    def control(self) -> str | None:
        """The address to listen on for control; port 0 lets the system choose."""
        value = self._values.get("control")
        return None if value is None else self._address("control", value, port_min=0)

    def _address(self, name: str, value: object, *, port_min: int) -> str | None:
        if not isinstance(value, str):
            self._refuse(name, "WRONG_TYPE", f"must be a string, not {_kind(value)}")
            return None
        try:
            return canonical_address(value, port_min=port_min)
        except ValueError as error:
            self._refuse(name, "INVALID_ADDRESS", f"is {_shown(value)}; {error}")
            return None

    def _as_text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            self._refuse(name, "WRONG_TYPE", f"must be a string, not {_kind(value)}")
            return ""
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, UTF-8 cannot
            self._refuse(name, "INVALID_TEXT", "must be text that UTF-8 can write")
            return ""
        return value

    def _refuse(self, name: str, reason: str, description: str) -> None:
        self._reader.refuse(join_path(self.path, name), reason, description)


def _key_path(path: str, name: str) -> str:
    """The path of a key the user invented, which may be any text."""
    if name.isidentifier() and len(name) <= _SHOWN_MAX:
        return join_path(path, name)
    return f"{path}[{_shown(name)}]"


def _shown(text: str) -> str:
    """A text of the user's, quoted and cut, for a message."""
    return json.dumps(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
