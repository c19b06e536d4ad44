"""Chooses the telemetry a process uses.

OpenTelemetry is imported only when something is to be exported: most processes of a laptop's
stack start without it.
"""

from __future__ import annotations

import os

from headway.adapters.null_telemetry import NullTelemetry
from headway.adapters.system_clock import SystemClock
from headway.config import Config, TelemetryConfig
from headway.core.cluster import WorkerRole
from headway.errors import ConfigError
from headway.ports.telemetry import Telemetry

CONTROLLER = "headway-controller"
CLIENT = "headway-client"


def worker_name(role: WorkerRole) -> str:
    """What a worker calls itself in traces and metrics."""
    return f"headway-{role.value.lower()}"


def build_telemetry(config: Config | TelemetryConfig, service_name: str) -> Telemetry:
    """Telemetry as configured, or by OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT.

    All processes read one config, so only the one named CONTROLLER serves Prometheus.

    Raises:
        ConfigError: the endpoint is not a URL.
        Unavailable: the Prometheus port cannot be bound.
    """
    match config:
        case Config():
            telemetry, tiers = config.telemetry, config.controller.tiers
        case TelemetryConfig():
            telemetry, tiers = config, {}
    endpoint = telemetry.otlp_endpoint
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"telemetry.otlp_endpoint: {endpoint!r} needs http:// or https:// before the host"
        )
    exports_otlp = bool(endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    prometheus_port = telemetry.prometheus_port if service_name == CONTROLLER else None
    if not exports_otlp and prometheus_port is None:
        return NullTelemetry()
    from headway.adapters.otel_telemetry import OtelTelemetry  # noqa: PLC0415 - see above

    return OtelTelemetry(
        service_name=service_name,
        tiers=tiers,
        exports_otlp=exports_otlp,
        otlp_endpoint=endpoint or None,
        prometheus_port=prometheus_port,
        clock=SystemClock(),
    )
