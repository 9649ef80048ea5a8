"""What a workflow leaves behind for eyes: one trace, with a span for each step, attempt and wait.

A replacement (or scrub) has a trace of its own, whose id is its own; the call that asked for it is
another trace, and the two link to each other. The root span begins with the workflow and is
recorded when that has ended, by whichever control plane sees the end. The spans of what is under
way are stored before their effects are sent, so that a control plane that is killed leaves them
behind: the next one tells them as cut, and goes on in the same trace.

What happens inside a step is an event of its span: every tenth of the bytes, a wait that begins or
ends, a limit that changes, a repair that begins anew. Nothing here may fail a workflow, and nothing
is made per block or per look at a repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags

from controlplane.core.replacement import Replacement, State
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from controlplane.traces import root_id
from stairlib.telemetry.tracing import Tracing, context_from, parse_traceparent
from stairwell.telemetry.v1 import trace_service_pb2 as pb

# A milestone is told at each of so many equal parts of the bytes.
MILESTONES = 10
CUT = "cut short: the control plane ended, or lost its lease, before this did"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose trace it is. `attributes` are on each of its spans; `request` is the W3C context of the
    call that asked for it, if there was one; times are seconds since the epoch."""

    word: str
    trace_id: str
    root_id: str
    attributes: Mapping[str, str | int]
    request: str
    created_at: float

    @property
    def context(self) -> Context:
        """What spans begin under."""
        return context_from(f"00-{self.trace_id}-{self.root_id}-01")


@dataclass(frozen=True, slots=True)
class Look:
    """What is told of a workflow at one moment, whatever its kind."""

    state: str
    ended: bool
    failed: bool
    attempt: int
    waits: bool
    blocked_on: str
    last_error: str
    bytes_done: int
    bytes_total: int
    bytes_copied: int
    bytes_per_second_max: int
    updated_at: float


def trace_id_of(workflow: UUID) -> str:
    """The id of the trace of a workflow: its own id."""
    return workflow.hex


def subject_of(record: Replacement) -> Subject:
    """A replacement's. One that was begun in the trace of its call, by an earlier version, stays
    there."""
    attributes: dict[str, str | int] = {
        "replacement.id": str(record.id),
        "volume.id": str(record.volume_id),
        "slot": record.slot,
    }
    known = parse_traceparent(record.traceparent)
    if known is not None and record.trace_id == known[0]:
        return Subject(
            "replacement", known[0], known[1], attributes, record.traceparent, record.created_at
        )
    return Subject(
        "replacement", record.trace_id, root_id(record.trace_id), attributes, record.traceparent,
        record.created_at,
    )  # fmt: skip


def subject_of_scrub(record: Scrub, request: str = "") -> Subject:
    """A scrub's."""
    attributes = {"volume.id": str(record.volume_id), "scrub.path": record.path}
    return Subject(
        "scrub", record.trace_id, root_id(record.trace_id), attributes, request, record.created_at
    )


def look_at(record: Replacement) -> Look:
    """A replacement as it is."""
    return Look(
        state=record.state.value,
        ended=record.state.ended,
        failed=record.state is State.FAILED,
        attempt=record.attempt,
        waits=record.next_attempt_at is not None,
        blocked_on=record.blocked_on,
        last_error=record.last_error,
        bytes_done=record.progress.bytes_done,
        bytes_total=record.progress.bytes_total,
        bytes_copied=record.progress.bytes_copied,
        bytes_per_second_max=record.bytes_per_second_max,
        updated_at=record.updated_at,
    )


def look_at_scrub(record: Scrub) -> Look:
    """A scrub as it is."""
    return Look(
        state=record.state.value,
        ended=record.state.ended,
        failed=record.state is ScrubState.FAILED,
        attempt=record.attempt,
        waits=record.next_attempt_at is not None,
        blocked_on=record.blocked_on,
        last_error=record.last_error,
        bytes_done=record.bytes_done,
        bytes_total=record.bytes_total,
        bytes_copied=record.bytes_done,
        bytes_per_second_max=record.bytes_per_second_max,
        updated_at=record.updated_at,
    )


@dataclass(slots=True)
class _Page:
    """What is open of one workflow: the span of the present step, or that of the present wait."""

    step: Span | None = None
    wait: Span | None = None
    # The W3C context of the call that asked for it, where the record does not keep it.
    request: str = ""
    # Nanoseconds since the epoch, of the first step inside that call; 0 when that is not known.
    began: int = 0
    # What the last wait was for, if that has been told as over.
    freed: str = ""
    # Told on the next span: what happened between two.
    pending: list[tuple[str, dict[str, str | int]]] = field(default_factory=list)


