"""The spans of a region's repairs, in the trace of whoever asked for the new member.

A replacement that the control plane follows gives the trace: by the call that asks for it or, after
a restart of this process, by the call that follows it. A repair that had begun by then goes on
under a span of that trace, linked to the one it had; so do the copies that are asked for from then
on. Nobody asked for the repair of a member that was merely away: it is a trace of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode

from stairlib.telemetry.tracing import Tracing, traceparent
from vmmd.upstairs.core import events

_Attributes: TypeAlias = dict[str, str | int]


class RepairSpans:
    """Of one region. `attributes` are on each span."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracer = tracing.tracer
        self.attributes: _Attributes = {}
        self._contexts: dict[int, Context] = {}
        self._replacements: dict[int, str] = {}
        self._open: dict[int, tuple[Span, _Attributes]] = {}

    @contextmanager
    def replacing(self, slot: int, replacement_id: str, old: str, new: str) -> Iterator[Span]:
        """The span of a request for a replacement; repairs of the slot follow under it."""
        with self._tracer.start_as_current_span(
            "upstairs.replace",
            attributes={
                **self.attributes,
                **_named(replacement_id),
                "slot": slot,
                "old": old,
                "new": new,
            },
        ) as span:
            if slot >= 0:
                self._contexts[slot] = trace.set_span_in_context(span)
                self._replacements[slot] = replacement_id
            yield span

    def follow(self, slot: int, replacement_id: str) -> str | None:
        """The repairs of the slot belong to the trace of the current span from now on.

        The W3C context for the repair that runs already, if it was told elsewhere.
        """
        current = trace.get_current_span()
        known = self._contexts.get(slot)
        trace_id = current.get_span_context().trace_id
        if known is not None and _trace_of(known) == trace_id:
            return None
        self._contexts[slot] = trace.set_span_in_context(current)
        self._replacements[slot] = replacement_id
        running = self._open.pop(slot, None)
        if running is None:
            return None
        span, attributes = running
        link = span.get_span_context()
        span.add_event("goes on in the trace of the replacement", _named(replacement_id))
        span.end()
        return self._begin(slot, attributes, [Link(link)])

    def started(self, effect: events.RepairStarted) -> str | None:
        """A repair has begun; the W3C context for its copies."""
        attributes: _Attributes = {"address": effect.address, "attempt": effect.attempt}
        return self._begin(effect.slot, attributes, [])

    def ended(self, effect: events.RepairEnded) -> None:
        """A repair has ended, well or not."""
        span, _ = self._open.pop(effect.slot, (None, None))
        if span is None:
            return
        span.set_attribute("extents", effect.extents)
        span.set_attribute("bytes_copied", effect.bytes_copied)
        if effect.error:
            span.set_status(Status(StatusCode.ERROR, effect.error))
        else:
            self.settled(effect.slot)
        span.end()

    def settled(self, slot: int) -> None:
        """The member of the slot is whole: a repair that comes later is another story."""
        self._contexts.pop(slot, None)
        self._replacements.pop(slot, None)

    def tell(self, slot: int, name: str, **attributes: str | int) -> None:
        """Something that happened to the repair of a slot, if one runs."""
        if slot in self._open:
            self._open[slot][0].add_event(name, attributes)

    def close(self) -> None:
        """The region is let go: what runs is cut."""
        for span, _ in self._open.values():
            span.set_attribute("cut", "true")
            span.end()
        self._open = {}

    def _begin(self, slot: int, attributes: _Attributes, links: list[Link]) -> str | None:
        span = self._tracer.start_span(
            "upstairs.live_repair",
            context=self._contexts.get(slot),
            links=links,
            attributes={
                **self.attributes,
                **_named(self._replacements.get(slot, "")),
                "slot": slot,
                **attributes,
            },
        )
        self._open[slot] = (span, attributes)
        with trace.use_span(span, end_on_exit=False):
            return traceparent()


def _named(replacement_id: str) -> dict[str, str]:
    return {"replacement.id": replacement_id} if replacement_id else {}


def _trace_of(context: Context) -> int:
    return trace.get_current_span(context).get_span_context().trace_id
