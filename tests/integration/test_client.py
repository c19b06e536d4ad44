"""Both clients against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, closing
from typing import Any, Unpack

import grpc
import pytest

from headway.adapters.null_telemetry import NullSpan, NullTelemetry
from headway.client import (
    Admission,
    AsyncClient,
    Client,
    Event,
    Finished,
    KvTransfer,
    Tier,
    Tokens,
)
from headway.client.convert import GenerateArguments
from headway.core.cluster import WorkerRole
from headway.core.request import FinishReason, RequestState
from headway.core.slo import Slo, StageSlo
from headway.errors import (
    FieldViolation,
    HeadwayError,
    InvalidRequest,
    NotFound,
    Refused,
    Unavailable,
)
from headway.ports.telemetry import AttributeValue, SpanKind
from headway.rpc.convert import duration_from_pb
from headway.rpc.server import MAX_MESSAGE_BYTES
from headway.v1 import inference_service_pb2 as pb
from tests.scripted_controller import (
    ScriptedController,
    admission,
    answer,
    finished,
    serving,
    tokens,
)


async def generate(
    kind: str, address: str, **arguments: Unpack[GenerateArguments]
) -> list[Event | HeadwayError]:
    """All events of one request by one kind of client; the error, if any, comes last."""
    seen: list[Event | HeadwayError] = []

    def blocking() -> None:
        with Client(address) as client:
            try:
                seen.extend(client.generate(**arguments))
            except HeadwayError as error:
                seen.append(error)

    if kind == "sync":
        await asyncio.to_thread(blocking)
        return seen
    async with AsyncClient(address) as client:
        try:
            async for event in client.generate(**arguments):
                seen += [event]
        except HeadwayError as error:
            seen.append(error)
    return seen


pytestmark = pytest.mark.parametrize("kind", ["asyncio", "sync"])


async def test_client_sees_admission_then_tokens_then_finished(kind: str) -> None:
    async with serving(ScriptedController()) as address:
        events = await generate(kind, address, prompt="Hi", tier="chat")
    first, *middle, last = events
    assert isinstance(first, Admission)
    assert first.guaranteed
    assert (first.ttft_s, first.tpot_s, first.slack_s) == (60.0, 30.0, 59.5)
    assert first.predicted_tpot_s is None
    assert middle == [Tokens(0, (72,), "H"), Tokens(1, (105, 33), "i!")]
    assert isinstance(last, Finished)
    assert last.state is RequestState.SUCCEEDED
    assert last.finish_reason is FinishReason.LENGTH
    assert last.kv_transfer == KvTransfer(4096, 0.25, 0.5, 2, 0)
    assert last.timings.ttft_s is None


async def test_all_that_was_asked_for_arrives(kind: str) -> None:
    controller = ScriptedController()
    slo = Slo((StageSlo(0.1, end_token_id=7), StageSlo(0.2)), ttft_s=1.5)
    async with serving(controller) as address:
        await generate(
            kind,
            address,
            messages=[("system", "Be brief."), ("user", "Hi")],
            slo=slo,
            when_not_promised="refuse",
            max_tokens=9,
            temperature=0.5,
            seed=0,
            stop=["\n"],
            ignore_eos=True,
            deadline_s=2.5,
        )
    (request,) = controller.requests
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]
    first, second = request.slo.stages
    assert duration_from_pb(first.ttft) == 1.5
    assert (duration_from_pb(first.tpot), first.end_token_id) == (0.1, 7)
    assert duration_from_pb(second.tpot) == 0.2
    assert second.WhichOneof("end") is None
    assert request.when_not_promised == pb.WHEN_NOT_PROMISED_REFUSE
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.ignore_eos) == (9, 0.5, True)
    assert sampling.HasField("seed")
    assert list(sampling.stop) == ["\n"]
    assert duration_from_pb(request.deadline) == 2.5


async def test_refusal_says_why_and_when_to_come_back(kind: str) -> None:
    async def refuse(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        raise Refused("DECODE_RATE", "no worker is fast enough", 1.25, tier_that_fits="batch")
        yield

    async with serving(ScriptedController(refuse)) as address:
        (error,) = await generate(kind, address, prompt="Hi", tier="chat")
    assert isinstance(error, Refused)
    assert (error.reason, error.retry_after_s) == ("DECODE_RATE", 1.25)
    assert error.tier_that_fits == "batch"


async def test_invalid_request_names_every_field_that_is_wrong(kind: str) -> None:
    violations = [FieldViolation("tier", "unknown"), FieldViolation("prompt_text", "empty")]

    async def reject(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        raise InvalidRequest(violations)
        yield

    async with serving(ScriptedController(reject)) as address:
        (error,) = await generate(kind, address, prompt="", tier="gold")
    assert isinstance(error, InvalidRequest)
    assert list(error.violations) == violations


async def test_prompt_above_the_message_limit_is_invalid(kind: str) -> None:
    controller = ScriptedController()
    async with serving(controller) as address:
        (error,) = await generate(kind, address, prompt="x" * (MAX_MESSAGE_BYTES + 1))
    assert isinstance(error, InvalidRequest)
    (violation,) = error.violations
    assert violation.field == ""
    assert "larger than max" in violation.description
    assert controller.requests == []


async def test_nobody_listening_is_unavailable(kind: str) -> None:
    async with serving(ScriptedController()) as address:
        pass
    (error,) = await generate(kind, address, prompt="Hi")
    assert isinstance(error, Unavailable)


async def test_stream_that_ends_early_is_an_error(kind: str) -> None:
    async def stop_early(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield admission()

    async with serving(ScriptedController(stop_early)) as address:
        *_, error = await generate(kind, address, prompt="Hi")
    assert isinstance(error, Unavailable)


async def test_cancelled_request_ends_with_finished_and_no_error(kind: str) -> None:
    async def cancelled(_request: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield admission()
        yield finished(pb.FINAL_STATE_CANCELLED)
        await context.abort(grpc.StatusCode.CANCELLED, "cancelled")

    async with serving(ScriptedController(cancelled)) as address:
        *_, last = await generate(kind, address, prompt="Hi")
    assert isinstance(last, Finished)
    assert last.state is RequestState.CANCELLED
    assert last.finish_reason is None


async def stall(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
    yield admission()
    yield tokens(0, 72)
    await asyncio.Event().wait()


async def test_closing_the_events_cancels_the_request(kind: str) -> None:
    controller = ScriptedController(stall)

    def blocking(address: str) -> None:
        with Client(address) as client, closing(client.generate(prompt="Hi")) as events:
            assert [next(events), next(events)][1:] == [Tokens(0, (72,), "H")]

    async with serving(controller) as address:
        if kind == "sync":
            await asyncio.to_thread(blocking, address)
            await controller.cancelled.wait()
        else:
            async with AsyncClient(address) as client:
                async with aclosing(client.generate(prompt="Hi")) as events:
                    await anext(events)
                    await anext(events)
                await controller.cancelled.wait()


async def test_unknown_request_cannot_be_cancelled(kind: str) -> None:
    async with serving(ScriptedController()) as address:
        if kind == "sync":

            def blocking() -> None:
                with Client(address) as client:
                    client.cancel("r1")
                    with pytest.raises(NotFound, match="r2"):
                        client.cancel("r2")

            await asyncio.to_thread(blocking)
            return
        async with AsyncClient(address) as client:
            await client.cancel("r1")
            with pytest.raises(NotFound, match="r2"):
                await client.cancel("r2")


async def test_tiers_and_capacity_are_told(kind: str) -> None:
    async with serving(ScriptedController()) as address:
        if kind == "sync":
            with Client(address) as blocking:
                tiers = await asyncio.to_thread(blocking.list_tiers)
                capacity = await asyncio.to_thread(blocking.capacity)
        else:
            async with AsyncClient(address) as client:
                tiers, capacity = await client.list_tiers(), await client.capacity()
    stages = (StageSlo(0.1, end_after_tokens=5), StageSlo(0.2))
    assert tiers == (Tier("chat", Slo(stages, ttft_slowdown=3.0)), Tier("best-effort", None))
    (worker,) = capacity.workers
    assert (capacity.model, capacity.num_requests_running) == ("m", 2)
    assert (worker.role, worker.num_kv_blocks, worker.backlog_s) == (WorkerRole.PREFILL, 64, 1.5)


class KeptSpan(NullSpan):
    """Remembers how it ended."""

    __slots__ = ("errors",)

    def __init__(self) -> None:
        super().__init__("00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        object.__setattr__(self, "errors", [])

    def end(self, error: str = "") -> None:
        self.errors.append(error)  # type: ignore[attr-defined]


class KeptTelemetry(NullTelemetry):
    def __init__(self) -> None:
        self.spans: list[tuple[str, SpanKind, KeptSpan]] = []

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> KeptSpan:
        span = KeptSpan()
        self.spans.append((name, kind, span))
        return span


@pytest.mark.parametrize(("script", "error"), [(answer, ""), (stall, "CANCELLED")])
async def test_trace_context_travels_and_the_span_ends_as_the_request_did(
    kind: str, script: Any, error: str
) -> None:
    controller, telemetry = ScriptedController(script), KeptTelemetry()
    num_events = 4 if script is answer else 2

    def blocking(address: str) -> None:
        with Client(address, telemetry) as client, closing(client.generate(prompt="Hi")) as events:
            for _ in range(num_events):
                next(events)
            if script is answer:
                assert list(events) == []

    async with serving(controller) as address:
        if kind == "sync":
            await asyncio.to_thread(blocking, address)
        else:
            async with (
                AsyncClient(address, telemetry) as client,
                aclosing(client.generate(prompt="Hi")) as events,
            ):
                for _ in range(num_events):
                    await anext(events)
                if script is answer:
                    assert [event async for event in events] == []
    ((name, span_kind, span),) = telemetry.spans
    assert (name, span_kind) == ("headway.v1.InferenceService/Generate", "CLIENT")
    assert span.errors == [error]  # type: ignore[attr-defined]
    assert controller.metadata[0]["traceparent"] == span.traceparent
