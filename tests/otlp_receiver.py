"""An OTLP collector for tests: a real gRPC server that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanPb

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as a collector sees it. Ids in hex; `parent_id` is empty for a root."""

    service: str
    kind: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Attributes
    resource: Attributes
    start_unix_ns: int
    end_unix_ns: int
    error: str

    @property
    def label(self) -> str:
        return f"{self.service} {self.kind} {self.name}"


def outline(spans: Iterable[ReceivedSpan]) -> str:
    """Spans as an indented tree, children under parents, siblings by label.

    A span whose parent was not received is a root marked with "(parent missing)".
    """
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[ReceivedSpan]] = {}
    for span in by_id.values():
        children.setdefault(span.parent_id if span.parent_id in by_id else "", []).append(span)

    def lines(parent_id: str, indent: str) -> list[str]:
        found = []
        for span in sorted(children.get(parent_id, []), key=lambda span: span.label):
            orphan = " (parent missing)" if span.parent_id not in {"", parent_id} else ""
            found += [indent + span.label + orphan, *lines(span.span_id, indent + "  ")]
        return found

    return "\n".join(lines("", ""))


class OtlpReceiver:
    """Listens on a free port of loopback while its block runs.

    Between `hold` and `release` it accepts exports and does not answer them.
    """

    def __init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        self._lock = threading.Lock()
        self._answering = threading.Event()
        self._answering.set()
        self._spans: list[ReceivedSpan] = []
        self._metric_names: set[str] = set()
        # opentelemetry-proto's generated functions have no types.
        trace_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _TraceService(self), self._server
        )
        metrics_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _MetricsService(self), self._server
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        self._server.stop(grace=None).wait()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def spans(self) -> Sequence[ReceivedSpan]:
        with self._lock:
            return tuple(self._spans)

    @property
    def metric_names(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._metric_names)

    def hold(self) -> None:
        self._answering.clear()

    def release(self) -> None:
        self._answering.set()

    def take_spans(self, request: trace_pb.ExportTraceServiceRequest) -> None:
        self._answering.wait()
        with self._lock:
            self._spans += spans_in(request)

    def take_metrics(self, request: metrics_pb.ExportMetricsServiceRequest) -> None:
        self._answering.wait()
        with self._lock:
            self._metric_names |= {
                metric.name
                for group in request.resource_metrics
                for scope in group.scope_metrics
                for metric in scope.metrics
            }


class _TraceService(trace_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(
        self, request: trace_pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_pb.ExportTraceServiceResponse:
        self._receiver.take_spans(request)
        return trace_pb.ExportTraceServiceResponse()


class _MetricsService(metrics_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(
        self, request: metrics_pb.ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> metrics_pb.ExportMetricsServiceResponse:
        self._receiver.take_metrics(request)
        return metrics_pb.ExportMetricsServiceResponse()


def spans_in(request: trace_pb.ExportTraceServiceRequest) -> list[ReceivedSpan]:
    """The spans of one export, each with the resource it was sent under."""
    return [
        _span(span, _attributes(group.resource.attributes))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    found: dict[str, Any] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind) if kind else ""
    return found


def _span(span: SpanPb, resource: Attributes) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource["service.name"]),
        kind=SpanPb.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        resource=resource,
        start_unix_ns=span.start_time_unix_nano,
        end_unix_ns=span.end_time_unix_nano,
        error=span.status.message,
    )
