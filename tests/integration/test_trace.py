"""One request, one trace: it holds over every process the request passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from headway.client import Finished, Tokens
from headway.core.request import RequestState
from headway.errors import Refused
from tests.otlp_receiver import Attributes, OtlpReceiver, ReceivedSpan, outline
from tests.traced_request import (
    NUM_OUTPUT_TOKENS,
    OUTLINE,
    PROMPT,
    emulated_deployment,
    of_clients,
    run_traced_request,
    traced_stack,
)

SERVED = "headway-controller SERVER headway.v1.InferenceService/Generate"


@dataclass(frozen=True, slots=True)
class Traced:
    """One request as its client and as the collector saw it."""

    finished: Finished
    spans: Sequence[ReceivedSpan]

    def attributes(self, label: str) -> Attributes:
        (attributes,) = (span.attributes for span in self.spans if span.label == label)
        return attributes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    folder: Path = tmp_path_factory.mktemp("traced")
    with OtlpReceiver() as receiver:
        config_path = emulated_deployment(folder, receiver.endpoint)
        finished = await run_traced_request(config_path, folder / "stack.log")
        return Traced(finished, of_clients(receiver.spans))


def test_a_request_is_one_trace_with_a_span_for_each_hop_and_stage(traced: Traced) -> None:
    assert outline(traced.spans) == OUTLINE
    assert len({span.trace_id for span in traced.spans}) == 1


def test_a_request_that_succeeded_shows_no_error_on_any_span(traced: Traced) -> None:
    assert traced.finished.state is RequestState.SUCCEEDED
    assert [span.label for span in traced.spans if span.error] == []


def test_what_was_promised_and_predicted_stands_beside_what_happened(traced: Traced) -> None:
    decided = traced.attributes("headway-controller INTERNAL slo.admit")
    served = traced.attributes(SERVED)
    assert decided["headway.decision"] == "GUARANTEED"
    assert served["headway.slo.ttft_s"] == 30.0
    assert served["headway.slo.tpot_s"] == 5.0
    assert served["headway.slo.attained"] is True
    for name in ("headway.predicted_ttft_s", "headway.predicted_tpot_s"):
        assert float(served[name]) > 0
        assert served[name] == decided[name]
    timings = traced.finished.timings
    assert served["headway.actual_ttft_s"] == pytest.approx(timings.ttft_s, abs=1e-8)
    assert served["headway.actual_tpot_s"] == pytest.approx(timings.tpot_s, abs=1e-8)
    assert served["gen_ai.usage.output_tokens"] == NUM_OUTPUT_TOKENS


@pytest.mark.parametrize(
    "label", ["headway-prefill INTERNAL prefill.compute", "headway-decode INTERNAL decode"]
)
def test_each_computing_stage_shows_its_predicted_beside_its_actual_time(
    traced: Traced, label: str
) -> None:
    attributes = traced.attributes(label)
    assert float(attributes["headway.predicted_s"]) > 0
    assert float(attributes["headway.actual_s"]) > 0


def test_the_transfer_span_shows_the_bytes_that_moved(traced: Traced) -> None:
    moved = traced.finished.kv_transfer
    assert moved is not None
    assert moved.num_bytes > 0
    attributes = traced.attributes("headway-decode INTERNAL kv.transfer")
    assert attributes["headway.kv.num_bytes"] == moved.num_bytes


def test_stages_lie_within_the_request(traced: Traced) -> None:
    # All processes of this test share one machine's clock.
    (served,) = (span for span in traced.spans if span.label == SERVED)
    for span in traced.spans:
        assert span.start_unix_ns <= span.end_unix_ns, span.label
        if span.kind == "INTERNAL":
            assert served.start_unix_ns <= span.start_unix_ns, span.label
            assert span.end_unix_ns <= served.end_unix_ns, span.label


def test_no_span_carries_the_prompt(traced: Traced) -> None:
    for span in traced.spans:
        assert not [value for value in span.attributes.values() if PROMPT in str(value)]


async def test_refused_and_cancelled_requests_leave_whole_traces_that_say_so(
    tmp_path: Path,
) -> None:
    log_path = tmp_path / "stack.log"
    with OtlpReceiver() as receiver:
        async with traced_stack(
            emulated_deployment(tmp_path, receiver.endpoint), log_path
        ) as client:
            with pytest.raises(Refused):
                await anext(
                    client.generate(prompt=PROMPT, tier="impossible", when_not_promised="refuse")
                )
            events = client.generate(prompt=PROMPT, tier="chat", max_tokens=8000, ignore_eos=True)
            async for event in events:
                if isinstance(event, Tokens):
                    break
            await events.aclose()
        spans = of_clients(receiver.spans)

    refused, cancelled = sorted(
        (span for span in spans if not span.parent_id), key=lambda span: span.start_unix_ns
    )
    assert outline(span for span in spans if span.trace_id == refused.trace_id) == (
        "headway-client CLIENT headway.v1.InferenceService/Generate\n"
        "  headway-controller SERVER headway.v1.InferenceService/Generate\n"
        "    headway-controller INTERNAL slo.admit"
    )
    assert refused.error == "PREFILL_TIME"
    tree = outline(span for span in spans if span.trace_id == cancelled.trace_id)
    assert cancelled.error == "CANCELLED"
    assert "headway-decode SERVER headway.v1.DecodeService/Decode" in tree
    assert "parent missing" not in tree
    # The SDK says so in the log when a span is touched after its end.
    assert "ended span" not in log_path.read_text()
