"""Where traces and metrics go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from headway.ports.engine import EngineLoad, KvTransferRecord

SpanKind = Literal["INTERNAL", "SERVER", "CLIENT"]
AttributeValue = str | int | float | bool


class Span(Protocol):
    """One open span."""

    @property
    def traceparent(self) -> str:
        """W3C context to hand to children; empty when tracing is off and no parent had one."""
        ...

    def set(self, attributes: Mapping[str, AttributeValue]) -> None: ...

    def end(self, error: str = "") -> None:
        """Close it; `error` is a constant such as a gRPC status name, empty when all went well."""
        ...


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """One finished request, for metrics. Nothing of its content."""

    tier: str
    state: str
    guaranteed: bool
    attained: bool
    num_prompt_tokens: int
    num_output_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    e2e_latency_s: float


class Telemetry(Protocol):
    """Traces and metrics. Never blocks, never raises; does nothing when not configured."""

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        """Open a span under the W3C context `parent`; an empty parent starts a new trace."""
        ...

    def add_span(
        self,
        name: str,
        *,
        parent: str,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """Record a span that is over already."""
        ...

    def admission_decided(self, tier: str, decision: str) -> None:
        """Count one decision: GUARANTEED, BEST_EFFORT or the reason of a refusal."""
        ...

    def request_finished(self, outcome: RequestOutcome) -> None: ...

    def kv_transferred(self, record: KvTransferRecord) -> None: ...

    def worker_load(self, worker_id: str, load: EngineLoad) -> None:
        """Keep the newest load of a worker for its gauges."""
        ...

    def shutdown(self) -> None:
        """Export what is left, within two seconds."""
        ...
