"""The settings of a command line: what each flag came to, and whether somebody gave it.

argparse does not say which values were given, so the same words are read once more with all
defaults taken away: what is there then was given.
"""
# argparse has no public way to ask a parser what it takes.
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from stairlib.model.settings import SecretText, SecretUrl, Setting, Source, setting

# What every daemon obeys of its environment besides its own variables, see docs/tracing.md. Each
# of them is told when it is set; headers hold the keys of collectors.
TELEMETRY_VARIABLES: Final[Mapping[str, Callable[[str], str]]] = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": SecretUrl,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": SecretUrl,
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": SecretUrl,
    "OTEL_EXPORTER_OTLP_PROTOCOL": str,
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": str,
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": str,
    "OTEL_EXPORTER_OTLP_HEADERS": SecretText,
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": SecretText,
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS": SecretText,
    "OTEL_TRACES_EXPORTER": str,
    "OTEL_METRICS_EXPORTER": str,
    "OTEL_SDK_DISABLED": str,
}


def command_line_settings(
    make: Callable[[], argparse.ArgumentParser],
    words: Sequence[str],
    environment: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
) -> list[Setting]:
    """Every flag of the command that `words` name, in the order of its help.

    `make` gives a parser of its own at each call; `variables` has the variable that stands in where
    a flag (by its destination) was not given. The words must have been read without error before.
    """
    whole = make().parse_args(words)
    bare = make()
    for parser in _parsers(bare):
        parser.argument_default = argparse.SUPPRESS
        for action in parser._actions:
            action.default = argparse.SUPPRESS
            action.required = action.required and not action.option_strings
    given = vars(bare.parse_args(words))
    found = []
    for action in _taken(make(), whole):
        name, value = _name(action), getattr(whole, action.dest, None)
        variable = (variables or {}).get(action.dest, "")
        if action.dest in given:
            source, origin = Source.FLAG, _origin(action)
        elif variable and environment.get(variable):
            source, origin = Source.ENVIRONMENT, variable
            value = _typed(action, environment[variable])
        else:
            source, origin = Source.DEFAULT, ""
        found.append(setting(name, value, source, origin))
    return found


def variable_settings(
    environment: Mapping[str, str], variables: Mapping[str, Callable[[str], str]]
) -> list[Setting]:
    """Those of the variables that are set, by their own names; the type of each says what is
    secret."""
    return [
        setting(name, kind(environment[name]), Source.ENVIRONMENT, name)
        for name, kind in variables.items()
        if environment.get(name)
    ]


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)


def _taken(parser: argparse.ArgumentParser, whole: argparse.Namespace) -> Iterator[argparse.Action]:
    """The actions that say something, of the parser and of the commands that were named."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = getattr(whole, action.dest, None)
            if chosen in action.choices:
                yield from _taken(action.choices[chosen], whole)
        elif action.dest not in (argparse.SUPPRESS, "help", "version"):
            yield action


def _name(action: argparse.Action) -> str:
    """Its longest flag without dashes, or what its value is called."""
    if action.option_strings:
        return _origin(action).lstrip("-")
    return action.dest


def _origin(action: argparse.Action) -> str:
    for flag in action.option_strings:
        if flag.startswith("--"):
            return flag
    return action.option_strings[0] if action.option_strings else "its argument"


def _typed(action: argparse.Action, text: str) -> Any:
    kind = action.type
    return kind(text) if callable(kind) else text
