"""The VCR desk: construction requests as text, judged with the line of each thing that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from controlplane.cli import positions, tree_diff
from controlplane.console.calls import Calls
from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.access import Caller
from stairlib.wire.construction import parse_json, to_message

# Beyond so many nobody reads on; the verdict counts in any case.
DIFFERENCES_MAX: Final = 400
LINES_MAX: Final = 2000


def unwrapped(text: str) -> tuple[str, str]:
    """(request, its path in the text) of a text that may wrap it, as the files of the command line
    do; a text that is no JSON stays as it is, for the judge to say so."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text, ""
    path = ""
    if isinstance(found, list) and len(found) == 1:
        found, path = found[0], "[0]"
    if isinstance(found, dict):
        for key in ("vcr", "volume_construction_request"):
            if key in found:
                return json.dumps(found[key]), positions.join(path, key)
    return text, ""


def with_lines(violations: list[dict[str, Any]], text: str, path: str) -> list[dict[str, Any]]:
    """Each violation, of the request at `path`, with its line in the text, counted from 1; 0 where
    it has none."""
    lines, first = {}, 0
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        first = error.lineno
    except (ValueError, RecursionError):
        pass
    else:
        lines = positions.scan(text).lines

    def line(field: str) -> int:
        # By its whole path: the same name may stand in the wrapping and in several regions.
        return lines.get(_whole(path, field)) or positions.locate(lines, field) or first

    return [{**each, "line": line(each["field"])} for each in violations]


async def check(calls: Calls, caller: Caller, text: str) -> dict[str, Any]:
    """The answer of CheckVcr, with lines, and the request itself as it is to be sent."""
    request, at = unwrapped(text)
    answer = await calls.answer(caller, "VcrService/CheckVcr", {"vcrJson": request})
    answer["violations"] = with_lines(answer["violations"], text, at)
    return {**answer, "request": request}


async def compare(calls: Calls, caller: Caller, original: str, changed: str) -> dict[str, Any]:
    """The answer of CompareVcrs, with the lines of its violations in the changed text, and what
    differs: `differences` by field, as it may be shown, and `lines` of each text.
    InvalidRequestError when one of them cannot be read."""
    (old_text, old_at), (new_text, new_at) = unwrapped(original), unwrapped(changed)
    parsed = [parse_json(old_text, path="original"), parse_json(new_text, path="replacement")]
    wrong = tuple(each for one in parsed for each in one.violations)
    old, new = (one.construction for one in parsed)
    if old is None or new is None:
        raise InvalidRequestError("a construction request cannot be read", wrong)
    answer = await calls.compared(caller, to_message(old), to_message(new))
    answer["violations"] = with_lines(answer["violations"], changed, new_at)
    differences: list[dict[str, Any]] = [
        *tree_diff.differences(tree_diff.rows(old, new))[:DIFFERENCES_MAX]
    ]
    lines = {}
    for name, text, at in (("original", original, old_at), ("replacement", changed, new_at)):
        known = positions.scan(text).lines
        paths = [_whole(at, each["path"]) for each in differences]
        for each, path in zip(differences, paths, strict=True):
            each[f"{name}Line"] = known.get(path, 0)
        lines[name] = lines_below(known, paths)
    return {**answer, "differences": differences, "lines": lines}


def _whole(at: str, path: str) -> str:
    """The path in a text of a path in the request that stands at `at` in it."""
    return positions.join(at, path) if path else at


def lines_below(known: dict[str, int], paths: Iterable[str]) -> list[int]:
    """The lines of these fields and of all that is in them, each once, the first LINES_MAX."""
    tops = set(paths)

    def marked(path: str) -> bool:
        while path not in tops:
            if not path:
                return False
            path = positions.parent(path)
        return True

    return sorted({line for path, line in known.items() if marked(path)})[:LINES_MAX]


def text_of(body: object, name: str) -> str:
    """A text of a request; InvalidRequestError where there is none."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, str):
        raise InvalidRequestError(f"{name} is missing, or no text")
    return found
