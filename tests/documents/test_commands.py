"""Every command that a document shows is one of the programs', with options that it takes; those of
the documents that are played are run as well."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from scripts.program_model import Command, programs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")})
_BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Where a command of ours may begin: a line, after a prompt or a pipe, or within another one.
_BEGIN = re.compile(
    r"(?:^|\$ |> |[|;&(] ?|\bsudo |\bexec )(stairwell|controlplane|vmmd|downstaird|dsc) (.*)"
)
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"`((?:stairwell|controlplane|vmmd|downstaird|dsc) [^`]+)`")
_SHELL = re.compile(r"[|;&<>)#]| 2>")


@cache
def known() -> dict[str, Command]:
    return {command.path: command for program in programs() for command in program.all()}


def shown(text: str) -> list[str]:
    """The commands of our programs that a document names, one line each."""
    found = []
    for kind, block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if kind == "console" and not line.startswith(("$ ", "> ")):
                continue
            begun = _BEGIN.search(line)
            while begun:
                found.append(f"{begun[1]} {_SHELL.split(begun[2])[0]}".strip())
                begun = _BEGIN.search(line, begun.end(1))
    # In prose too, where several are not written as one.
    named = _NAMED.findall(_FENCED.sub("", text))
    return found + [" ".join(one.split()) for one in named if not re.search(r"[|…\[]", one)]


def wrong(line: str) -> str:
    """What the programs would say of it, empty when nothing."""
    words = shlex.split(line.replace('"$(', "").rstrip("\"'"))
    path, rest = words[0], words[1:]
    options = list(known()[path].parameters)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and word != "-":
            name, _, value = word.partition("=")
            taken = [one for one in options if name in one.names]
            if not taken and name not in ("--help", "-h", "--version", "--install-completion"):
                return f"`{path}` has no {name}"
            if taken and taken[-1].value and not value:
                rest = rest[1:]
        elif f"{path} {word}" in known():
            path = f"{path} {word}"
            options += known()[path].parameters
        elif known()[path].commands and not any(not one.names for one in options):
            return f"`{path}` has no command {word}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.stem)
def test_every_command_shown_is_one(document: Path) -> None:
    lines = shown(document.read_text())
    found = [f"{line}: {fault}" for line in lines if (fault := wrong(line))]
    assert not found, "\n".join(found)


def test_commands_are_found_in_the_documents_and_wrong_ones_are_noticed() -> None:
    lines = [line for document in DOCUMENTS for line in shown(document.read_text())]
    assert len(lines) > 180
    assert shown("```sh\nx | stairwell list | y\n```\n") == ["stairwell list"]
    assert "has no command" in wrong("stairwell disc status block2")
    assert "has no --fast" in wrong("stairwell disk status block2 --fast")
    assert not wrong("stairwell disk status block2 --output json")


def test_what_the_programs_say_of_each_other_exists() -> None:
    found = [
        f"{command.path}: {line}: {fault}"
        for command in known().values()
        for line in _NAMED.findall(command.text)
        if (fault := wrong(" ".join(line.split())))
    ]
    assert not found, "\n".join(found)
