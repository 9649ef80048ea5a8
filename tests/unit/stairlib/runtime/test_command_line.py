"""Where each value of a command line came from, for the daemons' own parsers."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from controlplane.config import parse
from controlplane.config import parser as controlplane_parser
from downstaird.arguments import parser as downstaird_parser
from stairlib.model.settings import MASK, SecretText, Setting, Source
from stairlib.rpc.flags import TLS_VARIABLES
from stairlib.runtime.command_line import command_line_settings, variable_settings
from vmmd.config import parser as vmmd_parser

KEY = "5a" * 32
DATABASE = "postgresql://me:hunter2@db/stairwell"


def by_name(found: Any) -> dict[str, Setting]:
    named = {each.name: each for each in found}
    assert len(named) == len(found), "a name twice"
    return named


def test_what_was_given_and_what_was_not() -> None:
    words = ["run", "10.0.0.1:55400", "--data=/d", "--insecure", "--lease-seconds", "30"]
    found = by_name(command_line_settings(controlplane_parser, words, {}))
    told = {name: (each.value, each.source, each.origin) for name, each in found.items()}
    assert told["address"] == ("10.0.0.1:55400", Source.FLAG, "its argument")
    assert told["data"] == ("/d", Source.FLAG, "--data")
    assert told["insecure"] == ("true", Source.FLAG, "--insecure")
    assert told["log-level"] == ("info", Source.DEFAULT, "")
    # Given as it is by default is given all the same.
    assert told["lease-seconds"] == ("30", Source.FLAG, "--lease-seconds")
    assert "command" not in told
    assert "help" not in told


def test_a_variable_stands_in_for_a_flag_that_is_not_given() -> None:
    environment = {"STAIRWELL_DAEMON_TLS_CERT": "/c.pem", "STAIRWELL_DAEMON_TLS_KEY": ""}
    words = ["run", "server.toml", "--tls-ca", "/ca.pem"]
    found = by_name(command_line_settings(vmmd_parser, words, environment, TLS_VARIABLES))
    assert found["tls-cert"] == Setting(
        "tls-cert", "/c.pem", Source.ENVIRONMENT, "STAIRWELL_DAEMON_TLS_CERT"
    )
    assert found["tls-key"] == Setting("tls-key", "")
    assert found["tls-ca"] == Setting("tls-ca", "/ca.pem", Source.FLAG, "--tls-ca")


@pytest.mark.parametrize(
    ("words", "name", "flag"),
    [
        (["run", "-d", "/r", "--cert-pem", "/c"], "tls-cert", "--tls-cert"),
        (["agent", "--root", "/r", "--ports", "1-9"], "ports", "--ports"),
        (["run", "-d", "/r"], "data", "--data"),
    ],
)
def test_flags_with_several_names_and_needed_ones(words: list[str], name: str, flag: str) -> None:
    found = by_name(command_line_settings(downstaird_parser, words, {}))
    assert (found[name].source, found[name].origin) == (Source.FLAG, flag)


def test_the_parser_of_the_program_is_not_changed() -> None:
    parser = controlplane_parser({})
    command_line_settings(lambda: controlplane_parser({}), ["run"], {})
    assert parser.parse_args(["run"]).log_level == "info"


def test_a_variable_goes_through_the_type_of_its_flag() -> None:
    def parser() -> argparse.ArgumentParser:
        made = argparse.ArgumentParser()
        made.add_argument("--password", type=SecretText, default="")
        return made

    environment = {"PASSWORD": "hunter2"}
    (found,) = command_line_settings(parser, [], environment, {"password": "PASSWORD"})
    assert found == Setting("password", MASK, Source.ENVIRONMENT, "PASSWORD", True)


def test_variables_are_told_where_they_are_set() -> None:
    kinds = {"A": str, "B": SecretText, "C": str}
    assert variable_settings({"A": "x", "B": "hunter2", "C": ""}, kinds) == [
        Setting("A", "x", Source.ENVIRONMENT, "A"),
        Setting("B", MASK, Source.ENVIRONMENT, "B", True),
    ]


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_control_plane_s_secrets_are_in_none_of_its_settings(how: str) -> None:
    environment = {
        "STAIRWELL_SECRET_KEY": KEY,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=hunter2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:hunter2@collector:4317",
    }
    words = ["run"]
    if how == "flag":
        words += ["--database", DATABASE]
    else:
        environment["STAIRWELL_DATABASE"] = DATABASE
    config = parse(words, environment)
    assert config.place.url == DATABASE
    text = repr(config.settings)
    assert "hunter2" not in text
    assert KEY not in text
    found = by_name(config.settings)
    assert found["database"].value == f"postgresql://me:{MASK}@db/stairwell"
    assert found["database"].masked
    assert found["STAIRWELL_SECRET_KEY"].value == MASK
    # Nor where somebody prints the whole configuration.
    assert "hunter2" not in repr(config)
    assert KEY not in repr(config)
