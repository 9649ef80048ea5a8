"""Volume construction requests as protobuf messages and as JSON, to and from the typed values.

Both forms go through one reader, so they accept and refuse the same things with the same words.
A reading collects every problem before it gives up; each is named by its path as the user wrote it.
What it could read all the same is a draft, which a check may look at to tell the other problems in
the same answer; a request with a problem is never a `construction`.
Rules: a key that may be null may also be left out; every other key must be there; a key no such
node has is refused by name.

`to_object` and `to_json` write every key, nulls included, as the original system does. What
a `key` holds is replaced by `REDACTED` when `secrets` is False; the check of a construction refuses
that text as a key, so a redacted request cannot pass for a real one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from google.protobuf.wrappers_pb2 import FloatValue, StringValue

from stairlib.model.construction import (
    DEPTH_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    UrlSpec,
    VolumeSpec,
)
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.wire.construction_reader import ConstructionReader, JsonObject
from stairwell.vcr.v1.volume_construction_request_pb2 import (
    RegionOptions as RegionOptionsMessage,
)
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest

# A request of NODES_MAX regions takes about 6 MiB of JSON; and what was read from a message of
# 4 MiB can be stored and read again, even where each of its letters takes six in JSON.
JSON_BYTES_MAX = 32 << 20
REDACTED = "<redacted>"

_PEM_MARK = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class Parsed:
    """Outcome of a reading: a construction, or the violations that there is none for.

    `omitted` problems are not in `violations`. `draft` is what could be read, the construction
    itself where there is one and None where nothing could; `unread` are the paths in it at which a
    placeholder stands.
    """

    construction: Construction | None
    violations: tuple[FieldViolation, ...]
    omitted: int = 0
    draft: Construction | None = None
    unread: frozenset[str] = frozenset()

    def require(self) -> Construction:
        """The construction, or InvalidRequestError with all violations."""
        if self.construction is None:
            raise InvalidRequestError(
                _message(self.violations, self.omitted), self.violations, omitted=self.omitted
            )
        return self.construction


def parse_message(message: VolumeConstructionRequest, *, path: str = "") -> Parsed:
    """Read a message; `path` is put before every field path."""
    return parse_object(_message_object(message, 1), path=path)


def parse_object(value: object, *, path: str = "") -> Parsed:
    """Read what a JSON reader made of a request; `path` is put before every field path."""
    reader = ConstructionReader()
    draft = reader.construction(value, path, 1)
    found = reader.violations
    if not found.count:
        return Parsed(draft, (), draft=draft)
    readable = None if path in reader.unread else draft
    return Parsed(None, found.listed, found.omitted, readable, frozenset(reader.unread))


def parse_json(text: str | bytes, *, path: str = "") -> Parsed:
    """Read JSON text; `path` is put before every field path."""
    if len(text) > JSON_BYTES_MAX:
        return _refused(path, "TOO_LARGE", f"must not be larger than {JSON_BYTES_MAX} bytes")
    try:
        value = json.loads(text, object_pairs_hook=JsonObject, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        return _refused(path, "INVALID_JSON", f"is not JSON: {error.msg} at {where}")
    except RecursionError:
        return _refused(path, "TOO_DEEP", f"must not be deeper than {DEPTH_MAX} levels")
    except ValueError as error:  # a text that is not UTF-8, a constant, a number of absurd length
        return _refused(path, "INVALID_JSON", f"is not JSON: {error}")
    return parse_object(value, path=path)


def from_message(message: VolumeConstructionRequest, *, path: str = "") -> Construction:
    """The typed value of a message; InvalidRequestError with all violations."""
    return parse_message(message, path=path).require()


def from_object(value: object, *, path: str = "") -> Construction:
    """The typed value of decoded JSON; InvalidRequestError with all violations."""
    return parse_object(value, path=path).require()


def from_json(text: str | bytes, *, path: str = "") -> Construction:
    """The typed value of JSON text; InvalidRequestError with all violations."""
    return parse_json(text, path=path).require()


def to_message(construction: Construction, *, secrets: bool = True) -> VolumeConstructionRequest:
    """The message of a construction; `secrets` False hides what nobody else may see."""
    match construction:
        case VolumeSpec():
            message = VolumeConstructionRequest(
                type="volume",
                id=str(construction.id),
                block_size=construction.block_size,
                sub_volumes=[to_message(c, secrets=secrets) for c in construction.sub_volumes],
            )
            if construction.read_only_parent is not None:
                parent = to_message(construction.read_only_parent, secrets=secrets)
                message.read_only_parent.CopyFrom(parent)
            return message
        case RegionSpec():
            return VolumeConstructionRequest(
                type="region",
                block_size=construction.block_size,
                blocks_per_extent=construction.geometry.blocks_per_extent,
                extent_count=construction.geometry.extent_count,
                opts=_options_message(construction.options, secrets),
                gen=construction.generation,
            )
        case FileSpec():
            return VolumeConstructionRequest(
                type="file",
                id=str(construction.id),
                block_size=construction.block_size,
                path=construction.path,
            )
        case UrlSpec():
            return VolumeConstructionRequest(
                type="url",
                id=str(construction.id),
                block_size=construction.block_size,
                url=construction.url,
            )


def to_object(construction: Construction, *, secrets: bool = True) -> dict[str, object]:
    """A construction as plain JSON values, every key written."""
    match construction:
        case VolumeSpec(id=identity, block_size=block_size, read_only_parent=parent):
            return {
                "type": "volume",
                "block_size": block_size,
                "id": str(identity),
                "read_only_parent": parent and to_object(parent, secrets=secrets),
                "sub_volumes": [to_object(c, secrets=secrets) for c in construction.sub_volumes],
            }
        case RegionSpec(geometry=geometry):
            return {
                "type": "region",
                "block_size": geometry.block_size,
                "blocks_per_extent": geometry.blocks_per_extent,
                "extent_count": geometry.extent_count,
                "gen": construction.generation,
                "opts": _options_object(construction.options, secrets),
            }
        case FileSpec(id=identity, block_size=block_size, path=path):
            return {"type": "file", "block_size": block_size, "id": str(identity), "path": path}
        case UrlSpec(id=identity, block_size=block_size, url=url):
            return {"type": "url", "block_size": block_size, "id": str(identity), "url": url}


def to_json(construction: Construction, *, secrets: bool = True, indent: int | None = None) -> str:
    """A construction as JSON text that `from_json` reads back to an equal value."""
    return json.dumps(to_object(construction, secrets=secrets), indent=indent)


def _options_message(options: RegionOptions, secrets: bool) -> RegionOptionsMessage:
    return RegionOptionsMessage(
        id=str(options.id),
        target=options.targets,
        lossy=options.lossy,
        flush_timeout=(
            None if options.flush_timeout is None else FloatValue(value=options.flush_timeout)
        ),
        key=_nullable(_key(options, secrets)),
        cert_pem=_nullable(_pem_path(options.cert_pem, secrets)),
        key_pem=_nullable(_pem_path(options.key_pem, secrets)),
        root_cert_pem=_nullable(_pem_path(options.root_cert_pem, secrets)),
        control=_nullable(options.control),
        read_only=options.read_only,
    )


def _nullable(text: str | None) -> StringValue | None:
    return None if text is None else StringValue(value=text)


def _options_object(options: RegionOptions, secrets: bool) -> dict[str, object]:
    return {
        "cert_pem": _pem_path(options.cert_pem, secrets),
        "control": options.control,
        "flush_timeout": options.flush_timeout,
        "id": str(options.id),
        "key": _key(options, secrets),
        "key_pem": _pem_path(options.key_pem, secrets),
        "lossy": options.lossy,
        "read_only": options.read_only,
        "root_cert_pem": _pem_path(options.root_cert_pem, secrets),
        "target": list(options.targets),
    }


def _key(options: RegionOptions, secrets: bool) -> str | None:
    if options.key is None:
        return None
    return options.key.reveal() if secrets else REDACTED


def _pem_path(value: str | None, secrets: bool) -> str | None:
    # A path is no secret; the PEM text that somebody pasted in its place may be.
    return REDACTED if value and not secrets and _PEM_MARK in value else value


def _message_object(message: VolumeConstructionRequest, depth: int) -> dict[str, object]:
    """The fields that are set, as `parse_object` takes them; not deeper than it would look."""
    found: dict[str, object] = {"type": message.type or None}
    if depth > DEPTH_MAX:
        return found
    for name in ("id", "block_size", "blocks_per_extent", "extent_count", "gen", "url", "path"):
        if message.HasField(name):
            found[name] = getattr(message, name)
    if message.sub_volumes or message.type == "volume":
        found["sub_volumes"] = [_message_object(sub, depth + 1) for sub in message.sub_volumes]
    # An empty message is what command-line tools make of a null.
    if message.read_only_parent.ByteSize():
        found["read_only_parent"] = _message_object(message.read_only_parent, depth + 1)
    if message.HasField("opts"):
        options: dict[str, object] = {"target": list(message.opts.target)}
        for field, value in message.opts.ListFields():
            if isinstance(value, (FloatValue, StringValue)):
                options[field.name] = value.value or None
            elif field.name != "target":
                options[field.name] = value
        found["opts"] = options
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _refused(path: str, reason: str, description: str) -> Parsed:
    return Parsed(None, (FieldViolation(path, description, reason),))


def _message(violations: tuple[FieldViolation, ...], omitted: int) -> str:
    first = violations[0]
    where = f"{first.field} " if first.field else ""
    more = len(violations) - 1 + omitted
    rest = f" (and {more} more)" if more else ""
    return f"the volume construction request is not valid: {where}{first.description}{rest}"
