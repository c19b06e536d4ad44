"""The client's span of one request, shared by both clients."""

from __future__ import annotations

from headway.client.events import Finished
from headway.core.request import RequestState
from headway.ports.telemetry import Span, Telemetry

_SPAN_NAME = "headway.v1.InferenceService/Generate"


def start_request_span(telemetry: Telemetry) -> Span:
    return telemetry.start_span(_SPAN_NAME, parent="", kind="CLIENT")


def trace_metadata(span: Span) -> tuple[tuple[str, str], ...]:
    """The call's metadata: the W3C context, when there is one."""
    return (("traceparent", span.traceparent),) if span.traceparent else ()


def outcome(finished: Finished) -> str:
    """The span's error: empty when the request succeeded."""
    if finished.state is RequestState.SUCCEEDED:
        return ""
    return finished.error_reason or finished.state.value
