"""Commands in a document, and what it says that they print.

A fenced block marked `console` holds commands, each after `$ ` and continued after `> `, and after
each what it prints. Output is compared in shape:

- a line `...` stands for any number of lines,
- a UUID stands for one UUID, the same wherever the document shows it again, in commands too, with
  dashes or without,
- times, days, durations, the bars of a waterfall, longer hexadecimal numbers and numbers of three
  digits and more stand for any other of their kind; how a line is spaced does not matter,
- an address or another word that the run was given one for (a folder, the host's name) stands for
  that; all else is compared as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ANY = "..."
_FENCE = re.compile(r"^```(\w*)\s*$")
_TOKENS = re.compile(
    r"(?P<uuid>\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b)"
    r"|(?P<time>\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z)"
    r"|(?P<day>\b\d{4}-\d\d-\d\d\b)"
    r"|(?P<address>\b127\.0\.0\.1:\d+\b)"
    r"|(?P<duration>\b\d+(?:\.\d+)?(?:s| s| ms| µs)\b)"
    r"|(?P<bar>█+)"
    r"|(?P<hex>\b(?=[0-9a-f]*\d)[0-9a-f]{16,}\b)"
    r"|(?P<number>\b\d+\.\d+\b|\b\d{3,}\b)"
)
# Also without its dashes, as the trace of a replacement has it.
_UUID = re.compile(r"\b[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b")
_ADDRESS = re.compile(r"\b127\.0\.0\.1:\d+\b")


@dataclass(frozen=True, slots=True)
class Step:
    """One command and what the document shows of its output.

    `line` is the command's own, from 1; `end` the first line after its output.
    """

    line: int
    end: int
    command: str
    expected: tuple[str, ...]


def steps(text: str) -> list[Step]:
    """The commands of all `console` blocks, in order."""
    found: list[Step] = []
    language: str | None = None
    start, command, expected = 0, "", []

    def close(end: int) -> None:
        if command:
            found.append(Step(start, end, command, tuple(expected)))

    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            if language == "console":
                close(number)
                command = ""
            language = fence[1] if language is None else None
        elif language == "console" and line.startswith("$ "):
            close(number)
            start, command, expected = number, line[2:], []
        elif language == "console" and line.startswith("> ") and command and not expected:
            command += "\n" + line[2:]
        elif language == "console":
            expected.append(line)
    return found


class Play:
    """Which real address and which real UUID stands for each of the document's."""

    def __init__(self, addresses: Mapping[str, str], words: Mapping[str, str]) -> None:
        """Both real ones by those of the document. `words` are anything else that differs."""
        self._addresses = dict(addresses)
        self._words = dict(words)
        self._uuids: dict[str, str] = {}

    def real(self, command: str) -> str:
        """A command as it is to be run."""
        for told, real in self._words.items():
            command = command.replace(told, real)
        command = _ADDRESS.sub(lambda found: self._addresses.get(found[0], found[0]), command)
        uuids = self._uuids | {_bare(told): _bare(real) for told, real in self._uuids.items()}
        return _UUID.sub(lambda found: uuids.get(found[0], found[0]), command)

    def told(self, output: str) -> str:
        """Output as the document would show it."""
        uuids = {real: told for told, real in self._uuids.items()}
        uuids |= {_bare(real): _bare(told) for real, told in uuids.items()}
        return _UUID.sub(lambda found: uuids.get(found[0], found[0]), self._placed(output))

    def _placed(self, output: str) -> str:
        """Output with the document's words and addresses, and its own UUIDs."""
        for told, real in self._words.items():
            output = output.replace(real, told)
        addresses = {real: told for told, real in self._addresses.items()}
        return _ADDRESS.sub(lambda found: addresses.get(found[0], found[0]), output)

    def difference(self, expected: tuple[str, ...], output: str) -> str:
        """The first line that is not as the document shows it, in words; empty when all is."""
        lines = self._placed(output).rstrip().splitlines()
        wanted = list(expected)
        while wanted and not wanted[-1].strip():
            wanted.pop()
        at, may_skip = 0, False
        for want in wanted:
            if want.strip() == ANY:
                may_skip = True
                continue
            while may_skip and at < len(lines) and not self._alike(want, lines[at]):
                at += 1
            if at == len(lines):
                return f"never printed: {want.strip()}"
            if not self._alike(want, lines[at]):
                return f"shown: {want.strip()}\nprinted: {lines[at].strip()}"
            at, may_skip = at + 1, False
        if at < len(lines) and not may_skip:
            return f"printed, and not shown: {lines[at].strip()}"
        return ""

    def _alike(self, shown: str, printed: str) -> bool:
        """Whether two lines have one shape; a UUID seen for the first time is bound."""
        ours, theirs = _tokens(shown), _tokens(printed)
        if [kind for kind, _ in ours] != [kind for kind, _ in theirs]:
            return False
        bound: dict[str, str] = {}
        for (kind, mine), (_, other) in zip(ours, theirs, strict=True):
            if kind == "uuid":
                if bound.setdefault(mine, self._uuids.get(mine, other)) != other:
                    return False
            elif kind in ("", "address") and mine != other:
                return False
        self._uuids |= bound
        return True


def _tokens(line: str) -> list[tuple[str, str]]:
    """A line as kinds and texts; plain text has the kind ''."""
    line = " ".join(line.split())
    found: list[tuple[str, str]] = []
    at = 0
    for match in _TOKENS.finditer(line):
        found.append(("", line[at : match.start()]))
        found.append((match.lastgroup or "", match[0]))
        at = match.end()
    found.append(("", line[at:]))
    return found


def _bare(name: str) -> str:
    return name.replace("-", "")
