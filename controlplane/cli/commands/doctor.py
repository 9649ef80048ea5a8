"""`doctor`: what this host has for the programs, and what it lacks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.command import command
from controlplane.cli.session import Session


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "doctor")(doctor)


async def doctor(
    session: Session,
    directories: Annotated[
        list[Path] | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Where regions or other state are to be kept; repeatable."
            "  [default: the control plane's directory and the one for temporary files]",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Check this host: Python, files, limits, clock, ports, QEMU, docker. Says what to do.

    Needs nothing running and changes nothing. Exit 0 if all that is needed works; what only an
    optional part needs is told, and fails nothing.
    """
    # Late: nothing else of the client needs them.
    from controlplane.cli.doctor.judgement import judge, works
    from controlplane.cli.doctor.probes import examine
    from controlplane.cli.doctor.report import data, report
    from controlplane.config import default_data

    chosen = directories or [default_data(os.environ), Path(tempfile.gettempdir())]
    findings = judge(await examine(chosen))
    session.show(data(findings), report(findings))
    return 0 if works(findings) else 1
