"""What the metrics show, and to whom."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from headway.adapters.null_telemetry import NullTelemetry
from headway.adapters.otel_metrics import WORKER_LOAD_STALE_AFTER_S
from headway.adapters.otel_telemetry import OtelTelemetry
from headway.adapters.telemetry import CONTROLLER, build_telemetry, worker_name
from headway.config import Config, TierConfig
from headway.core.cluster import ResourceCounters, WorkerRole
from headway.errors import Unavailable
from headway.ports.engine import EngineLoad, KvTransferRecord
from headway.ports.telemetry import RequestOutcome
from tests.otlp_receiver import OtlpReceiver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def config(**telemetry: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"name": "m", "tokenizer": "bytes"},
            "engine": {"kind": "emulated", "profile": "unused.toml"},
            "controller": {
                "tiers": {
                    "chat": {"ttft_s": 0.123, "tpot_s": 0.0456},
                    "batch": {},
                }
            },
            "telemetry": telemetry,
        }
    )


def outcome(tier: str, **changes: Any) -> RequestOutcome:
    values: dict[str, Any] = {
        "tier": tier,
        "state": "SUCCEEDED",
        "guaranteed": True,
        "attained": True,
        "num_prompt_tokens": 10,
        "num_output_tokens": 5,
        "ttft_s": 0.12,
        "tpot_s": 0.05,
        "e2e_latency_s": 0.4,
    }
    return RequestOutcome(**values | changes)


def load(num_running: int) -> EngineLoad:
    return EngineLoad(num_running, 2, 30, ResourceCounters(), step_time_ratio=1.25)


def prometheus_text(telemetry: OtelTelemetry) -> str:
    assert telemetry.metrics_url is not None
    with urllib.request.urlopen(telemetry.metrics_url) as response:
        return str(response.read(), "utf-8")


@pytest.fixture
def metrics() -> Iterator[OtelTelemetry]:
    telemetry = build_telemetry(config(prometheus_port=0), CONTROLLER)
    assert isinstance(telemetry, OtelTelemetry)
    yield telemetry
    telemetry.shutdown()


def test_a_taken_prometheus_port_is_refused_at_start(metrics: OtelTelemetry) -> None:
    assert metrics.metrics_url is not None
    port = int(metrics.metrics_url.split(":")[2].removesuffix("/metrics"))
    with pytest.raises(Unavailable, match=str(port)):
        build_telemetry(config(prometheus_port=port), CONTROLLER)


def test_workers_leave_the_prometheus_port_to_the_controller() -> None:
    assert isinstance(
        build_telemetry(config(prometheus_port=0), worker_name(WorkerRole.DECODE)), NullTelemetry
    )


def test_metrics_reach_the_collector_by_the_latest_at_shutdown() -> None:
    with OtlpReceiver() as receiver:
        telemetry = build_telemetry(config(otlp_endpoint=receiver.endpoint), CONTROLLER)
        telemetry.request_finished(outcome("chat"))
        telemetry.admission_decided("chat", "GUARANTEED")
        telemetry.kv_transferred(KvTransferRecord(4096, 2, 0, 0.5, 10, 2_000_010, ""))
        telemetry.worker_load("decode-0", load(7))
        telemetry.shutdown()
    assert receiver.metric_names == {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "headway.requests",
        "headway.admission.decisions",
        "headway.kv.transfer.duration",
        "headway.kv.transfer.bytes",
        "headway.worker.requests.running",
        "headway.worker.requests.waiting",
        "headway.worker.kv_blocks.free",
        "headway.worker.step_time_ratio",
    }


def test_prometheus_shows_each_finished_request_under_its_tier(metrics: OtelTelemetry) -> None:
    metrics.request_finished(outcome("chat"))
    metrics.request_finished(outcome("chat", state="FAILED", attained=False, ttft_s=None))
    metrics.admission_decided("chat", "KV_BLOCKS")
    text = prometheus_text(metrics)
    for line in (
        'headway_requests_total{attained="true",state="SUCCEEDED",tier="chat"} 1.0',
        'headway_requests_total{attained="false",state="FAILED",tier="chat"} 1.0',
        'headway_admission_decisions_total{decision="KV_BLOCKS",tier="chat"} 1.0',
        'gen_ai_server_request_duration_seconds_count{tier="chat"} 2.0',
        'gen_ai_server_time_to_first_token_seconds_count{tier="chat"} 1.0',
        'gen_ai_server_time_per_output_token_seconds_count{tier="chat"} 2.0',
    ):
        assert line in text.splitlines()


def test_a_bucket_ends_exactly_at_each_tiers_bounds(metrics: OtelTelemetry) -> None:
    metrics.request_finished(outcome("chat", ttft_s=0.123, tpot_s=0.0456))
    metrics.request_finished(outcome("chat", ttft_s=0.124, tpot_s=0.0457))
    lines = prometheus_text(metrics).splitlines()
    assert 'gen_ai_server_time_to_first_token_seconds_bucket{le="0.123",tier="chat"} 1.0' in lines
    assert (
        'gen_ai_server_time_per_output_token_seconds_bucket{le="0.0456",tier="chat"} 1.0' in lines
    )


def test_callers_cannot_add_label_values(metrics: OtelTelemetry) -> None:
    for i in range(50):
        metrics.request_finished(outcome(f"made-up-{i}"))
        metrics.admission_decided(f"made-up-{i}", "BEST_EFFORT")
    text = prometheus_text(metrics)
    assert "made-up" not in text
    assert (
        'headway_requests_total{attained="true",state="SUCCEEDED",tier="custom"} 50.0'
        in text.splitlines()
    )


class _StoppedClock:
    def __init__(self) -> None:
        self.at_s = 1000.0

    def now_s(self) -> float:
        return self.at_s


def test_gauges_show_the_newest_load_and_forget_workers_that_are_gone() -> None:
    clock = _StoppedClock()
    telemetry = OtelTelemetry(
        service_name=CONTROLLER,
        tiers={"chat": TierConfig(ttft_s=1.0, tpot_s=0.1)},
        exports_otlp=False,
        otlp_endpoint=None,
        prometheus_port=0,
        clock=clock,
    )
    try:
        telemetry.worker_load("decode-0", load(7))
        telemetry.worker_load("decode-0", load(8))
        lines = prometheus_text(telemetry).splitlines()
        assert 'headway_worker_requests_running{worker_id="decode-0"} 8.0' in lines
        assert 'headway_worker_requests_waiting{worker_id="decode-0"} 2.0' in lines
        assert 'headway_worker_kv_blocks_free{worker_id="decode-0"} 30.0' in lines
        assert 'headway_worker_step_time_ratio{worker_id="decode-0"} 1.25' in lines
        clock.at_s += WORKER_LOAD_STALE_AFTER_S + 1
        assert "decode-0" not in prometheus_text(telemetry)
    finally:
        telemetry.shutdown()


def test_without_a_collector_a_callers_trace_context_is_handed_on(metrics: OtelTelemetry) -> None:
    assert metrics.start_span("x", parent=PARENT).traceparent == PARENT
