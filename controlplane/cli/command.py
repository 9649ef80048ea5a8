"""How a coroutine with typed parameters becomes a subcommand of `stairwell`.

Each command is `async def name(session, ...own options...) -> int | None`. `command` adds the
global options to its signature, so that they are also taken after the subcommand's name, opens the
session, and turns every failure into one message on stderr and an exit code:

    0 done   1 refused or failed   2 wrong usage   130 interrupted   143 terminated
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from controlplane.cli.failure import CommandError, describe
from controlplane.cli.session import Session
from controlplane.cli.settings import Output, Settings
from stairlib.model.errors import StairwellError
from stairlib.telemetry.tracing import Tracing

Parameters = ParamSpec("Parameters")
Body = Callable[Concatenate[Session, Parameters], Awaitable[int | None]]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# The options that every subcommand takes too; None means "not given here".
_SHARED: dict[str, Any] = {
    "output": Annotated[
        Output | None, typer.Option("--output", help="How to print.", show_default=False)
    ],
    "server": Annotated[str | None, typer.Option("--server", "-s", hidden=True)],
    "port": Annotated[int | None, typer.Option("--port", "-p", min=1, max=65535, hidden=True)],
    "timeout": Annotated[float | None, typer.Option("--timeout", min=0.001, hidden=True)],
    "debug": Annotated[bool | None, typer.Option("--debug", hidden=True)],
}


def command(
    app: typer.Typer, name: str, *, hidden: bool = False
) -> Callable[[Body[...]], Body[...]]:
    """Registers the coroutine as subcommand `name`; its docstring is the help. A hidden one is an
    older name that goes on working."""

    def register(body: Body[...]) -> Body[...]:
        app.command(name, hidden=hidden)(_entry(body))
        return body

    return register


def group_command(app: typer.Typer) -> Callable[[Body[...]], Body[...]]:
    """Registers the coroutine as what the group itself does when no subcommand follows."""

    def register(body: Body[...]) -> Body[...]:
        app.callback(invoke_without_command=True)(_entry(body))
        return body

    return register


def _entry(body: Body[...]) -> Callable[..., None]:
    """The function typer sees: the body's own parameters and the shared ones."""
    hints = get_type_hints(body, include_extras=True)
    own = list(inspect.signature(body).parameters.values())[1:]

    @functools.wraps(body)
    def entry(context: typer.Context, **given: Any) -> None:
        settings = _merged(context, {name: given.pop(name) for name in _SHARED})
        context.obj = settings
        if context.invoked_subcommand is None:
            raise typer.Exit(run(settings, lambda session: body(session, **given)))

    parameters = [_parameter("context", typer.Context)]
    parameters += [_parameter(one.name, hints[one.name], one.default) for one in own]
    parameters += [_parameter(name, hint, None) for name, hint in _SHARED.items()]
    del entry.__wrapped__
    entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    entry.__annotations__ = {one.name: one.annotation for one in parameters}
    return entry


def _parameter(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter in typer's eyes; keyword only, since options and arguments come in any order."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _merged(context: typer.Context, given: dict[str, Any]) -> Settings:
    """The settings so far with what was said after the subcommand's name."""
    settings = context.obj if isinstance(context.obj, Settings) else Settings()
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def run(settings: Settings, body: Callable[[Session], Awaitable[int | None]]) -> int:
    """Runs one command to its exit code; prints its failure, and a traceback only with --debug."""
    reports: list[str] = []
    try:
        return asyncio.run(_with_session(settings, body, reports))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except asyncio.CancelledError:
        return EXIT_TERMINATED
    except BrokenPipeError:
        # The reader of our output has gone; what it did not read it did not want.
        _discard_stdout()
        return EXIT_FAILED
    except (StairwellError, CommandError):
        if settings.debug:
            traceback.print_exc()
        print("\n".join(reports), file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last door: users get a sentence, not a stack
        if settings.debug:
            traceback.print_exc()
        text = f"error: unexpected {type(error).__name__}: {error}"
        print(f"{text}\nhint: --debug shows where; please report it", file=sys.stderr)
        return EXIT_FAILED


async def _with_session(
    settings: Settings, body: Callable[[Session], Awaitable[int | None]], reports: list[str]
) -> int:
    """The command inside its session; a failure's text goes to `reports`, its file still known."""
    _cancel_on_terminate()
    try:
        tracing = Tracing.configure("stairwell", "cli")
    except StairwellError as error:
        reports.append(f"error: {error.message}")
        raise
    try:
        async with Session(settings, tracing) as session:
            try:
                return await body(session) or 0
            except (StairwellError, CommandError) as error:
                reports.append(describe(error, settings.address, session.locate))
                raise
    finally:
        tracing.shutdown()


def _cancel_on_terminate() -> None:
    """SIGTERM ends a command as Ctrl-C does, so that what it started is cleaned up."""
    task = asyncio.current_task()
    assert task is not None
    try:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _interrupt, task)
    except (RuntimeError, ValueError):
        # Not the main thread: whoever embeds the client owns the signals.
        return


def _interrupt(task: asyncio.Task[Any]) -> None:
    task.cancel("terminated")


def _discard_stdout() -> None:
    """Keeps the interpreter from complaining about the closed pipe again when it exits."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
