"""`vcr`: replace a member of a disk; `vcr check` and `vcr diff`: judge requests without sending."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from controlplane.cli import files, render, verdict
from controlplane.cli.command import command, group_command
from controlplane.cli.commands.replacement import follow
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import disk_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2 as judge_pb

# The answer comes after preflight, which asks the new member and all others.
REPLACE_SECONDS = 60.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    group = typer.Typer()
    app.add_typer(group, name="vcr")
    group_command(group)(replace)
    command(group, "check")(check)
    command(group, "diff")(diff)


async def replace(
    session: Session,
    disk: Annotated[
        str,
        typer.Option("-u", "-d", "--disk", metavar="UUID|NAME", help="Which volume or disk."),
    ] = "",
    vcr_replace: Annotated[
        str, typer.Option("--vcr-replace", metavar="FILE", help="JSON file with `name` and `vcr`.")
    ] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once started; do not follow the repair.")
    ] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Say what would happen; change nothing.")
    ] = False,
) -> int:
    """Replace one member of a running disk by the request in FILE, and follow it until verified.

    Sent again, it says started_already (and follows) or completed_already. Subcommands judge files.
    """
    if not vcr_replace:
        raise CommandError(
            "nothing to replace: --vcr-replace FILE is missing",
            "`stairwell vcr -u UUID --vcr-replace FILE`, or see `stairwell vcr --help`",
        )
    request, document = files.read_replacement(vcr_replace)
    session.locate = document.locate
    address_disk(request, disk, vcr_replace)
    request.validate_only = validate_only
    request.request_id = str(uuid.uuid4())
    response = await session.call(
        session.disks.ReplaceVcr, request, pb.ReplaceVcrResponse, seconds=REPLACE_SECONDS
    )
    text = render.replace_result(response)
    if validate_only:
        session.show(plain(response), f"would answer {text}; nothing was changed")
        return 0
    ended = response.result == pb.ReplaceResult.REPLACE_RESULT_COMPLETED_ALREADY
    if no_wait or ended or not response.replacement_id:
        session.show(plain(response), text)
        return 0
    if not session.is_json:
        session.say(text)
    final = await follow(session, response.replacement_id)
    if session.is_json:
        response.replacement.CopyFrom(final.replacement)
        session.show(plain(response), "")
    return final.exit_code


def address_disk(request: pb.ReplaceVcrRequest, disk: str, path: str) -> None:
    """Puts what -u said into the request: a UUID names the volume, anything else the disk."""
    try:
        request.id = str(uuid.UUID(disk)) if disk else ""
    except ValueError:
        if request.name and request.name != disk:
            raise CommandError(
                f"-u names the disk {disk!r} but {path} is for {request.name!r}",
                "send the file to the disk it was written for",
            ) from None
        request.name = disk
        request.ClearField("id")
    if not request.id:
        request.ClearField("id")
    if not request.id and not request.name:
        raise CommandError(
            f"which disk? {path} has no 'name'", "name it with -u UUID or -u DISK_NAME"
        )


async def check(
    session: Session, file: Annotated[str, typer.Argument(metavar="FILE", help="JSON file.")]
) -> int:
    """Judge one construction request: valid, or everything that is wrong with it."""
    vcr, document = files.read_vcr(file)
    session.locate = document.locate
    response = await session.call(
        session.vcrs.CheckVcr, judge_pb.CheckVcrRequest(vcr=vcr), judge_pb.CheckVcrResponse
    )
    session.show(plain(response), verdict.check_view(file, response, document.locate))
    return 0 if response.valid else 1


async def diff(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The request in force.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The request to replace it.")],
) -> int:
    """Judge a replacement. Exit 0: replaces one target, 3: raises the generation only,
    4: unchanged, 1: not a legal replacement.
    """
    original, _ = files.read_vcr(old)
    replacement, document = files.read_vcr(new)
    session.locate = document.locate
    response = await session.call(
        session.vcrs.CompareVcrs,
        judge_pb.CompareVcrsRequest(original=original, replacement=replacement),
        judge_pb.CompareVcrsResponse,
    )
    session.show(plain(response), verdict.diff_view(response, document.locate))
    return verdict.exit_code(response.outcome)
