"""Which line of a JSON text each value stands on, so that an error can point at it. Pure.

`json` forgets positions once it has parsed. `scan` walks a text that `json.loads` has already
accepted, so it need not judge syntax: it follows brackets, keys and commas and notes where each
path begins. Paths look like `vcr.sub_volumes[0].opts.target[2]`; the root is the empty path.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

# A string, a bracket or separator, or a bare literal; blanks fall between matches.
_SYMBOL = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


@dataclass(slots=True)
class Positions:
    """`lines` maps a path to its line, counted from 1; `duplicates` lists keys given twice."""

    lines: dict[str, int] = field(default_factory=dict)
    duplicates: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    """One open bracket: its own path, and the next index when it is an array."""

    path: str
    index: int | None


def scan(text: str) -> Positions:
    """The positions of every key and element of a legal JSON text."""
    found = Positions({"": 1})
    levels: list[_Level] = []
    # The path the next value stands at, and whether the next string is a key.
    path, key_next, line, end = "", False, 1, 0
    for match in _SYMBOL.finditer(text):
        line += text.count("\n", end, match.start())
        end = match.start()
        symbol = match.group()
        if key_next and symbol.startswith('"'):
            path = join(levels[-1].path, json.loads(symbol))
            _note(found, path, line)
            key_next = False
        elif symbol in "}]":
            levels.pop()
            key_next = False
        elif symbol == ",":
            path, key_next = _after_comma(levels[-1])
        elif symbol != ":":
            if levels and levels[-1].index is not None:
                found.lines[path] = line
            if symbol in "{[":
                levels.append(_Level(path, 0 if symbol == "[" else None))
                key_next = symbol == "{"
                path = f"{path}[0]" if symbol == "[" else path
        line += symbol.count("\n")
        end = match.end()
    return found


def _after_comma(level: _Level) -> tuple[str, bool]:
    """Where the next value stands, and whether a key comes before it."""
    if level.index is None:
        return level.path, True
    level.index += 1
    return f"{level.path}[{level.index}]", False


def _note(found: Positions, path: str, line: int) -> None:
    if path in found.lines:
        found.duplicates.append((path, line))
    found.lines[path] = line


def join(path: str, key: str) -> str:
    """The path of member `key` of the object at `path`."""
    return f"{path}.{key}" if path else key


def parent(path: str) -> str:
    """The path one level up; the root's parent is the root."""
    cut = max(path.rfind("."), path.rfind("["))
    return path[:cut] if cut > 0 else ""


def depth(path: str) -> int:
    """How many levels below the root the path lies."""
    return path.count(".") + path.count("[") + 1 if path else 0


def locate(lines: dict[str, int], field_path: str) -> int | None:
    """The line of a field that a daemon named, which may leave out how the file wraps it.

    Looks for the path itself, then for the one path that ends in it, with the wrapping names of
    requests left off; then for its parent, since a field that is missing has no line of its own.
    """
    path = re.sub(r"^(disks(?=\[)|vcr\.|replacement\.|original\.)", "", field_path)
    while path:
        if path in lines:
            return lines[path]
        ending = [line for known, line in lines.items() if known.endswith("." + path)]
        if len(ending) == 1:
            return ending[0]
        path = parent(path)
    return None
