"""The spans a program remembers: those that have ended, by trace, and those under way.

Ended ones are kept as bytes: as objects, twenty thousand of them made each full search for garbage
stop the program for some hundred milliseconds. Those under way are whoever's began them; here is
only where to find them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from stairlib.telemetry.logs import get_logger

# About 10 MiB of bytes; a replacement of a hundred extents leaves some hundred spans.
MAX_SPANS: Final = 20_000
# Under way in one trace: a copy of extents has a handful, a call that begins many things one each.
MAX_OPEN_OF_TRACE: Final = 1_000
# And in all: a thousand machines that are watched, a replacement of each, who watches it, and as
# many calls as are served at once are less than half of it. Only spans that nobody ends get there.
MAX_OPEN: Final = 20_000
_TELL_SECONDS: Final = 60.0

_log = get_logger(__name__)


class SpanStore(SpanProcessor):
    """At `limit` ended spans the trace that began first is dropped whole; one of which something is
    under way, as of a replacement that takes days, only when there is no other.

    A single trace of `limit` spans keeps its first ones. Of what is under way beyond `open_limit`,
    or `open_of_trace` in one trace, nothing is known until it has ended; that is logged, at most
    once a minute. Safe to use from any thread.
    """

    def __init__(
        self,
        encode: Callable[[ReadableSpan], bytes],
        limit: int = MAX_SPANS,
        open_limit: int = MAX_OPEN,
        open_of_trace: int = MAX_OPEN_OF_TRACE,
    ) -> None:
        self._encode = encode
        self._limit = limit
        self._open_limit = open_limit
        self._open_of_trace = open_of_trace
        self._count = 0
        self._traces: OrderedDict[int, list[bytes]] = OrderedDict()
        self._open: dict[int, dict[int, ReadableSpan]] = {}
        self._open_count = 0
        self._told_at = -_TELL_SECONDS
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remembers that it is under way."""
        del parent_context
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            group = self._open.get(context.trace_id, {})
            if self._open_count < self._open_limit and len(group) < self._open_of_trace:
                self._open.setdefault(context.trace_id, group)[context.span_id] = span
                self._open_count += 1
                return
            now = time.monotonic()
            if now - self._told_at < _TELL_SECONDS:
                return
            self._told_at = now
        _log.warning(
            "spans under way are left out of their traces until they end",
            under_way=self._open_count,
            trace=format(context.trace_id, "032x"),
            of_trace=len(group),
            span=span.name,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps one finished span."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        body = self._encode(span)
        with self._lock:
            self._forget_open(context.trace_id, context.span_id)
            spans = self._traces.setdefault(context.trace_id, [])
            while self._count >= self._limit:
                dropped = self._least_wanted(context.trace_id)
                if dropped is None:
                    return
                self._count -= len(self._traces.pop(dropped))
            spans.append(body)
            self._count += 1

    def _least_wanted(self, kept: int) -> int | None:
        """The trace that goes: the first of which nothing is under way, else the first; None when
        there is none but `kept`. Those passed over are looked at again last."""
        for _ in range(len(self._traces)):
            oldest = next(iter(self._traces))
            if oldest != kept and oldest not in self._open:
                return oldest
            self._traces.move_to_end(oldest)
        return next((each for each in self._traces if each != kept), None)

    def _forget_open(self, trace_id: int, span_id: int) -> None:
        group = self._open.get(trace_id)
        if group is not None and group.pop(span_id, None) is not None:
            self._open_count -= 1
            if not group:
                del self._open[trace_id]

    def spans(self, trace_id: int) -> list[bytes]:
        """The kept spans of a trace, encoded, in the order they ended."""
        with self._lock:
            return list(self._traces.get(trace_id, ()))

    def under_way(self, trace_id: int) -> list[ReadableSpan]:
        """Those of a trace that have not ended, in the order they began."""
        with self._lock:
            return list(self._open.get(trace_id, {}).values())
