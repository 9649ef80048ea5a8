"""Metrics of one program: an OpenTelemetry meter, read by Prometheus, sent to OTLP, or neither.

Prometheus reads from a port of its own that is off unless asked for; OTLP goes by the environment
(`exporting`). Invariants: no global provider or registry (two daemons in one process keep apart);
what an instrument costs does not depend on who reads it; every metric is declared as a `Metric`
first, so that a document of them can be made and checked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource

from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.runtime.addresses import Address, parse_address
from stairlib.telemetry import exporting
from stairlib.telemetry.logs import get_logger

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_log = get_logger(__name__)

# As with spans: a collector that is away must not hold up a stop.
_FLUSH_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is declared. `kind` is "counter", "gauge" or "histogram", `unit` in UCUM."""

    name: str
    kind: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()


def exposed_name(metric: Metric) -> str:
    """The name of a metric's first sample as Prometheus reads it, made by the exporter itself."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    reader = PrometheusMetricReader(disable_target_info=True, registry=registry)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("stairwell")
    if metric.kind == "counter":
        meter.create_counter(metric.name, unit=metric.unit).add(1)
    elif metric.kind == "histogram":
        meter.create_histogram(metric.name, unit=metric.unit).record(1)
    else:
        meter.create_gauge(metric.name, unit=metric.unit).set(1)
    (family,) = registry.collect()
    name = f"{family.name}_total" if metric.kind == "counter" else family.name
    provider.shutdown()
    return name


class Metrics:
    """The meter of one program and its readers."""

    def __init__(self, service: str, instance: str, readers: Sequence[MetricReader] = ()) -> None:
        self._provider = MeterProvider(
            readers,
            resource=Resource.create(
                {
                    "service.name": service,
                    "service.instance.id": instance,
                    "service.version": metadata.version("stairwell"),
                }
            ),
            shutdown_on_exit=False,
        )
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.meter: Meter = self._provider.get_meter("stairwell")

    @classmethod
    def configure(cls, service: str, instance: str, prometheus: str = "") -> Metrics:
        """The metrics of `service` at `instance`; with `prometheus` ("host:port") read from there.

        UnavailableError (PORT_IN_USE, CANNOT_LISTEN) when it cannot listen there.
        """
        readers = []
        sent = exporting.metric_reader()
        if sent is not None:
            readers.append(sent)
        if not prometheus:
            return cls(service, instance, readers)
        # Late imports: most runs have nobody who reads.
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server

        address = parse_address(prometheus)
        if address.is_unix:
            raise InvalidRequestError(f"metrics are served on host:port, not on {address}")
        registry = CollectorRegistry()
        readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
        metrics = cls(service, instance, readers)
        try:
            metrics._server, metrics._thread = start_http_server(
                address.port, address.host, registry=registry
            )
        except OSError as error:
            metrics.shutdown()
            raise _not_listening(address, error) from error
        _log.info("metrics served", address=metrics.address)
        return metrics

    def observe(
        self, metric: Metric, read: Callable[[CallbackOptions], Iterable[Observation]]
    ) -> None:
        """Has `read` called, on whatever thread, when somebody asks for a gauge or a counter."""
        create = (
            self.meter.create_observable_counter
            if metric.kind == "counter"
            else self.meter.create_observable_gauge
        )
        create(metric.name, [read], unit=metric.unit, description=metric.description)

    def histogram(self, metric: Metric, buckets: Sequence[float]) -> Histogram:
        """The instrument of a declared histogram, with these upper bounds."""
        return self.meter.create_histogram(
            metric.name,
            unit=metric.unit,
            description=metric.description,
            explicit_bucket_boundaries_advisory=list(buckets),
        )

    @property
    def address(self) -> str:
        """Where Prometheus reads, as "host:port"; empty when nowhere."""
        if self._server is None:
            return ""
        host, port = self._server.server_address[:2]
        return str(Address(host=str(host), port=int(port)))

    def shutdown(self) -> None:
        """Stops listening, and sends what is left if anything is sent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            assert self._thread is not None
            self._thread.join(_FLUSH_SECONDS)
            self._server = None
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def _not_listening(address: Address, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"metrics cannot be served at {address}: {error.strerror or error}; name another address"
        " with --metrics",
        reason="CANNOT_LISTEN",
        address=str(address),
    )
