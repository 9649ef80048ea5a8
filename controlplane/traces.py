"""The traces of workflows: from the memories of the daemons into the store.

The control plane's own spans are kept before and after each step, those under way too (a restart
would lose them); everybody's now and then while a workflow runs, and when it ends. Reading one asks
the daemons once more, since some spans end later; who does not answer costs his own spans only.
Invariant: a span that was known under way and whose end nobody can tell any more is shown as cut.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from uuid import UUID

from controlplane.peers.vmmd import GLANCE_SECONDS, Vmmd
from controlplane.store.base import StoredSpan, TraceStore
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.trace_service import bounded
from stairlib.telemetry.tracing import Tracing
from stairwell.telemetry.v1 import trace_service_pb2 as pb

_log = get_logger(__name__)

# Kept and shown of one trace, below the limit of a message: about 5000 spans.
TRACE_BYTES_MAX = 2 << 20
# Between two collections while a workflow runs: they are for daemons that die before its end.
COLLECT_SECONDS = 5.0
# Of them, those that run at once.
COLLECTIONS_MAX = 4
# Workflows whose kept spans are remembered, so that they are not stored over and over.
REMEMBERED_MAX = 2_000


def root_id(trace_id: str) -> str:
    """The id of the span over a whole workflow, from that of its trace."""
    return trace_id[16:]


class TraceKeeper:
    """Collects and keeps spans."""

    def __init__(
        self,
        store: TraceStore,
        vmmd: Vmmd,
        tracing: Tracing,
        *,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shared` says that other control planes may drive what is in the store."""
        self._store = store
        self._vmmd = vmmd
        self._tracing = tracing
        self._shared = shared
        self._clock = clock
        # Ids of the ended spans that are stored, by trace.
        self._kept: OrderedDict[str, set[str]] = OrderedDict()
        self._collecting: dict[str, asyncio.Task[None]] = {}
        self._collected_at: dict[str, float] = {}
        self._collections = asyncio.Semaphore(COLLECTIONS_MAX)

    async def close(self) -> None:
        """Ends the collections under way."""
        tasks = list(self._collecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def keep(self, spans: Iterable[pb.Span]) -> None:
        """Stores spans, those under way in the place of what was known of them before."""
        fresh = [span for span in spans if span.span_id not in self._kept.get(span.trace_id, ())]
        if not fresh:
            return
        await self._store.save_spans(
            StoredSpan(
                span.trace_id,
                span.span_id,
                span.SerializeToString(),
                ended=bool(span.end_time_unix_nano),
            )
            for span in fresh
        )
        for span in fresh:
            if span.end_time_unix_nano:
                self._kept.setdefault(span.trace_id, set()).add(span.span_id)
                self._kept.move_to_end(span.trace_id)
        while len(self._kept) > REMEMBERED_MAX:
            self._kept.popitem(last=False)

    async def keep_own(self, trace_id: str) -> None:
        """Stores this process's spans of the trace."""
        await self.keep(self._tracing.spans(trace_id, under_way=True))

    async def keep_all(self, trace_id: str, machine_id: UUID | None = None) -> None:
        """Stores what all daemons (those behind one machine) have of the trace now."""
        await self.keep(bounded(await self._collected(trace_id, machine_id), TRACE_BYTES_MAX))

    def keep_soon(self, trace_id: str, machine_id: UUID) -> None:
        """The same beside what runs; at most every few seconds, and never twice at once."""
        now = self._clock()
        if trace_id in self._collecting:
            return
        if now - self._collected_at.get(trace_id, now - COLLECT_SECONDS) < COLLECT_SECONDS:
            return
        self._collected_at[trace_id] = now
        task = asyncio.create_task(self._collect(trace_id, machine_id), name=f"trace {trace_id}")
        self._collecting[trace_id] = task
        task.add_done_callback(lambda _task: self._collecting.pop(trace_id, None))

    def forget(self, trace_id: str) -> None:
        """The workflow has ended: what was remembered to spare the store is let go."""
        self._kept.pop(trace_id, None)
        self._collected_at.pop(trace_id, None)

    async def stored(self, trace_id: str) -> list[pb.Span]:
        """The spans that are stored, in the order they began."""
        found = [pb.Span.FromString(each.body) for each in await self._store.spans(trace_id)]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    async def read(self, trace_id: str, machine_id: UUID | None = None) -> list[pb.Span]:
        """Every known span, in the order they began; what is new of a workflow's is kept."""
        collected = bounded(await self._collected(trace_id, machine_id), TRACE_BYTES_MAX)
        stored = await self.stored(trace_id)
        if stored:
            await self.keep(collected)
        here = {span.span_id for span in collected}
        old = [span for span in stored if span.span_id not in here]
        for span in old:
            if not span.end_time_unix_nano and not self._driver_s(span, old):
                _cut(span, [*old, *collected])
        return bounded([*collected, *old], TRACE_BYTES_MAX)

    def _driver_s(self, span: pb.Span, stored: list[pb.Span]) -> bool:
        """Whether an open span is the word of whoever drives the workflow, which is no daemon's.

        The root of a workflow that is under way is nobody's. Another control plane that drives one
        stores its spans as they begin; should it die, the one that takes over tells them as cut.
        """
        root = root_id(span.trace_id)
        if span.span_id == root:
            return True
        open_root = any(each.span_id == root and not each.end_time_unix_nano for each in stored)
        return self._shared and open_root and span.service == self._tracing.service

    async def _collect(self, trace_id: str, machine_id: UUID) -> None:
        async with self._collections:
            try:
                await self.keep_all(trace_id, machine_id)
            except Exception:  # noqa: BLE001 - a workflow never fails by its trace
                _log.exception("trace not kept", trace=trace_id)

    async def _collected(self, trace_id: str, machine_id: UUID | None) -> list[pb.Span]:
        theirs = await self._vmmd.collect_trace(trace_id, GLANCE_SECONDS, machine_id)
        return [*self._tracing.spans(trace_id, under_way=True), *theirs]


def _cut(span: pb.Span, others: list[pb.Span]) -> None:
    """Ends a span whose daemon does not know it any more, after all that is known to be in it."""
    inside = [
        max(other.start_time_unix_nano, other.end_time_unix_nano)
        for other in others
        if other.parent_span_id == span.span_id
    ]
    moments = [event.time_unix_nano for event in span.events]
    span.end_time_unix_nano = max([span.start_time_unix_nano + 1, *inside, *moments])
    span.status = "ERROR"
    span.status_message = (
        f"its end is not known: {span.service} {span.instance} has restarted since, or does not"
        " answer"
    )
    span.attributes["cut"] = "true"
