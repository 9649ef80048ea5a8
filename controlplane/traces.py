"""The traces of replacements: from the memories of the daemons into the store.

A replacement's spans are kept as they become known: the control plane's own after each step (a
restart would lose them), everybody's when it ends. Reading one asks the daemons once more, since
some spans end later; who does not answer costs his own spans only.
"""

from __future__ import annotations

from controlplane.peers.vmmd import GLANCE_SECONDS, Vmmd
from controlplane.store.base import StoredSpan, TraceStore
from stairlib.telemetry.tracing import Tracing
from stairwell.telemetry.v1 import trace_service_pb2 as pb

# Kept and shown of one trace: about 2 MiB, below the limit of a message.
SPANS_MAX = 5_000


class TraceKeeper:
    """Collects and keeps spans."""

    def __init__(self, store: TraceStore, vmmd: Vmmd, tracing: Tracing) -> None:
        self._store = store
        self._vmmd = vmmd
        self._tracing = tracing

    async def keep_own(self, trace_id: str) -> None:
        """Stores this process's finished spans of the trace."""
        await self._save(self._tracing.spans(trace_id))

    async def keep_all(self, trace_id: str) -> None:
        """Stores what all daemons have of the trace now."""
        await self._save(await self._collected(trace_id))

    async def read(self, trace_id: str) -> list[pb.Span]:
        """Every known span, in the order they began; what was new is kept."""
        collected = await self._collected(trace_id)
        await self._save(collected)
        found = {span.span_id: span for span in collected}
        for stored in await self._store.spans(trace_id):
            found.setdefault(stored.span_id, pb.Span.FromString(stored.body))
        return sorted(found.values(), key=lambda span: span.start_time_unix_nano)[:SPANS_MAX]

    async def _collected(self, trace_id: str) -> list[pb.Span]:
        theirs = await self._vmmd.collect_trace(trace_id, GLANCE_SECONDS)
        return [*self._tracing.spans(trace_id), *theirs]

    async def _save(self, spans: list[pb.Span]) -> None:
        await self._store.save_spans(
            StoredSpan(span.trace_id, span.span_id, span.SerializeToString())
            for span in spans[:SPANS_MAX]
        )
