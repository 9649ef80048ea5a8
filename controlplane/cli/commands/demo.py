"""`demo`: the main job, on real processes and real data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import dump
from controlplane.cli.session import Session
from controlplane.cli.units import parse_size

DEFAULT_BYTES = "512MiB"
# The fill is spread over the whole disk; a smaller one proves little.
BYTES_MIN = 1 << 20


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "demo")(demo)


async def demo(
    session: Session,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write the figures there as JSON.")
    ] = "",
    plot: Annotated[
        str, typer.Option("--plot", metavar="FILE.svg", help="Draw the replacement there.")
    ] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the regions and logs afterwards.")
    ] = False,
    directory: Annotated[
        str, typer.Option("--dir", metavar="DIR", help="Where to keep the data meanwhile.")
    ] = "",
    fill: Annotated[
        str, typer.Option("--bytes", metavar="SIZE", help="How much the guest writes at first.")
    ] = DEFAULT_BYTES,
) -> int:
    """Replace a replica under load and prove the result, with daemons of its own in a temp folder.

    Needs nothing running and leaves nothing behind. Exit 0 only if all is right.
    """
    # Late: nothing else of the client needs the demo.
    from controlplane.cli.demo.narrator import Narrator
    from controlplane.cli.demo.processes import Processes
    from controlplane.cli.demo.result import summary
    from controlplane.cli.demo.steps import main_job
    from controlplane.cli.plot.making import check_place, write
    from controlplane.cli.waterfall import waterfall

    fill_bytes = _fill_bytes(fill)
    if plot:
        check_place(plot, "--plot")
    folder = _folder(directory)
    narrator = Narrator(session.err if session.is_json else session.out)
    with Processes(folder, keep=keep) as processes:
        outcome = await main_job(
            narrator, processes, session.settings, session.tracing, fill_bytes, draw=bool(plot)
        )
        narrator.step("stopping the daemons")
    result = outcome.result
    narrator.show("")
    narrator.show(waterfall(outcome.trace.trace_id, list(outcome.trace.spans)))
    narrator.show("")
    narrator.show(summary(result))
    if keep:
        narrator.show(f"kept {folder}")
    if outcome.story is not None:
        write(outcome.story, plot, "--plot")
        narrator.show(f"drawn to {plot}: {outcome.story.summary}")
    if json_file:
        _write(json_file, dump(result.data()) + "\n")
    if session.is_json:
        session.show(result.data(), "")
    failures = result.failures(fill_bytes)
    if failures:
        raise CommandError("the demo did not prove what it should", details=tuple(failures))
    narrator.step("all is right")
    return 0


def _fill_bytes(text: str) -> int:
    try:
        count = parse_size(text)
    except ValueError as error:
        raise CommandError(f"--bytes: {error}") from None
    if count < BYTES_MIN:
        raise CommandError(f"--bytes {text} is too little to spread over a disk", "at least 1MiB")
    return count


def _folder(directory: str) -> Path:
    """A new folder for this run; a short path, since sockets in it may have 107 bytes at most."""
    try:
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="stairwell-demo-", dir=directory or None)).resolve()
    except OSError as error:
        raise CommandError(
            f"cannot make a folder in {directory or tempfile.gettempdir()}: {error}",
            "name another place with --dir",
        ) from None


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", "check --json") from None
