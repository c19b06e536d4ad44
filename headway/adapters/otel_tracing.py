"""Spans and W3C trace contexts on the OpenTelemetry SDK."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headway.ports.telemetry import AttributeValue

# About 4 MB of ended spans at most; a request of the whole path makes a dozen.
MAX_SPANS_QUEUED = 2048

_W3C = TraceContextTextMapPropagator()


def context_of(traceparent: str) -> Context:
    """The context to open a child in; an empty or unreadable parent gives a root.

    Never the ambient context: several requests share one thread.
    """
    return _W3C.extract({"traceparent": traceparent}, Context())


class OtelSpan:
    """Implements `ports.Span`."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier.get("traceparent", "")

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(attributes)

    def end(self, error: str = "") -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        self._span.end()


class OsRandomIds(IdGenerator):
    """Ids from the operating system.

    The SDK's own come from `random`, which engines seed: two workers with one seed would
    then give their spans the same ids.
    """

    def generate_span_id(self) -> int:
        return 1 + secrets.randbelow((1 << 64) - 1)

    def generate_trace_id(self) -> int:
        return 1 + secrets.randbelow((1 << 128) - 1)

    def is_trace_id_random(self) -> bool:
        return True


class SpanQueue(SpanProcessor):
    """Hands ended spans to an exporter on a thread of its own.

    At most MAX_SPANS_QUEUED spans wait or are being exported; later ones are dropped, and
    every span that does not reach the collector is counted, which the SDK's queue does not.

    Args of `on_dropped`: how many, and QUEUE_FULL or EXPORT_FAILED. Called on any thread.
    """

    def __init__(self, exporter: SpanExporter, on_dropped: Callable[[int, str], None]) -> None:
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        self._num_queued = 0
        self._exporter = _ReportingExporter(exporter, self._exported)
        self._batches = BatchSpanProcessor(self._exporter, max_queue_size=MAX_SPANS_QUEUED)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            has_room = self._num_queued < MAX_SPANS_QUEUED
            if has_room:
                self._num_queued += 1
        if has_room:
            self._batches.on_end(span)
        else:
            self._on_dropped(1, "QUEUE_FULL")

    def _exported(self, num_spans: int, succeeded: bool) -> None:
        with self._lock:
            self._num_queued -= num_spans
        if not succeeded:
            self._on_dropped(num_spans, "EXPORT_FAILED")

    def shutdown(self) -> None:
        """Export what is queued. Lasts as long as the collector takes: see `abort`."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """End a running export and fail those to come. From any thread."""
        self._exporter.shutdown()


class _ReportingExporter(SpanExporter):
    """Tells how each export of another exporter went."""

    def __init__(self, exporter: SpanExporter, on_exported: Callable[[int, bool], None]) -> None:
        self._exporter = exporter
        self._on_exported = on_exported
        self._closing = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._on_exported(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        # Taken once and kept: both the queue's end and an abort come here.
        if self._closing.acquire(blocking=False):
            self._exporter.shutdown()
