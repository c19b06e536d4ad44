"""What telemetry promises to the processes that serve requests."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider

from headway.adapters.null_telemetry import NullTelemetry
from headway.adapters.otel_tracing import MAX_SPANS_QUEUED, SpanQueue
from headway.adapters.telemetry import CONTROLLER, build_telemetry, worker_name
from headway.config import TelemetryConfig
from headway.core.cluster import ResourceCounters, WorkerRole
from headway.errors import ConfigError
from headway.ports.engine import EngineLoad
from headway.ports.telemetry import RequestOutcome
from tests.otlp_receiver import OtlpReceiver, outline

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED_PARENT = PARENT.removesuffix("01") + "00"

OUTCOME = RequestOutcome(
    tier="chat",
    state="SUCCEEDED",
    guaranteed=True,
    attained=True,
    num_prompt_tokens=10,
    num_output_tokens=5,
    ttft_s=0.12,
    tpot_s=0.05,
    e2e_latency_s=0.4,
)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def dead_endpoint() -> Iterator[str]:
    """A port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_nothing_configured_means_no_telemetry_and_no_opentelemetry_import() -> None:
    program = (
        "import sys\n"
        "from headway.adapters.telemetry import build_telemetry\n"
        "from headway.config import TelemetryConfig\n"
        "telemetry = build_telemetry(TelemetryConfig(), 'headway-controller')\n"
        "loaded = [m for m in sys.modules if m.startswith(('opentelemetry', 'prometheus'))]\n"
        "print(type(telemetry).__name__, loaded)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert answer.stdout == "NullTelemetry []\n", answer.stderr


def test_without_telemetry_a_callers_trace_context_is_handed_on() -> None:
    assert NullTelemetry().start_span("x", parent=PARENT).traceparent == PARENT


def test_the_standard_environment_variable_turns_export_on(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    telemetry = build_telemetry(TelemetryConfig(), worker_name(WorkerRole.DECODE))
    telemetry.start_span("x", parent="").end()
    telemetry.shutdown()
    assert [span.name for span in receiver.spans] == ["x"]


def test_an_endpoint_without_a_scheme_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint.*http://"):
        build_telemetry(TelemetryConfig(otlp_endpoint="127.0.0.1:4317"), CONTROLLER)


def test_spans_form_one_tree_across_processes(receiver: OtlpReceiver) -> None:
    controller = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    worker = build_telemetry(
        TelemetryConfig(otlp_endpoint=receiver.endpoint), worker_name(WorkerRole.DECODE)
    )
    call = controller.start_span("Decode", parent="", kind="CLIENT", attributes={"predicted": 1.5})
    served = worker.start_span("Decode", parent=call.traceparent, kind="SERVER")
    worker.add_span("kv.transfer", parent=served.traceparent, start_unix_ns=5, end_unix_ns=9)
    served.end(error="DATA_LOSS")
    call.set({"actual": 2.5})
    call.end()
    controller.shutdown()
    worker.shutdown()

    assert outline(receiver.spans) == (
        "headway-controller CLIENT Decode\n"
        "  headway-decode SERVER Decode\n"
        "    headway-decode INTERNAL kv.transfer"
    )
    spans = {span.label: span for span in receiver.spans}
    assert len({span.trace_id for span in receiver.spans}) == 1
    root = spans["headway-controller CLIENT Decode"]
    assert (root.parent_id, root.error) == ("", "")
    assert root.attributes == {"predicted": 1.5, "actual": 2.5}
    assert spans["headway-decode SERVER Decode"].error == "DATA_LOSS"
    assert spans["headway-decode SERVER Decode"].attributes == {"error.type": "DATA_LOSS"}
    transfer = spans["headway-decode INTERNAL kv.transfer"]
    assert (transfer.start_unix_ns, transfer.end_unix_ns) == (5, 9)


def test_a_callers_trace_goes_on_under_its_own_id(receiver: OtlpReceiver) -> None:
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    span = telemetry.start_span("x", parent=PARENT)
    span.end()
    telemetry.shutdown()
    _, trace_id, span_id, flags = span.traceparent.split("-")
    (received,) = receiver.spans
    assert (received.trace_id, received.span_id) == (trace_id, span_id)
    assert (trace_id, received.parent_id) == tuple(PARENT.split("-")[1:3])
    assert flags == "01"


def test_what_a_caller_does_not_sample_is_neither_exported_nor_sampled_again(
    receiver: OtlpReceiver,
) -> None:
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    span = telemetry.start_span("unsampled", parent=UNSAMPLED_PARENT)
    span.end()
    telemetry.start_span("sampled", parent="").end()
    telemetry.shutdown()
    assert span.traceparent.startswith(UNSAMPLED_PARENT[:36])
    assert span.traceparent.endswith("-00")
    assert [span.name for span in receiver.spans] == ["sampled"]


@pytest.mark.parametrize("parent", ["nonsense", "00-0-0-01", "00-" + "0" * 32 + "-1-01", "\x00é"])
def test_an_unreadable_parent_starts_a_new_trace(receiver: OtlpReceiver, parent: str) -> None:
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    telemetry.start_span("x", parent=parent).end()
    telemetry.shutdown()
    assert [span.parent_id for span in receiver.spans] == [""]


def test_spans_say_which_process_and_version_they_come_from(receiver: OtlpReceiver) -> None:
    for _ in range(2):
        telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
        telemetry.start_span("x", parent="").end()
        telemetry.shutdown()
    assert [span.resource["service.name"] for span in receiver.spans] == [CONTROLLER] * 2
    assert all(span.resource["service.version"] for span in receiver.spans)
    assert len({span.resource["service.instance.id"] for span in receiver.spans}) == 2


def test_processes_with_one_random_seed_do_not_repeat_each_others_ids(
    receiver: OtlpReceiver,
) -> None:
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    contexts = set()
    for _ in range(2):
        random.seed(0)
        contexts.add(telemetry.start_span("x", parent="").traceparent)
    telemetry.shutdown()
    assert len(contexts) == 2


def test_a_collector_that_hangs_costs_spans_and_never_a_call(receiver: OtlpReceiver) -> None:
    dropped: list[tuple[int, str]] = []
    queue = SpanQueue(
        OTLPSpanExporter(endpoint=receiver.endpoint),
        lambda num_spans, reason: dropped.append((num_spans, reason)),
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    tracer = provider.get_tracer("test")
    receiver.hold()
    for _ in range(MAX_SPANS_QUEUED + 100):
        tracer.start_span("x").end()
    # Here every call has returned, and the collector has answered none.
    assert receiver.spans == ()
    assert dropped == [(1, "QUEUE_FULL")] * 100
    receiver.release()
    queue.shutdown()
    assert len(receiver.spans) == MAX_SPANS_QUEUED


# The SDK alone would wait 30 s for its exporting thread.
@pytest.mark.timeout(20)
def test_shutdown_does_not_wait_for_a_collector_that_hangs(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=receiver.endpoint), CONTROLLER)
    receiver.hold()
    telemetry.start_span("x", parent="").end()
    telemetry.request_finished(OUTCOME)
    telemetry.shutdown()
    assert receiver.spans == ()


VLLM_LIKE = """
import sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from headway.adapters.telemetry import build_telemetry
from headway.config import TelemetryConfig

endpoint = sys.argv[1]
telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=endpoint), "headway-decode")
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
trace.set_tracer_provider(provider)
provider.get_tracer("vllm").start_span("llm_request").end()
telemetry.shutdown()
"""


@pytest.mark.timeout(20)
def test_a_process_whose_engine_traces_too_ends_though_the_collector_hangs(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    receiver.hold()
    subprocess.run([sys.executable, "-c", VLLM_LIKE, receiver.endpoint], check=True)
    assert receiver.spans == ()


def test_an_engines_own_spans_are_exported_at_shutdown(receiver: OtlpReceiver) -> None:
    subprocess.run([sys.executable, "-c", VLLM_LIKE, receiver.endpoint], check=True)
    assert [span.name for span in receiver.spans] == ["llm_request"]


def test_spans_that_a_dead_collector_costs_are_counted(
    dead_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    dropped: list[tuple[int, str]] = []
    queue = SpanQueue(
        OTLPSpanExporter(endpoint=dead_endpoint),
        lambda num_spans, reason: dropped.append((num_spans, reason)),
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    provider.get_tracer("test").start_span("x").end()
    queue.shutdown()
    assert dropped == [(1, "EXPORT_FAILED")]


@pytest.mark.timeout(20)
def test_telemetry_with_a_dead_collector_takes_every_call(dead_endpoint: str) -> None:
    telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=dead_endpoint), CONTROLLER)
    span = telemetry.start_span("x", parent="")
    assert span.traceparent
    span.end()
    telemetry.admission_decided("chat", "GUARANTEED")
    telemetry.request_finished(OUTCOME)
    telemetry.worker_load("decode-0", EngineLoad(1, 0, 9, ResourceCounters(), 1.0))
    telemetry.shutdown()
    telemetry.start_span("after the end", parent="").end()
    telemetry.request_finished(OUTCOME)
