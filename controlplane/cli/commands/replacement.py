"""`replacement list|show|watch|plot|pause|resume|cancel|retry|limit`: the workflows that replace
members."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import typer

from controlplane.cli import fleet_view, render, watch
from controlplane.cli.command import command
from controlplane.cli.commands import start
from controlplane.cli.display import Look, progress_display
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import enum_word, plain
from controlplane.cli.plot.making import AROUND_SECONDS, check_place, story_of, write
from controlplane.cli.session import Session
from controlplane.cli.switch import Switch
from controlplane.cli.units import parse_size
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
    command(group, "show")(show)
    command(group, "get", hidden=True)(show)
    command(group, "watch")(watch_one)
    command(group, "plot")(plot)
    command(group, "pause")(pause)
    command(group, "resume")(resume)
    command(group, "cancel")(cancel)
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


async def show(session: Session, replacement: Id) -> None:
    """Show one replacement with its history."""
    response = await session.call(
        session.replacements.GetReplacement,
        pb.GetReplacementRequest(id=replacement),
        pb.GetReplacementResponse,
    )
    session.show(plain(response.replacement), fleet_view.replacement_view(response.replacement))


async def watch_one(session: Session, replacement: Id) -> int:
    """Follow a replacement until it is done (exit 0), or has failed or was undone (exit 1).

    A paused one is followed on; interrupt the command to leave it.
    """
    line: Callable[[pb.Replacement], None] | None = None
    if session.is_json:
        line = lambda one: session.line(plain(one), "")  # noqa: E731
    return (await follow(session, replacement, line)).exit_code


async def plot(
    session: Session,
    replacement: Id,
    file: Annotated[
        str,
        typer.Option("--file", "-f", metavar="FILE.svg", help="Default: ID.svg, here."),
    ] = "",
    around: Annotated[
        float,
        typer.Option("--around", metavar="SECONDS", min=0, help="Shown before and after it."),
    ] = AROUND_SECONDS,
) -> None:
    """Draw a replacement: its guest's latency and throughput before, during and after, the repair's
    rate, the phases as bands.

    One that runs is drawn up to now. What the guest felt is what its machine remembers: each half
    second of the last half hour, each ten seconds of six hours, back to when its process began.
    """
    place = file or f"{replacement}.svg"
    check_place(place, "--file")
    response = await session.call(
        session.replacements.GetReplacement,
        pb.GetReplacementRequest(id=replacement),
        pb.GetReplacementResponse,
    )
    story = await story_of(session, response.replacement, around)
    write(story, place, "--file")
    session.show(
        {"file": place, "samples": len(story.moments), "summary": story.summary},
        f"{place}: {len(story.moments)} samples; {story.summary}",
    )


async def pause(session: Session, replacement: Id) -> None:
    """Have a replacement stand still: nothing is copied, the guest goes on.

    It lasts over restarts, until `replacement resume` or `replacement cancel`. A member that was
    let in already keeps getting every write.
    """
    response = await session.call(
        session.replacements.PauseReplacement,
        pb.PauseReplacementRequest(id=replacement),
        pb.PauseReplacementResponse,
    )
    one = response.replacement
    session.show(
        plain(one),
        f"{one.id} is paused in {render.replacement_word(one.paused_in)}; "
        f"`stairwell replacement resume {one.id}` has it go on",
    )


async def resume(session: Session, replacement: Id) -> None:
    """Have a paused replacement go on where it stood."""
    response = await session.call(
        session.replacements.ResumeReplacement,
        pb.ResumeReplacementRequest(id=replacement),
        pb.ResumeReplacementResponse,
    )
    _goes_on(session, response.replacement)


async def cancel(session: Session, replacement: Id) -> int:
    """Undo a replacement while the old member is there; else say what becomes of it.

    Exit 0: it is undone, and the recorded request and its generation are as before. Exit 1: it is
    not, and the answer says why and what to do. Asked again, the answer is the same.
    """
    response = await session.call(
        session.replacements.CancelReplacement,
        pb.CancelReplacementRequest(id=replacement),
        pb.CancelReplacementResponse,
    )
    outcome = enum_word(pb.CancelOutcome.DESCRIPTOR, response.outcome)
    data = {
        "outcome": outcome,
        "reason": response.reason,
        "replacement": plain(response.replacement),
    }
    session.show(data, render.cancelled(response))
    return 0 if response.outcome == pb.CancelOutcome.CANCEL_OUTCOME_UNDONE else 1


async def retry(session: Session, replacement: Id) -> None:
    """Try a failed replacement again, from the step that failed."""
    response = await session.call(
        session.replacements.RetryReplacement,
        pb.RetryReplacementRequest(id=replacement),
        pb.RetryReplacementResponse,
    )
    _goes_on(session, response.replacement)


def _goes_on(session: Session, one: pb.Replacement) -> None:
    word = render.replacement_word(one.state)
    session.show(
        plain(one),
        f"{one.id} goes on in {word}; follow it with `stairwell replacement watch {one.id}`",
    )


async def limit(
    session: Session,
    target: Annotated[
        str, typer.Argument(metavar="ID|DISK", help="A replacement that runs, or a disk.")
    ],
    rate: Annotated[
        str,
        typer.Option("--rate", metavar="RATE", help="At most this a second, as 50M; 0: no limit."),
    ] = "",
    floor: Annotated[
        str,
        typer.Option("--floor", metavar="RATE", help="At least this, adaptive; 0: the default."),
    ] = "",
    in_flight: Annotated[
        int | None,
        typer.Option(
            "--in-flight", metavar="N", min=0, help="Extents copied at once, to 16; 0: the default."
        ),
    ] = None,
    adaptive: Annotated[
        Switch | None,
        typer.Option("--adaptive", help="Whether repairs give way to the guest (on by default)."),
    ] = None,
) -> None:
    """Change how fast a disk's repairs may copy; a running one obeys at once.

    What is not given stays as it is; it is kept until it is changed. The fleet's own limit is
    `stairwell fleet policy --repair-rate`.
    """
    request = pb.SetRepairLimitsRequest(extents_in_flight_max=in_flight)
    if adaptive is not None:
        request.adaptive = adaptive is Switch.ON
    if rate:
        request.bytes_per_second_max = _size("--rate", rate)
    if floor:
        request.bytes_per_second_min = _size("--floor", floor)
    if request == pb.SetRepairLimitsRequest():
        raise CommandError(
            "nothing to change", "give --rate, --floor, --in-flight or --adaptive; see --help"
        )
    try:
        request.id = str(UUID(target))
    except ValueError:
        request.disk = target
    response = await session.call(
        session.replacements.SetRepairLimits, request, pb.SetRepairLimitsResponse
    )
    session.show(plain(response), render.limits_view(response))


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None


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

    def request() -> pb.WatchReplacementRequest:
        number = last.transitions[-1].number if last.transitions else None
        return pb.WatchReplacementRequest(id=replacement_id, after_transition=number)

    updates = session.watch(
        session.replacements.WatchReplacement,
        request,
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
    if last.state != pb.ReplacementState.REPLACEMENT_STATE_DONE:
        session.note("\n".join([*_failure(last)]))
    elif not quiet:
        for line in watch.closing_lines(last):
            session.say(line)
    return Followed(last)


def _failure(replacement: pb.Replacement) -> list[str]:
    reason = watch.closing_lines(replacement)[0]
    name = replacement.id
    if replacement.state == pb.ReplacementState.REPLACEMENT_STATE_CANCELLED:
        return [f"error: replacement {name} {reason}"]
    hint = (
        f"hint: `stairwell replacement show {name}` shows its steps; when the cause is removed, "
        f"`stairwell replacement retry {name}`"
    )
    return [f"error: replacement {name} {reason}", hint]