class Chronicle:
    """The spans of the workflows that one control plane drives."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._pages: dict[str, _Page] = {}

    def knows(self, subject: Subject) -> bool:
        """Whether this process has told of the workflow, which is then no other's."""
        return subject.trace_id in self._pages

    def begun(self, subject: Subject) -> pb.Span:
        """A workflow was recorded, within the call that asked for it: the root, to be stored.

        The steps that passed inside that call belong to its trace; the workflow's own has copies of
        them that link to the originals.
        """
        self._page(subject).request = subject.request
        self._link_request(subject)
        steps = self._steps_of_call(subject)
        self._page(subject).began = min((s.start_time_unix_nano for s in steps), default=0)
        for span in steps:
            self._tracing.record(span)
        return self._root(subject)

    def resumed(self, subject: Subject, stored: list[pb.Span], look: Look) -> list[pb.Span]:
        """Another control plane drives on: what an earlier one left open, now ended as cut."""
        cut = []
        for span in stored:
            if span.span_id == subject.root_id:
                page = self._page(subject)
                page.began = span.start_time_unix_nano
                for link in span.links:
                    page.request = f"00-{link.trace_id}-{link.span_id}-01"
            mine = span.service == self._tracing.service and span.span_id != subject.root_id
            if span.end_time_unix_nano or not mine:
                continue
            moments = [event.time_unix_nano for event in span.events]
            last = max([span.start_time_unix_nano + 1, _nanoseconds(look.updated_at), *moments])
            span.end_time_unix_nano = last
            span.status, span.status_message = "ERROR", CUT
            span.attributes["cut"] = "true"
            self._tracing.record(span)
            cut.append(span)
        if cut or any(span.service == self._tracing.service for span in stored):
            event: tuple[str, dict[str, str | int]] = (
                "resumed by a new control plane", {"spans_cut": len(cut)}
            )  # fmt: skip
            self._page(subject).pending.append(event)
        return cut

    @contextmanager
    def step(self, subject: Subject, look: Look) -> Iterator[Span]:
        """The span of one attempt at a step, which is the current one inside the block."""
        page = self._page(subject)
        self._end_wait(page)
        with self._tracing.tracer.start_as_current_span(
            f"{subject.word} {look.state.lower()}",
            context=subject.context,
            attributes={**subject.attributes, "attempt": look.attempt},
            record_exception=False,
        ) as span:
            page.step = span
            if look.attempt and look.last_error:
                reason: dict[str, str | int] = {"attempt": look.attempt, "reason": look.last_error}
                span.add_event("tried again", reason)
            self._tell_pending(page, span)
            try:
                yield span
            except asyncio.CancelledError:
                span.set_attribute("cut", "true")
                span.add_event("the control plane stops, or somebody decided otherwise")
                raise
            finally:
                page.step = None

    def advanced(self, subject: Subject, before: Look, after: Look, event: str) -> bool:
        """A step of the workflow's table was stored. Whether something worth keeping was told."""
        page = self._page(subject)
        if after.waits and not after.ended and page.wait is None and page.step is None:
            page.wait = self._tracing.tracer.start_span(
                f"{subject.word} wait",
                context=subject.context,
                attributes={
                    **subject.attributes,
                    "state": after.state,
                    "reason": after.blocked_on or f"next attempt after: {after.last_error}",
                },
            )
        told = self._changes(before, after, event)
        if page.wait is not None and not after.waits and before.blocked_on:
            # The text stays in the record until the next step has come to something.
            page.freed = before.blocked_on
            told.append(("unblocked", {"blocked_on": before.blocked_on}))
        for name, attributes in told:
            if name == "unblocked" and page.wait is None and page.freed == before.blocked_on:
                page.freed = ""
            else:
                self._tell(page, name, attributes)
        if after.ended or not after.waits:
            self._end_wait(page)
        return bool(told)

    def ended(self, subject: Subject, look: Look, began_at: float | None = None) -> pb.Span:
        """The workflow has ended. The span over all of it, which is recorded.

        One that failed and was tried again had its root ended before: the run since `began_at` is a
        span below that.
        """
        span = self._root(subject)
        self._pages.pop(subject.trace_id, None)
        if began_at is not None:
            span.name = f"{subject.word} tried again"
            span.parent_span_id = subject.root_id
            moment = _nanoseconds(began_at)
            span.span_id = format(_other(int(subject.root_id, 16), moment), "016x")
            span.start_time_unix_nano = moment
            del span.links[:]
        span.end_time_unix_nano = max(_nanoseconds(look.updated_at), span.start_time_unix_nano + 1)
        span.attributes["state"] = look.state
        for name in ("bytes_copied", "bytes_total"):
            span.attributes[name] = str(getattr(look, name))
            span.int_attributes.append(name)
        if look.failed:
            span.status, span.status_message = "ERROR", look.last_error
        self._tracing.record(span)
        return span

    def left(self, subject: Subject) -> None:
        """Another control plane drives on: what waits is told as cut. Should the workflow come back
        here, it is taken up as any other's."""
        page = self._pages.pop(subject.trace_id, None)
        if page is not None:
            self._cut_wait(page, "another control plane goes on with it")

    def close(self) -> None:
        """The control plane stops: what waits is told as cut."""
        for page in self._pages.values():
            self._cut_wait(page, "the control plane stops")
        self._pages.clear()

    # ---- inside

    def _page(self, subject: Subject) -> _Page:
        return self._pages.setdefault(subject.trace_id, _Page())

    def _root(self, subject: Subject) -> pb.Span:
        """The span over the whole workflow, without an end."""
        span = pb.Span(
            trace_id=subject.trace_id,
            span_id=subject.root_id,
            name=subject.word,
            service=self._tracing.service,
            instance=self._tracing.instance,
            start_time_unix_nano=self._page(subject).began or _nanoseconds(subject.created_at),
            status="UNSET",
            kind="INTERNAL",
            attributes={key: str(value) for key, value in subject.attributes.items()},
            int_attributes=[k for k, value in subject.attributes.items() if isinstance(value, int)],
        )
        request = parse_traceparent(subject.request or self._page(subject).request)
        if request is not None and request[0] != subject.trace_id:
            span.links.add(trace_id=request[0], span_id=request[1])
        return span

    def _link_request(self, subject: Subject) -> None:
        """From the call to the workflow it began."""
        current = trace.get_current_span()
        context = SpanContext(
            int(subject.trace_id, 16), int(subject.root_id, 16), False, TraceFlags(1)
        )
        current.add_link(context)
        for key, value in subject.attributes.items():
            current.set_attribute(key, value)

    def _steps_of_call(self, subject: Subject) -> list[pb.Span]:
        request = parse_traceparent(subject.request)
        if request is None:
            return []
        copies = []
        for span in self._tracing.spans(request[0]):
            if span.parent_span_id != request[1] or not span.name.startswith(f"{subject.word} "):
                continue
            copy = pb.Span()
            copy.CopyFrom(span)
            copy.trace_id, copy.parent_span_id = subject.trace_id, subject.root_id
            copy.span_id = format(_other(int(span.span_id, 16), int(subject.root_id, 16)), "016x")
            copy.links.add(trace_id=span.trace_id, span_id=span.span_id)
            copy.attributes.update({k: str(value) for k, value in subject.attributes.items()})
            copies.append(copy)
        return copies

    def _changes(
        self, before: Look, after: Look, event: str
    ) -> list[tuple[str, dict[str, str | int]]]:
        """What is told of a step as events of the span it happened in."""
        told: list[tuple[str, dict[str, str | int]]] = []
        if after.blocked_on != before.blocked_on:
            if after.blocked_on:
                told.append(("blocked", {"blocked_on": after.blocked_on}))
            else:
                told.append(("unblocked", {"blocked_on": before.blocked_on}))
        if after.bytes_per_second_max != before.bytes_per_second_max:
            told.append(("limit changed", {"bytes_per_second_max": after.bytes_per_second_max}))
        if _tenth(after) > _tenth(before):
            told.append((
                "progress",
                {
                    "percent": 100 * _tenth(after) // MILESTONES,
                    "bytes_done": after.bytes_done,
                    "bytes_total": after.bytes_total,
                    "bytes_copied": after.bytes_copied,
                },
            ))  # fmt: skip
        if event in _TOLD_EVENTS:
            told.append((_TOLD_EVENTS[event], {"state": after.state}))
        return told

    def _tell(self, page: _Page, name: str, attributes: dict[str, str | int]) -> None:
        span = page.step or page.wait
        if span is None:
            page.pending.append((name, attributes))
        else:
            span.add_event(name, attributes)

    def _tell_pending(self, page: _Page, span: Span) -> None:
        for name, attributes in page.pending:
            span.add_event(name, attributes)
        page.pending.clear()

    def _cut_wait(self, page: _Page, why: str) -> None:
        if page.wait is not None:
            page.wait.set_attribute("cut", "true")
            page.wait.add_event(why)
        self._end_wait(page)

    def _end_wait(self, page: _Page) -> None:
        if page.wait is not None:
            page.wait.end()
            page.wait = None


# Events of the tables that change the course of a workflow, and what they are called in a trace.
_TOLD_EVENTS = {
    "Retried": "tried again by the user",
    "PauseAsked": "paused by the user",
    "ResumeAsked": "resumed by the user",
    "CancelAsked": "cancelled by the user",
    "Stalled": "repair restarted: it stood still",
    "Unapplied": "repair restarted: the machine has to be told again",
    "MemberLost": "repair restarted: the new member left service",
    "Differed": "repair restarted: the members differ",
    "Kept": "too late to undo",
    "Stopped": "stopped by the user",
    "Started": "started again by the user",
}


def mark(span: Span, event: str, error: str = "") -> None:
    """The span's outcome: an attempt that failed is an error, a wait is not."""
    span.set_attribute("event", event)
    if error:
        span.set_status(Status(StatusCode.ERROR, error))


def _tenth(look: Look) -> int:
    """How many of the parts are done."""
    return MILESTONES * look.bytes_done // look.bytes_total if look.bytes_total else 0


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)


def _other(span_id: int, salt: int) -> int:
    """Another id that is the same each time it is made."""
    mixed = (span_id ^ (salt * 0x9E3779B97F4A7C15)) & 0xFFFF_FFFF_FFFF_FFFF
    return mixed or 1
