"""The spans a program remembers: those that have ended, by trace, and those under way.

Ended ones are kept as bytes: as objects, twenty thousand of them made each full search for garbage
stop the program for some hundred milliseconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

# About 10 MiB of bytes; a replacement of a hundred extents leaves some hundred spans.
MAX_SPANS: Final = 20_000
# Calls and steps under way at one time; what is above it is known only once it has ended.
MAX_OPEN: Final = 2_000


class SpanStore(SpanProcessor):
    """At `limit` ended spans the trace that began first is dropped whole.

    A single trace of `limit` spans keeps its first ones. Safe to use from any thread.
    """

    def __init__(
        self,
        encode: Callable[[ReadableSpan], bytes],
        limit: int = MAX_SPANS,
        open_limit: int = MAX_OPEN,
    ) -> None:
        self._encode = encode
        self._limit = limit
        self._open_limit = open_limit
        self._count = 0
        self._traces: OrderedDict[int, list[bytes]] = OrderedDict()
        self._open: dict[int, dict[int, ReadableSpan]] = {}
        self._open_count = 0
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remembers that it is under way."""
        del parent_context
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            if self._open_count < self._open_limit:
                self._open.setdefault(context.trace_id, {})[context.span_id] = span
                self._open_count += 1

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
                oldest, dropped = next(iter(self._traces.items()))
                if oldest == context.trace_id:
                    return
                del self._traces[oldest]
                self._count -= len(dropped)
            spans.append(body)
            self._count += 1

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
