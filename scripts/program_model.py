"""What the programs' command lines are, read off the programs: for man pages and the reference.

Four of them are argparse, `stairwell` is typer; both come out as the same tree.
"""
# argparse has no public way to ask a parser what it takes.
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

# Options that every program of typer's has.
_TYPERS = {"--help", "--install-completion", "--show-completion"}
# How a value of a type is shown where the program does not name it.
_VALUES = {"int": "N", "float": "N", "str": "TEXT", "Path": "FILE", "UUID": "UUID"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One option or argument. `names` is empty for an argument; `value` is what stands for its
    value, empty for a switch."""

    names: tuple[str, ...]
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A program or one of its commands; `path` is what is typed. `text` has blank lines between
    paragraphs, and lines that begin with two blanks are examples."""

    path: str
    summary: str
    text: str
    parameters: tuple[Parameter, ...]
    commands: tuple[Command, ...]

    def all(self) -> list[Command]:
        """This one and all below, each before its own."""
        return [self, *(below for each in self.commands for below in each.all())]


def programs() -> list[Command]:
    """All programs that are installed."""
    import typer.main

    from controlplane.cli.main import app
    from controlplane.config import parser as controlplane
    from downstaird.arguments import parser as downstaird
    from downstaird.dsc.__main__ import parser as dsc
    from vmmd.config import parser as vmmd

    return [
        _of_typer(typer.main.get_command(app), "stairwell", frozenset()),
        _of_argparse(controlplane({}), "controlplane", ""),
        _of_argparse(vmmd(), "vmmd", ""),
        _of_argparse(downstaird(), "downstaird", ""),
        _of_argparse(dsc(), "dsc", ""),
    ]


def _of_argparse(parser: argparse.ArgumentParser, path: str, summary: str) -> Command:
    parameters: list[Parameter] = []
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {each.dest: each.help or "" for each in action._choices_actions}
            commands = [
                _of_argparse(below, f"{path} {name}", said.get(name, ""))
                for name, below in action.choices.items()
            ]
        elif action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            parameters.append(_of_action(parser, action))
    text = "\n\n".join(filter(None, (parser.description, parser.epilog)))
    return Command(path, summary or first_sentence(text), text, tuple(parameters), tuple(commands))


def _of_action(parser: argparse.ArgumentParser, action: argparse.Action) -> Parameter:
    value = ""
    if action.nargs != 0:
        shown = action.metavar or (action.choices and "|".join(map(str, action.choices)))
        value = str(shown or action.dest.upper().replace("_", "-"))
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return Parameter(tuple(action.option_strings), value, _joined(text))


def _of_typer(command: Any, path: str, above: frozenset[str]) -> Command:
    """`above` are the options that a command takes over from the program."""
    parameters = [
        _of_parameter(each)
        for each in command.params
        if not getattr(each, "hidden", False) and not {*_TYPERS, *above} & set(each.opts)
    ]
    own = {name for each in command.params for name in each.opts}
    below = getattr(command, "commands", {})
    text = inspect.cleandoc(command.help or "")
    return Command(
        path,
        first_sentence(text),
        text,
        tuple(parameters),
        tuple(_of_typer(each, f"{path} {name}", above | own) for name, each in below.items()),
    )


def _of_parameter(parameter: Any) -> Parameter:
    names = tuple(sorted((*parameter.opts, *parameter.secondary_opts), key=len))
    value = parameter.metavar or ""
    if not names[0].startswith("-"):
        return Parameter((), value or parameter.name.upper(), _joined(parameter.help or ""))
    if not value and not parameter.is_flag:
        kind = parameter.type_descriptor.annotation
        choices = [str(each.value) for each in kind] if issubclass(kind, Enum) else [kind.__name__]
        value = "|".join(choices) if issubclass(kind, Enum) else _VALUES.get(choices[0], "VALUE")
    return Parameter(names, value, _joined(parameter.help or ""))


def first_sentence(text: str) -> str:
    """The first one of a description, on one line."""
    paragraph = _joined(text.partition("\n\n")[0])
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]


def _joined(text: str) -> str:
    return " ".join(text.split()).replace(str(Path.home()), "~")
