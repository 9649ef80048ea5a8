"""The names of `dsc cmd`, its flags, and how answers are shown."""

from typing import Any

import pytest

from downstaird.dsc import command as command_module
from downstaird.dsc.__main__ import main
from downstaird.dsc.command import COMMANDS, Arguments, Command

# As in the original system; scripts are written for them.
NAMES = [
    *("all-running", "all-stopped", "pid", "port", "state", "uuid"),
    *("region-count", "region-info", "read-only"),
    *("start", "start-all", "stop", "stop-all", "stop-rand"),
    *("enable-restart", "enable-restart-all", "disable-restart", "disable-restart-all"),
    *("enable-random-stop", "disable-random-stop", "enable-random-min", "enable-random-max"),
    "shutdown",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Arguments]]:
    """What would have been sent; the answer is None."""
    calls: list[tuple[str, str, Arguments]] = []

    async def ask(server: str, command: Command, arguments: Arguments) -> object:
        calls.append((server, command.name, arguments))
        return None

    monkeypatch.setattr(command_module, "ask", ask)
    return calls


def answer(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    async def ask(*_: Any) -> object:
        return value

    monkeypatch.setattr(command_module, "ask", ask)


def test_every_known_name_is_there() -> None:
    assert {command.name for command in COMMANDS} == {*NAMES, "list"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_taken(name: str, asked: list[Any], capsys: Any) -> None:
    needs = next(command.needs for command in COMMANDS if command.name == name)
    flags = {"cid": ["-c", "2"], "seconds": ["-m", "7"], "": []}[needs]
    assert main(["cmd", name, *flags]) == 0
    (server, sent, arguments) = asked[0]
    assert (server, sent) == ("127.0.0.1:9998", name)
    assert arguments.cid == (2 if needs == "cid" else None)
    assert arguments.seconds == (7 if needs == "seconds" else None)
    assert capsys.readouterr().out == ("null\n" if name == "pid" else "")


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_server_may_be_named_on_either_side(where: str, asked: list[Any]) -> None:
    flag = ["--server", "10.0.0.1:1"]
    name = ["state", "--cid", "0"]
    assert main(["cmd", *flag, *name] if where == "before" else ["cmd", *name, *flag]) == 0
    assert asked[0][0] == "10.0.0.1:1"


@pytest.mark.parametrize(
    "wrong",
    [
        ["cmd", "state"],
        ["cmd", "state", "-c", "x"],
        ["cmd", "state", "-c", "-1"],
        ["cmd", "dance"],
        ["cmd"],
        [],
        ["start", "--cleanup"],
        ["start", "--region-count", "many"],
    ],
)
def test_wrong_usage_is_status_2(wrong: list[str], asked: list[Any], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert "usage: dsc" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    ("value", "human", "as_json"),
    [
        (True, "true", '{"state": true}'),
        ("running", "running", '{"state": "running"}'),
        ({"a": 1, "b": 2}, "a: 1\nb: 2", '{"state": {"a": 1, "b": 2}}'),
        (
            [{"cid": 0, "pid": None}, {"cid": 1, "pid": 12345}],
            "cid  pid\n0    null\n1    12345",
            '{"state": [{"cid": 0, "pid": null}, {"cid": 1, "pid": 12345}]}',
        ),
    ],
)
def test_answers_for_people_and_for_scripts(
    value: object, human: str, as_json: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answer(monkeypatch, value)
    assert main(["cmd", "state", "-c", "0"]) == 0
    assert capsys.readouterr().out == human + "\n"
    assert main(["cmd", "state", "-c", "0", "--output", "json"]) == 0
    assert capsys.readouterr().out == as_json + "\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--key-pem", "k"], "--cert-pem is missing"),
        (
            ["--cert-pem", "/none", "--key-pem", "/none", "--root-cert-pem", "/none"],
            "--cert-pem: /none cannot be read",
        ),
    ],
)
def test_tls_files_that_will_not_do_are_named(flags: list[str], says: str, capsys: Any) -> None:
    assert main(["start", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dsc: ")
    assert says in error


def test_nobody_there_is_one_sentence(capsys: Any) -> None:
    assert main(["cmd", "--server", "127.0.0.1:1", "list"]) == 1
    assert capsys.readouterr().err.startswith("dsc: cannot reach dsc at 127.0.0.1:1")


def test_help_teaches(capsys: Any) -> None:
    for arguments in (["--help"], ["start", "--help"], ["create", "--help"], ["cmd", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "dsc start --create --cleanup --extent-size 16384" in text
    assert "SIGKILL" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--block-size", "1000"], "--block-size"),
        (["--block_size=1000"], "--block-size"),
        (["--extent_size", "0"], "--extent-size"),
        (["--region-count", "0"], "--region-count"),
        (["--ds-bin", "/nowhere/downstaird"], "--ds-bin"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], says: str, capsys: Any) -> None:
    assert main(["create", *flags]) == 1
    assert says in capsys.readouterr().err
