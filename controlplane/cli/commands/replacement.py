"""`replacement list|get|watch|retry|limit`: the workflows that replace members."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import typer

from controlplane.cli import fleet_view, render, watch
from controlplane.cli.command import command
from controlplane.cli.commands import start
from controlplane.cli.display import Look, progress_display
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.units import format_limit, parse_size
from stairwell.controlplane.v1 import replacement_service_pb2 as pb

_LOOK: Look[pb.Replacement] = Look(
    line=watch.progress_line,
    live_line=watch.live_line,
    phase=watch.phase_of,
    ended=watch.has_ended,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="Replacement id.")]


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    group = typer.Typer(help="Replacements: durable workflows.", no_args_is_help=True)
    app.add_typer(group, name="replacement")
    start.add_to(group)
    command(group, "list")(list_all)
    command(group, "get")(get)
    command(group, "watch")(watch_one)
    command(group, "retry")(retry)
    command(group, "limit")(limit)


async def list_replacements(session: Session, disk: str = "") -> list[pb.Replacement]:
    """All replacements, or those of one disk, page by page."""
    found: list[pb.Replacement] = []
    token = ""
    while True:
        page = await session.call(
            session.replacements.ListReplacements,
            pb.ListReplacementsRequest(disk=disk, page_token=token),
            pb.ListReplacementsResponse,
        )
        found.extend(page.replacements)
        token = page.next_page_token
        if not token:
            return found


async def list_all(
    session: Session,
    disk: Annotated[str, typer.Option("--disk", "-d", help="Only those of this disk.")] = "",
) -> None:
    """Show replacements, running and ended."""
    found = await list_replacements(session, disk)
    data = {"replacements": [plain(one) for one in found]}
    session.show(data, render.replacements_table(found))


async def get(session: Session, replacement: Id) -> None:
    """Show one replacement with its history."""
    response = await session.call(
        session.replacements.GetReplacement,
        pb.GetReplacementRequest(id=replacement),
        pb.GetReplacementResponse,
    )
    session.show(plain(response.replacement), fleet_view.replacement_view(response.replacement))


async def watch_one(session: Session, replacement: Id) -> int:
    """Follow a replacement until it is done (exit 0) or has failed (exit 1)."""
    line: Callable[[pb.Replacement], None] | None = None
    if session.is_json:
        line = lambda one: session.line(plain(one), "")  # noqa: E731
    return (await follow(session, replacement, line)).exit_code


async def retry(session: Session, replacement: Id) -> None:
    """Try a failed replacement again, from the step that failed."""
    response = await session.call(
        session.replacements.RetryReplacement,
        pb.RetryReplacementRequest(id=replacement),
        pb.RetryReplacementResponse,
    )
    one = response.replacement
    word = render.replacement_word(one.state)
    session.show(
        plain(one),
        f"{one.id} goes on in {word}; follow it with `stairwell replacement watch {one.id}`",
    )


async def limit(
    session: Session,
    replacement: Id,
    rate: Annotated[
        str, typer.Argument(metavar="RATE", help="Bytes a second, as 50MiB; 0 for no limit.")
    ],
) -> None:
    """Change how fast a running repair may copy."""
    try:
        bytes_per_second = parse_size(rate)
    except ValueError as error:
        raise CommandError(f"RATE: {error}") from None
    response = await session.call(
        session.replacements.SetRepairLimits,
        pb.SetRepairLimitsRequest(id=replacement, bytes_per_second_max=bytes_per_second),
        pb.SetRepairLimitsResponse,
    )
    one = response.replacement
    session.show(plain(one), f"{one.id}: {format_limit(one.repair_bytes_per_second_max)}")


# ----- following


@dataclass(frozen=True, slots=True)
class Followed:
    """How a followed replacement ended."""

    replacement: pb.Replacement

    @property
    def exit_code(self) -> int:
        """0 only when it is done."""
        return 0 if self.replacement.state == pb.ReplacementState.REPLACEMENT_STATE_DONE else 1


async def follow(
    session: Session,
    replacement_id: str,
    on_update: Callable[[pb.Replacement], None] | None = None,
) -> Followed:
    """Shows a replacement's progress until it ends; survives a restart of the control plane.

    With `on_update` or `--output json` nothing is shown for people but a failure's explanation.
    """
    quiet = on_update is not None or session.is_json
    show, live = progress_display(session, _LOOK, quiet=quiet)
    last = pb.Replacement()
    updates = session.watch(
        session.replacements.WatchReplacement,
        pb.WatchReplacementRequest(id=replacement_id),
        pb.WatchReplacementResponse,
        until=lambda update: watch.has_ended(update.replacement),
        on_away=lambda error: session.note(f"{error.message}; trying again"),
    )
    with live:
        async with aclosing(updates) as messages:
            async for update in messages:
                last = update.replacement
                (on_update or show)(last)
    if not watch.has_ended(last):
        raise CommandError(
            "the control plane ended the watch before the replacement has ended",
            f"follow it again with `stairwell replacement watch {replacement_id}`",
        )
    if last.state == pb.ReplacementState.REPLACEMENT_STATE_FAILED:
        session.note("\n".join([*_failure(last)]))
    elif not quiet:
        for line in watch.closing_lines(last):
            session.say(line)
    return Followed(last)


def _failure(replacement: pb.Replacement) -> list[str]:
    reason = watch.closing_lines(replacement)[0]
    name = replacement.id
    hint = (
        f"hint: `stairwell replacement get {name}` shows its steps; when the cause is removed, "
        f"`stairwell replacement retry {name}`"
    )
    return [f"error: replacement {name} {reason}", hint]
