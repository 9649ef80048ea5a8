"""`bundle`: one file with what somebody needs who looks into a trouble elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.bundle import gathered
from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.session import Session
from controlplane.cli.units import format_bytes


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "bundle")(bundle)


async def bundle(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE.tar.gz",
            help="Where to write it.  [default: stairwell-bundle-TIME.tar.gz, here]",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            help="Take the metrics of a daemon along, as it serves them there; may be repeated.",
        ),
    ] = None,
) -> None:
    """Gather states, transitions, traces, settings and metrics into one file, without secrets.

    In it: instances, disks with their recorded requests and slots, downstairs, agents, drains, the
    fleet's policy, replacements with every transition, the traces of the newest fifty, how each
    guest fared, versions, and of every daemon the settings in effect, each with where it came
    from. Keys, tokens, passwords and certificates are in none of these. What could not be had is
    told in missing.txt.
    """
    name = time.strftime("stairwell-bundle-%Y%m%dT%H%M%SZ", time.gmtime())
    path = file if file is not None else Path(f"{name}.tar.gz")
    if path.exists():
        raise CommandError(f"{path} exists already", "name another file with --file")
    found = await gathered(session, metrics or [])
    data = found.archive(name)
    _write(path, data)
    told = {
        "file": str(path), "bytes": len(data), "files": len(found.files), "missing": found.missing,
    }  # fmt: skip
    lines = [f"{path}: {len(found.files)} files, {format_bytes(len(data))}"]
    lines += [f"missing: {each}" for each in found.missing]
    session.show(told, "\n".join(lines))


def _write(path: Path, data: bytes) -> None:
    """For its owner's eyes: addresses and names are nobody else's business."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise CommandError(
            f"{path}: it cannot be written: {error.strerror}", "name another file with --file"
        ) from error
