"""`vcr`: replace a member of a disk; `vcr check` and `vcr diff`: judge requests without sending."""

from __future__ import annotations

import json
import uuid
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import files, render, tree_diff, verdict
from controlplane.cli.command import command, group_command
from controlplane.cli.commands.replacement import follow
from controlplane.cli.failure import CommandError, describe
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairlib.runtime.limits import KIB, RPC_MESSAGE_BYTES
from stairlib.wire.construction import parse_message
from stairwell.controlplane.v1 import disk_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2 as judge_pb

# The answer comes after preflight, which asks the new member and all others.
REPLACE_SECONDS = 60.0
# A request as text inside a call, with room for what is around it.
JSON_TEXT_MAX = RPC_MESSAGE_BYTES - KIB


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
    session: Session,
    file: Annotated[list[str], typer.Argument(metavar="FILE", help="JSON files.")],
) -> int:
    """Judge construction requests: valid, or everything that is wrong with each.

    Exit 0 when all are valid, 1 when one is not.
    """
    if len(file) == 1:
        response, view = await _checked(session, files.open_vcr(file[0]))
        session.show(plain(response), view)
        return 0 if response.valid else 1
    results, views, valid = [], [], True
    for path in file:
        try:
            response, view = await _checked(session, files.open_vcr(path))
        except CommandError as error:
            # The others are judged all the same.
            results.append({"file": path, "valid": False, "error": error.message})
            views.append(describe(error, session.settings.address))
            valid = False
            continue
        results.append({"file": path, **plain(response)})
        views.append(view)
        valid = valid and response.valid
    session.show(results, "\n".join(views))
    return 0 if valid else 1


async def _checked(session: Session, found: files.VcrFile) -> tuple[judge_pb.CheckVcrResponse, str]:
    """The judge's answer to one file, in the order of the file's lines, and the text to print."""
    session.locate = found.locate
    response = await session.call(
        session.vcrs.CheckVcr, _check_request(found), judge_pb.CheckVcrResponse
    )
    for key in found.document.duplicates:
        if key.startswith(found.where):
            field = key[len(found.where) :].removeprefix(".")
            text = "is written twice, must be written once"
            response.violations.add(field=field, reason="DUPLICATE_KEY", description=text)
            response.valid = False
    listed = sorted(response.violations, key=lambda one: found.line(one.field) or 0)
    del response.violations[:]
    response.violations.extend(listed)
    return response, verdict.check_view(found.document.path, response, found.locate)


def _check_request(found: files.VcrFile) -> judge_pb.CheckVcrRequest:
    """The request as a message; as text where it cannot be one, so that the judge tells it all."""
    if found.problems:
        text = json.dumps(found.data)
        if len(text) < JSON_TEXT_MAX:
            return judge_pb.CheckVcrRequest(vcr_json=text)
    return judge_pb.CheckVcrRequest(vcr=found.message())


async def diff(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The request in force.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The request to replace it.")],
) -> int:
    """Judge a replacement, and show both trees side by side with what changed marked.

    Exit 0: replaces one target, 3: raises the generation only, 4: unchanged, 1: not a legal
    replacement.

    Marks: ~ changed, + only in NEW, - only in OLD; numbers lead to the objections below the trees.
    """
    before, after = files.open_vcr(old), files.open_vcr(new)
    await _refuse_misfits(session, before, after)
    request = judge_pb.CompareVcrsRequest(original=before.message(), replacement=after.message())
    session.locate = partial(_locate, before, after)
    response = await session.call(session.vcrs.CompareVcrs, request, judge_pb.CompareVcrsResponse)
    rows = _rows(request, response)
    if rows and not session.is_json:
        session.say(tree_diff.table(rows, Path(old).name, Path(new).name))
        session.say("")
    data = {**plain(response), "differences": tree_diff.differences(rows)}
    session.show(data, verdict.diff_view(response, after.locate, numbered=bool(rows)))
    return verdict.exit_code(response.outcome)


def _rows(
    request: judge_pb.CompareVcrsRequest, response: judge_pb.CompareVcrsResponse
) -> list[tree_diff.Row]:
    """Both trees; none where a newer control plane reads what this client cannot."""
    original = parse_message(request.original).construction
    replacement = parse_message(request.replacement).construction
    if original is None or replacement is None:
        return []
    rejected = response.outcome == judge_pb.VCR_OUTCOME_REJECT
    objections = [one.field for one in response.violations] if rejected else []
    return tree_diff.rows(original, replacement, objections)


async def _refuse_misfits(session: Session, *found: files.VcrFile) -> None:
    """One error with all that is wrong with each file that is no construction request."""
    details = []
    for one in found:
        if one.problems:
            details += (await _checked(session, one))[1].splitlines()
        else:
            details += one.document.described(one.document.twice())
    if details:
        raise CommandError("these are not two construction requests", details=tuple(details))


def _locate(before: files.VcrFile, after: files.VcrFile, field: str) -> str | None:
    """The place of a field that the judge could not read, on the side it names."""
    side, _, rest = field.partition(".")
    return {"original": before, "replacement": after}.get(side, after).locate(rest)
