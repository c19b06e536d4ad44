"""Names, units and buckets of Headway's metrics, and where Prometheus reads them.

Latencies carry the names of OpenTelemetry's GenAI conventions; what these do not define is
under `headway.`. The conventions live outside the packages we install and still move, so
the names are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from prometheus_client import CollectorRegistry, start_http_server

from headway.config import TierConfig
from headway.errors import Unavailable
from headway.ports.clock import Clock
from headway.ports.engine import EngineLoad

REQUEST_DURATION = "gen_ai.server.request.duration"
TTFT = "gen_ai.server.time_to_first_token"
TPOT = "gen_ai.server.time_per_output_token"
ADMISSION_DECISIONS = "headway.admission.decisions"
REQUESTS = "headway.requests"
KV_TRANSFER_DURATION = "headway.kv.transfer.duration"
KV_TRANSFER_BYTES = "headway.kv.transfer.bytes"
WORKER_RUNNING = "headway.worker.requests.running"
WORKER_WAITING = "headway.worker.requests.waiting"
WORKER_FREE_KV_BLOCKS = "headway.worker.kv_blocks.free"
WORKER_STEP_TIME_RATIO = "headway.worker.step_time_ratio"
SPANS_DROPPED = "headway.telemetry.spans.dropped"

# Stands for every tier the config does not name, so that no caller can add label values.
CUSTOM_TIER = "custom"

# A worker that is gone must not show its last load for ever.
WORKER_LOAD_STALE_AFTER_S = 30.0

# Bounds of vLLM's own histograms, so that both can be drawn on one axis.
# Source: vllm/v1/metrics/buckets.py (0.32).
_REQUEST_DURATION_BOUNDS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TTFT_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TPOT_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_KV_TRANSFER_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)


def _with_slos(bounds_s: Iterable[float], slos_s: Iterable[float | None]) -> list[float]:
    """Bucket bounds with one exactly at each SLO: attainment can then be read off the counts."""
    return sorted({*bounds_s, *(slo_s for slo_s in slos_s if slo_s is not None)})


class Instruments:
    """Every metric of one process. The attributes named `tier` hold a name from `tier`."""

    def __init__(self, meter: Meter, tiers: Mapping[str, TierConfig], clock: Clock) -> None:
        self._tiers = frozenset(tiers)
        self._clock = clock
        self._loads: dict[str, tuple[float, EngineLoad]] = {}
        self.request_duration = meter.create_histogram(
            REQUEST_DURATION,
            unit="s",
            description="Arrival to last token.",
            explicit_bucket_boundaries_advisory=list(_REQUEST_DURATION_BOUNDS_S),
        )
        self.time_to_first_token = meter.create_histogram(
            TTFT,
            unit="s",
            description="Arrival to first token, queueing, prefill and KV transfer included.",
            explicit_bucket_boundaries_advisory=_with_slos(
                _TTFT_BOUNDS_S, (tier.ttft_s for tier in tiers.values())
            ),
        )
        self.time_per_output_token = meter.create_histogram(
            TPOT,
            unit="s",
            description="Mean gap between the tokens of one request after the first.",
            explicit_bucket_boundaries_advisory=_with_slos(
                _TPOT_BOUNDS_S, (tier.tpot_s for tier in tiers.values())
            ),
        )
        self.admission_decisions = meter.create_counter(
            ADMISSION_DECISIONS,
            unit="{decision}",
            description="Admission decisions: promised, best effort, or the reason of a refusal.",
        )
        self.requests = meter.create_counter(
            REQUESTS, unit="{request}", description="Finished requests."
        )
        self.kv_transfer_duration = meter.create_histogram(
            KV_TRANSFER_DURATION,
            unit="s",
            description="First KV page received to commit.",
            explicit_bucket_boundaries_advisory=list(_KV_TRANSFER_BOUNDS_S),
        )
        self.kv_transfer_bytes = meter.create_counter(
            KV_TRANSFER_BYTES, unit="By", description="KV pages moved between workers."
        )
        self.spans_dropped = meter.create_counter(
            SPANS_DROPPED,
            unit="{span}",
            description="Spans lost because the collector was slow or away.",
        )
        self._create_worker_gauges(meter)

    def tier(self, name: str) -> str:
        return name if name in self._tiers else CUSTOM_TIER

    def worker_load(self, worker_id: str, load: EngineLoad) -> None:
        self._loads[worker_id] = (self._clock.now_s(), load)

    def _create_worker_gauges(self, meter: Meter) -> None:
        def gauge(
            name: str, unit: str, description: str, value: Callable[[EngineLoad], float]
        ) -> None:
            def observe(_: CallbackOptions) -> list[Observation]:
                return [Observation(value(load), {"worker_id": w}) for w, load in self._fresh()]

            meter.create_observable_gauge(name, [observe], unit=unit, description=description)

        gauge(
            WORKER_RUNNING, "{request}", "Requests in the engine's batch.", lambda x: x.num_running
        )
        gauge(WORKER_WAITING, "{request}", "Requests the engine queues.", lambda x: x.num_waiting)
        gauge(WORKER_FREE_KV_BLOCKS, "{block}", "Free KV blocks.", lambda x: x.num_free_kv_blocks)
        gauge(
            WORKER_STEP_TIME_RATIO,
            "1",
            "Measured / predicted step time; 0 when not yet known.",
            lambda x: x.step_time_ratio,
        )

    def _fresh(self) -> list[tuple[str, EngineLoad]]:
        oldest_at_s = self._clock.now_s() - WORKER_LOAD_STALE_AFTER_S
        # Read by exporting threads: the copy is one step of the interpreter, the loop is not.
        loads = list(self._loads.items())
        return [(w, load) for w, (reported_at_s, load) in loads if reported_at_s >= oldest_at_s]


class _Closable(Protocol):
    """What we use of the server that prometheus_client starts."""

    server_port: int

    def shutdown(self) -> None: ...

    def server_close(self) -> None: ...


class PrometheusEndpoint:
    """Serves `/metrics` of one registry on loopback."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        """Start to serve; port 0 takes a free one.

        Raises:
            Unavailable: the port cannot be bound.
        """
        try:
            self._server: _Closable = start_http_server(port, "127.0.0.1", registry)[0]
        except OSError as error:
            raise Unavailable(
                f"cannot serve metrics on 127.0.0.1:{port}: is another server running there?"
            ) from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
