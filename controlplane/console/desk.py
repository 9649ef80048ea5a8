"""The VCR desk: construction requests as text, judged with the line of each thing that is wrong."""

from __future__ import annotations

import json
from typing import Any

from controlplane.cli import positions
from controlplane.console.calls import Calls
from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.access import Caller
from stairlib.wire.construction import parse_json, to_message


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
        whole = positions.join(path, field) if field else path
        return lines.get(whole) or positions.locate(lines, field) or first

    return [{**each, "line": line(each["field"])} for each in violations]


async def check(calls: Calls, caller: Caller, text: str) -> dict[str, Any]:
    """The answer of CheckVcr, with lines, and the request itself as it is to be sent."""
    request, at = unwrapped(text)
    answer = await calls.answer(caller, "VcrService/CheckVcr", {"vcrJson": request})
    answer["violations"] = with_lines(answer["violations"], text, at)
    return {**answer, "request": request}


async def compare(calls: Calls, caller: Caller, original: str, changed: str) -> dict[str, Any]:
    """The answer of CompareVcrs; InvalidRequestError when one of them cannot be read."""
    parsed = [
        parse_json(unwrapped(text)[0], path=path)
        for text, path in ((original, "original"), (changed, "replacement"))
    ]
    wrong = tuple(each for one in parsed for each in one.violations)
    messages = [to_message(one.construction) for one in parsed if one.construction is not None]
    if len(messages) < len(parsed):
        raise InvalidRequestError("a construction request cannot be read", wrong)
    return await calls.compared(caller, *messages)


def text_of(body: object, name: str) -> str:
    """A text of a request; InvalidRequestError where there is none."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, str):
        raise InvalidRequestError(f"{name} is missing, or no text")
    return found
