"""Reading the JSON files a user passes: disks, replacements and construction requests.

Everything wrong with a file is one error that names the file, and for each problem its line and
key. The files are the documented ones; nothing in them needs a wrapper of ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.cli import positions, shape
from controlplane.cli.failure import CommandError
from stairwell.controlplane.v1 import disk_service_pb2, instance_service_pb2
from stairwell.vcr.v1 import volume_construction_request_pb2

# A construction request is a few KiB; this keeps a mistyped path from filling memory.
FILE_BYTES_MAX = 16 << 20
# More than these help nobody; the first ones are usually one mistake.
PROBLEMS_SHOWN = 20
# Above what daemons accept, and low enough that walking the tree cannot exhaust the stack.
DEPTH_MAX = 90
# What a replacement file may say; the rest of the request is the command line's.
_REPLACE_KEYS = frozenset({"name", "vcr", "vcr_json"})


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed JSON file that remembers where each value stands, and which keys it has twice."""

    path: str
    data: Any
    lines: dict[str, int]
    duplicates: tuple[str, ...] = ()

    def locate(self, field: str) -> str | None:
        """ "file:line" of a field that a daemon named, or None when the file has no such place."""
        line = positions.locate(self.lines, field)
        return None if line is None else f"{Path(self.path).name}:{line}"

    def refuse(self, problems: list[shape.Misfit]) -> None:
        """Raises one error with every problem; does nothing when there are none."""
        if problems:
            message = f"{self.path} is not what this command takes"
            raise CommandError(message, details=self.described(problems))

    def described(self, problems: list[shape.Misfit]) -> tuple[str, ...]:
        """The problems with their places, one a line; many are cut off and counted."""
        details = [
            f"{self.path}:{self.line_near(problem.path)}: {problem.path or '(top)'}: {problem.text}"
            for problem in problems[:PROBLEMS_SHOWN]
        ]
        if len(problems) > PROBLEMS_SHOWN:
            details.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
        return tuple(details)

    def twice(self) -> list[shape.Misfit]:
        """The keys that are given twice, as problems."""
        return [shape.Misfit(key, "this key is given twice") for key in self.duplicates]

    def line_near(self, path: str) -> int:
        """The line of a path, or of the nearest value around it."""
        while path not in self.lines:
            path = positions.parent(path)
        return self.lines[path]


def read_document(path: str) -> Document:
    """Parses a JSON file; a missing file, broken syntax or a key given twice is a CommandError."""
    document = _parse_document(path)
    document.refuse(document.twice())
    return document


def _parse_document(path: str) -> Document:
    return _parse(path, _read_text(path))


