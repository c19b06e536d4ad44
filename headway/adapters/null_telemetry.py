"""Telemetry when none is configured: passes trace contexts on and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headway.ports.engine import EngineLoad, KvTransferRecord
from headway.ports.telemetry import AttributeValue, RequestOutcome, SpanKind


@dataclass(frozen=True, slots=True)
class NullSpan:
    """Hands its parent's context on, so that a caller's trace is not broken in the middle."""

    traceparent: str

    def set(self, attributes: Mapping[str, AttributeValue]) -> None: ...

    def end(self, error: str = "") -> None: ...


class NullTelemetry:
    """Implements `ports.Telemetry`."""

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> NullSpan:
        return NullSpan(parent)

    def add_span(
        self,
        name: str,
        *,
        parent: str,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None: ...

    def admission_decided(self, tier: str, decision: str) -> None: ...

    def request_finished(self, outcome: RequestOutcome) -> None: ...

    def kv_transferred(self, record: KvTransferRecord) -> None: ...

    def worker_load(self, worker_id: str, load: EngineLoad) -> None: ...

    def shutdown(self) -> None: ...
