"""`trace`: where the time of a replacement went, over all daemons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from controlplane.cli.command import command
from controlplane.cli.commands.replacement import list_replacements
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.waterfall import services, waterfall
from stairlib.telemetry.otlp_file import to_json_line, traces_data
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.telemetry.v1.trace_service_pb2 import Span


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "trace")(trace)


async def get_trace(session: Session, name: str) -> pb.GetReplacementTraceResponse:
    """The spans of a replacement, by its id or its trace's."""
    return await session.call(
        session.replacements.GetReplacementTrace,
        pb.GetReplacementTraceRequest(id=name),
        pb.GetReplacementTraceResponse,
    )


async def trace(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[REPLACEMENT|TRACE_ID]", help="The newest replacement when left out."
        ),
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Show every span; like ones are folded otherwise.")
    ] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Show what happened within the spans, too.")
    ] = False,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", help="Draw with ASCII alone, as for a plain mail.")
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", min=60, help="Columns to draw in.  [default: the terminal's, 160 in a pipe]"
        ),
    ] = None,
    otlp: Annotated[
        Path | None,
        typer.Option(
            "--otlp",
            metavar="FILE",
            help="Write the trace as OTLP there and draw nothing: JSON that a collector's file "
            "receiver reads (.json, .jsonl), or protobuf (.pb, .binpb).",
        ),
    ] = None,
) -> None:
    """Print the waterfall of a replacement's trace, or of a scrub's by its trace id."""
    write = _writer(otlp) if otlp is not None else None
    response = await get_trace(session, name or await _newest(session))
    if write is not None:
        assert otlp is not None
        count = write(otlp, response.spans)
        told = {"trace_id": response.trace_id, "file": str(otlp), "spans": count}
        session.show(told, f"{otlp}: {count} spans of trace {response.trace_id}")
        return
    data = plain(response)
    data["services"] = services(response.spans)
    picture = waterfall(
        response.trace_id,
        list(response.spans),
        fold=not every,
        events=events,
        ascii_only=ascii_only,
    )
    if width is not None:
        session.out.width = width
    session.show(data, picture)


Writer = Callable[[Path, Sequence[Span]], int]


def _writer(path: Path) -> Writer:
    """What writes a file with that ending; CommandError for one that says no format."""
    if path.suffix in (".json", ".jsonl"):
        return lambda file, spans: _write(file, spans, lambda data: to_json_line(data).encode())
    if path.suffix in (".pb", ".binpb"):
        return lambda file, spans: _write(file, spans, lambda data: data.SerializeToString())
    raise CommandError(
        f"--otlp {path}: the ending says no format",
        "name a file that ends in .json or .jsonl (OTLP JSON), or in .pb or .binpb (protobuf)",
    )


def _write(path: Path, spans: Sequence[Span], encode: Callable[[TracesData], bytes]) -> int:
    """Writes the ended spans; how many."""
    data = traces_data(spans)
    try:
        path.write_bytes(encode(data))
    except OSError as error:
        raise CommandError(
            f"--otlp {path}: it cannot be written: {error.strerror}", "name another file"
        ) from error
    return sum(bool(span.end_time_unix_nano) for span in spans)


async def _newest(session: Session) -> str:
    found = await list_replacements(session)
    if not found:
        raise CommandError("there is no replacement to show", "`stairwell vcr` starts one")
    return max(found, key=lambda one: one.create_time.ToNanoseconds()).id
