"""Where spans and metrics are sent: to an OTLP collector, as the usual `OTEL_*` variables say.

Nothing is sent unless an endpoint is named. A collector that is away costs a bounded queue and one
thread; spans beyond the queue are dropped, and the notes about it are spared by the logs.

Read here: `OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc`, which is the
default, or `http/protobuf`) with their variants for traces and metrics, `OTEL_TRACES_EXPORTER` and
`OTEL_METRICS_EXPORTER` (`otlp` or `none`), `OTEL_SDK_DISABLED`; docs/tracing.md has the table.
Everything else (headers, certificates, compression, timeouts, sizes of batches and queues, resource
attributes) is read by the library itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from stairlib.model.errors import InvalidRequestError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import SpanProcessor

_GRPC: Final = "grpc"
_HTTP: Final = "http/protobuf"


def span_processor() -> SpanProcessor | None:
    """What sends ended spans in batches, or None when nothing is to be sent."""
    protocol = _protocol("TRACES")
    if protocol is None:
        return None
    # Late imports: they take a while and most runs have no collector.
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if protocol == _HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return BatchSpanProcessor(OTLPSpanExporter())
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
        OTLPSpanExporter as OTLPSpanExporterGrpc,
    )

    return BatchSpanProcessor(OTLPSpanExporterGrpc())


def metric_reader() -> MetricReader | None:
    """What sends the metrics every minute (`OTEL_METRIC_EXPORT_INTERVAL`), or None."""
    protocol = _protocol("METRICS")
    if protocol is None:
        return None
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if protocol == _HTTP:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return PeriodicExportingMetricReader(OTLPMetricExporter())
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
        OTLPMetricExporter as OTLPMetricExporterGrpc,
    )

    return PeriodicExportingMetricReader(OTLPMetricExporterGrpc())


def _protocol(signal: str) -> str | None:
    """How a signal ("TRACES" or "METRICS") is sent, or None when it is not.

    InvalidRequestError for an exporter or protocol that we have not.
    """
    if _value("OTEL_SDK_DISABLED").lower() == "true":
        return None
    exporter = _value(f"OTEL_{signal}_EXPORTER")
    named = _value(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or _value("OTEL_EXPORTER_OTLP_ENDPOINT")
    if exporter == "none" or not (exporter or named):
        return None
    if exporter not in ("", "otlp"):
        raise InvalidRequestError(
            f"OTEL_{signal}_EXPORTER={exporter} is not known here: use otlp or none",
            reason="UNKNOWN_EXPORTER",
        )
    of_signal = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    protocol = _value(of_signal) or _value("OTEL_EXPORTER_OTLP_PROTOCOL") or _GRPC
    if protocol not in (_GRPC, _HTTP):
        name = of_signal if _value(of_signal) else "OTEL_EXPORTER_OTLP_PROTOCOL"
        raise InvalidRequestError(
            f"{name}={protocol} is not spoken here: use {_GRPC} or {_HTTP}",
            reason="UNKNOWN_EXPORTER",
        )
    return protocol


def _value(name: str) -> str:
    """A variable; the specification has an empty one mean the same as none."""
    return os.environ.get(name, "").strip()