def _parse(path: str, text: str) -> Document:
    """The document of a text; `path` is what messages call it."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise CommandError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}",
            "look at that place and just before it for a missing comma, quote or bracket",
        ) from None
    except RecursionError:
        raise CommandError(f"{path}: nested too deep to be a construction request") from None
    except ValueError as error:  # NaN and its like, or a number of thousands of digits
        raise CommandError(f"{path}: not JSON: {error}") from None
    found = positions.scan(text)
    if max(map(positions.depth, found.lines)) > DEPTH_MAX:
        raise CommandError(f"{path}: nested deeper than {DEPTH_MAX} levels")
    return Document(path, data, found.lines, tuple(key for key, _ in found.duplicates))


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _read_text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandError(f"cannot read {path}: {reason}", "check the path") from None
    if len(raw) > FILE_BYTES_MAX:
        raise CommandError(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB: not such a file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_disks(path: str) -> tuple[list[instance_service_pb2.DiskSpec], Document]:
    """The disks of a crucible-disks file: a JSON array of disk objects."""
    document = read_document(path)
    if not isinstance(document.data, list):
        found = shape.kind_of(document.data)
        document.refuse([shape.Misfit("", f"expected an array of disks, found {found}")])
    descriptor = instance_service_pb2.DiskSpec.DESCRIPTOR
    problems: list[shape.Misfit] = []
    for index, entry in enumerate(document.data):
        problems += shape.misfits(entry, descriptor, f"[{index}]")
    document.refuse(problems)
    disks = []
    for entry in document.data:
        disk = instance_service_pb2.DiskSpec()
        _fill(document, entry, disk)
        disks.append(disk)
    return disks, document


def read_replacement(path: str) -> tuple[disk_service_pb2.ReplaceVcrRequest, Document]:
    """The request of a replacement file: `{name, vcr}`, or `{name, vcr_json}` with text in it."""
    document = read_document(path)
    request = disk_service_pb2.ReplaceVcrRequest()
    problems = list(shape.misfits(document.data, request.DESCRIPTOR))
    if isinstance(document.data, dict):
        problems += [
            shape.Misfit(key, "belongs on the command line, not in this file")
            for key in document.data
            if key in request.DESCRIPTOR.fields_by_name and key not in _REPLACE_KEYS
        ]
        given = [key for key in ("vcr", "vcr_json") if document.data.get(key) is not None]
        if len(given) != 1:
            problems.append(shape.Misfit("", "needs exactly one of 'vcr' and 'vcr_json'"))
    document.refuse(problems)
    _fill(document, document.data, request)
    return request, document


@dataclass(frozen=True, slots=True)
class VcrFile:
    """A construction request in its file: `data` as it was written, standing at path `where`.

    `problems` are those for which it cannot be a message at all.
    """

    document: Document
    data: Any
    where: str
    problems: list[shape.Misfit]

    def line(self, field: str) -> int | None:
        """The line of a field of the request, or of the nearest thing around it."""
        path = self.where
        if field:
            path = field if not path else f"{path}{'' if field.startswith('[') else '.'}{field}"
        while path and path not in self.document.lines:
            path = positions.parent(path)
        return self.document.lines.get(path)

    def locate(self, field: str) -> str | None:
        """ "file:line" of a field of the request."""
        line = self.line(field)
        return None if line is None else f"{Path(self.document.path).name}:{line}"

    def message(self) -> volume_construction_request_pb2.VolumeConstructionRequest:
        """The request as a message; what has `problems` is a CommandError."""
        self.document.refuse(self.problems)
        request = volume_construction_request_pb2.VolumeConstructionRequest()
        _fill(self.document, self.data, request)
        return request


def open_vcr(path: str) -> VcrFile:
    """A construction request: alone in its file, or the `vcr` or `vcr_json` of a replacement file.

    A crucible-disks file with one disk works as well, so that the two documented files can be
    compared as they are. A file that is missing or no JSON is a CommandError.
    """
    document = _parse_document(path)
    data, where = _unwrap(document.data)
    if isinstance(data, str) and where == "vcr_json":
        # A text in a text: everything in it stands on the one line that it is written on.
        inner = _parse(f"{path}:{document.lines[where]}: vcr_json", data)
        twice = (f"{where}.{key}" for key in inner.duplicates)
        document = replace(document, duplicates=(*document.duplicates, *twice))
        data = inner.data
    descriptor = volume_construction_request_pb2.VolumeConstructionRequest.DESCRIPTOR
    return VcrFile(document, data, where, list(shape.misfits(data, descriptor, where)))


def _unwrap(data: Any) -> tuple[Any, str]:
    """The construction request inside the documented files, and its path there."""
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict):
        inner = data[0].get("volume_construction_request")
        if inner is not None:
            return inner, "[0].volume_construction_request"
    if isinstance(data, dict) and isinstance(data.get("vcr"), dict):
        return data["vcr"], "vcr"
    if isinstance(data, dict) and isinstance(data.get("vcr_json"), str):
        return data["vcr_json"], "vcr_json"
    return data, ""


def _fill(document: Document, data: Any, message: Message) -> None:
    """Parses checked data; what the check has no rule for still becomes a clear error."""
    try:
        json_format.ParseDict(data, message)
    except json_format.ParseError as error:
        raise CommandError(f"{document.path}: not a {message.DESCRIPTOR.name}: {error}") from None
