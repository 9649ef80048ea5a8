"""How commands end: codes, messages, and options after the subcommand."""

import asyncio
import signal

import pytest
import typer

from controlplane.cli import command as commands
from controlplane.cli.failure import CommandError
from controlplane.cli.main import main
from controlplane.cli.settings import Output, Settings
from stairlib import native
from stairlib.model.errors import StateError


def run(body, **settings) -> int:
    return commands.run(Settings(**settings), body)


def raising(error):
    async def body(_session):
        raise error

    return body


def test_a_command_that_returns_nothing_has_worked():
    async def body(_session):
        return None

    assert run(body) == 0


def test_a_refusal_is_one_message(capsys):
    assert run(raising(StateError("it is stopped; start it first", reason="STOPPED"))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: it is stopped; start it first (STOPPED)\n"


def test_an_unexpected_failure_is_a_sentence_and_no_traceback(capsys):
    assert run(raising(ZeroDivisionError("boom"))) == 1
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: boom" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys):
    assert run(raising(CommandError("no")), debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(capsys):
    async def body(_session):
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    assert run(body) == 130
    assert capsys.readouterr().err == ""


def test_terminate_cleans_up_and_is_143(capsys):
    cleaned = []

    async def body(_session):
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    assert run(body) == 143
    assert cleaned
    assert capsys.readouterr().err == ""


def test_shared_options_may_follow_the_subcommand():
    seen: list[Settings] = []
    app = typer.Typer()

    @app.callback()
    def _root(context: typer.Context) -> None:
        context.obj = Settings(server="root", timeout=5.0)

    group = typer.Typer()
    app.add_typer(group, name="group")

    async def itself(session) -> None:
        """The group."""
        seen.append(session.settings)

    async def leaf(session, name: str = "x") -> None:
        """A leaf."""
        assert name
        seen.append(session.settings)

    commands.group_command(group)(itself)
    commands.command(group, "leaf")(leaf)
    app(["group", "--output", "json"], standalone_mode=False)
    app(["group", "--output", "json", "leaf", "-p", "7"], standalone_mode=False)
    assert seen[0] == Settings(server="root", timeout=5.0, output=Output.JSON)
    assert seen[1] == Settings(server="root", port=7, timeout=5.0, output=Output.JSON)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["state", "walk"], "'walk' is not one of 'run', 'stop', 'reboot'"),
        (["get", "--output", "yaml"], "yaml"),
        (["--port", "70000", "get"], "--port"),
        (["get", "--nonsense"], "--nonsense"),
        (["new"], "Missing argument"),
    ],
)
def test_wrong_usage_is_2_and_one_message(capsys, argv, said):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert "hint: see `stairwell" in err


def test_the_version(capsys):
    assert main(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("stairwell ")
    assert second == f"frame loop {native.describe()}"


def test_help_of_everything(capsys):
    for argv in ([], ["vcr"], ["disk"], ["replacement"], ["state"], ["demo"], ["trace"]):
        assert main([*argv, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--vcr-replace" in text
    assert "--read-data" not in text
