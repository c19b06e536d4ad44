"""Traces and metrics through the OpenTelemetry SDK."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind as OtelSpanKind
from opentelemetry.trace import get_tracer_provider
from prometheus_client import CollectorRegistry

from headway.adapters.null_telemetry import NullSpan
from headway.adapters.otel_metrics import Instruments, PrometheusEndpoint
from headway.adapters.otel_tracing import OsRandomIds, OtelSpan, SpanQueue, context_of
from headway.config import TierConfig
from headway.ports.clock import Clock
from headway.ports.engine import EngineLoad, KvTransferRecord
from headway.ports.telemetry import AttributeValue, RequestOutcome, Span, SpanKind

logger = logging.getLogger(__name__)

# Together below the two seconds that the port promises.
_FLUSH_S = 1.4
_ABORT_S = 0.3


class OtelTelemetry:
    """Implements `ports.Telemetry`.

    Uses providers of its own, because vLLM sets OpenTelemetry's global one.
    """

    def __init__(
        self,
        *,
        service_name: str,
        tiers: Mapping[str, TierConfig],
        exports_otlp: bool,
        otlp_endpoint: str | None,
        prometheus_port: int | None,
        clock: Clock,
    ) -> None:
        """Start exporting.

        Args:
            service_name: `service.name` of everything sent.
            tiers: the only names the label `tier` takes, and where histograms get bounds.
            exports_otlp: send spans and metrics by OTLP over gRPC.
            otlp_endpoint: where; None takes it from OpenTelemetry's environment variables.
            prometheus_port: serve /metrics on this port of loopback; 0 is a free one, None
                serves none.
            clock: tells which worker loads are stale.

        Raises:
            Unavailable: the Prometheus port cannot be bound.
        """
        resource = Resource.create(
            {
                "service.name": service_name,
                "service.version": version("headway"),
                "service.instance.id": str(uuid4()),
            }
        )
        readers: list[MetricReader] = []
        self._endpoint: PrometheusEndpoint | None = None
        if prometheus_port is not None:
            registry = CollectorRegistry()
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
            self._endpoint = PrometheusEndpoint(registry, prometheus_port)
            logger.info("metrics at %s", self._endpoint.url)
        if exports_otlp:
            readers.append(
                PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=otlp_endpoint))
            )
        self._meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._instruments = Instruments(self._meters.get_meter("headway"), tiers, clock)

        self._tracers = TracerProvider(
            resource=resource, shutdown_on_exit=False, id_generator=OsRandomIds()
        )
        self._tracer = self._tracers.get_tracer("headway")
        self._span_queue: SpanQueue | None = None
        if exports_otlp:
            self._span_queue = SpanQueue(
                OTLPSpanExporter(endpoint=otlp_endpoint), self._spans_dropped
            )
            self._tracers.add_span_processor(self._span_queue)

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus reads; None when no port was configured."""
        return self._endpoint.url if self._endpoint else None

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        if self._span_queue is None:
            # A span that is never exported must not become anybody's parent.
            return NullSpan(parent)
        return OtelSpan(
            self._tracer.start_span(
                name, context_of(parent), OtelSpanKind[kind], attributes=attributes
            )
        )

    def add_span(
        self,
        name: str,
        *,
        parent: str,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        span = self._tracer.start_span(
            name, context_of(parent), attributes=attributes, start_time=start_unix_ns
        )
        span.end(end_unix_ns)

    def admission_decided(self, tier: str, decision: str) -> None:
        self._instruments.admission_decisions.add(
            1, {"tier": self._instruments.tier(tier), "decision": decision}
        )

    def request_finished(self, outcome: RequestOutcome) -> None:
        tier = {"tier": self._instruments.tier(outcome.tier)}
        self._instruments.requests.add(
            1, {**tier, "state": outcome.state, "attained": outcome.attained}
        )
        self._instruments.request_duration.record(outcome.e2e_latency_s, tier)
        if outcome.ttft_s is not None:
            self._instruments.time_to_first_token.record(outcome.ttft_s, tier)
        if outcome.tpot_s is not None:
            self._instruments.time_per_output_token.record(outcome.tpot_s, tier)

    def kv_transferred(self, record: KvTransferRecord) -> None:
        self._instruments.kv_transfer_duration.record(record.duration_s)
        self._instruments.kv_transfer_bytes.add(record.num_bytes)

    def worker_load(self, worker_id: str, load: EngineLoad) -> None:
        self._instruments.worker_load(worker_id, load)

    def _spans_dropped(self, num_spans: int, reason: str) -> None:
        self._instruments.spans_dropped.add(num_spans, {"reason": reason})

    def shutdown(self) -> None:
        """Export what is left; within two seconds, also when the collector does not answer.

        Ends OpenTelemetry's global tracer provider too.
        """
        steps: list[Callable[[], None]] = [
            self._tracers.shutdown,
            lambda: self._meters.shutdown(timeout_millis=_FLUSH_S * 1000),
        ]
        shared = get_tracer_provider()
        if isinstance(shared, TracerProvider):
            # vLLM's, which by itself would hold up the process's exit for half a minute.
            steps.append(shared.shutdown)
        if self._endpoint is not None:
            steps.append(self._endpoint.close)
        # Each waits for the network, and the SDK gives no common bound: side by side, then.
        threads = [
            threading.Thread(target=_run_logged, args=(step,), daemon=True) for step in steps
        ]
        for thread in threads:
            thread.start()
        flushed_by_s = time.monotonic() + _FLUSH_S
        _join_until(threads, flushed_by_s)
        if self._span_queue is not None:
            self._span_queue.abort()
        _join_until(threads, flushed_by_s + _ABORT_S)


def _run_logged(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:
        # The SDK raises bare Exceptions, and a process that ends cannot act on them.
        logger.warning("telemetry did not shut down cleanly", exc_info=True)


def _join_until(threads: list[threading.Thread], until_s: float) -> None:
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
