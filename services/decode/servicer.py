"""Speaks gRPC for one decode worker. Every decision is the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing

import grpc

from headway.adapters.kv_grpc.tickets import DEFAULT_TTL_S
from headway.adapters.worker.calls import worker_call
from headway.adapters.worker.checks import check_request, check_step_cap
from headway.adapters.worker.prefill_spans import trace_prefill
from headway.adapters.worker.slots import Slots
from headway.errors import FieldViolation, InvalidRequest
from headway.ports.engine import DecodeJob, Engine, EngineFinished, EngineTokens, PrefillResult
from headway.ports.telemetry import Telemetry
from headway.rpc.convert import (
    demand_from_pb,
    duration_from_pb,
    duration_to_pb,
    finish_reason_to_pb,
    optional_duration_from_pb,
    sampling_from_pb,
    target_to_pb,
    usage_to_pb,
)
from headway.v1 import decode_service_pb2 as pb
from headway.v1 import decode_service_pb2_grpc as pb_grpc
from headway.v1.generation_pb2 import TokenChunk
from services.decode.spans import DecodeSpans, TransferPace

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["DecodeService"].full_name

# Longer than any request may live.
_MAX_KV_TIMEOUT_S = 3600.0

_Context = grpc.aio.ServicerContext[pb.DecodeRequest, pb.DecodeResponse]


class DecodeServicer(pb_grpc.DecodeServiceServicer):
    """Serves `headway.v1.DecodeService`."""

    def __init__(self, engine: Engine, slots: Slots, telemetry: Telemetry) -> None:
        self._engine = engine
        self._slots = slots
        self._telemetry = telemetry
        self._pace = TransferPace()

    # Writes instead of yielding: cancellation is then raised in here, where it frees all that
    # the request holds at once, and not in a generator that grpc has stopped to iterate.
    async def Decode(self, request: pb.DecodeRequest, context: _Context) -> None:  # type: ignore[override]
        async with worker_call(context, f"{SERVICE_NAME}/Decode", self._telemetry) as span:
            if violations := list(self._violations(request)):
                raise InvalidRequest(violations)
            with self._slots.hold(request.request_id):
                job = self._job(request, span.traceparent)
                spans = DecodeSpans(self._telemetry, self._engine.info, job, self._pace)
                await self._decode(job, context, spans)

    async def _decode(self, job: DecodeJob, context: _Context, spans: DecodeSpans) -> None:
        reserved = pb.Reserved(target=None if job.target is None else target_to_pb(job.target))
        await context.write(pb.DecodeResponse(reserved=reserved))
        num_written = 0
        async with aclosing(self._engine.decode(job)) as events:
            # While a write waits for the client, the engine merges the tokens of its steps.
            async for event in events:
                match event:
                    case PrefillResult() as result:
                        trace_prefill(
                            self._telemetry,
                            self._engine.info,
                            result,
                            len(job.prompt_token_ids),
                            job.traceparent,
                        )
                        await context.write(pb.DecodeResponse(prefilled=_prefilled(result)))
                    case EngineTokens(token_ids, text):
                        spans.tokens(len(token_ids))
                        chunk = TokenChunk(first_index=num_written, token_ids=token_ids, text=text)
                        num_written += len(token_ids)
                        await context.write(pb.DecodeResponse(tokens=chunk))
                    case EngineFinished() as finished:
                        spans.finished(finished)
                        await context.write(pb.DecodeResponse(finished=_finished(finished)))

    def _violations(self, request: pb.DecodeRequest) -> Iterator[FieldViolation]:
        max_model_len = self._engine.info.max_model_len
        num_prompt_tokens = len(request.prompt_token_ids)
        yield from check_request(request.request_id, request.prompt_token_ids, max_model_len)
        if request.priority not in {0, 1}:
            yield FieldViolation("priority", f"must be 0 or 1, got {request.priority}")
        max_tokens = request.sampling.max_tokens
        if max_tokens < 1:
            yield FieldViolation("sampling.max_tokens", "must be at least 1")
        elif num_prompt_tokens <= max_model_len < num_prompt_tokens + max_tokens:
            yield FieldViolation(
                "sampling.max_tokens",
                f"{num_prompt_tokens} prompt tokens and {max_tokens} output tokens exceed the"
                f" {max_model_len} of the model's context",
            )
        kv_timeout_s = duration_from_pb(request.kv_timeout)
        if not 0.001 <= kv_timeout_s <= _MAX_KV_TIMEOUT_S:
            yield FieldViolation("kv_timeout", f"must be 1 ms to 1 h, got {kv_timeout_s:g} s")
        yield from check_step_cap(request)
        if request.local_prefill and not self._slots.prefills:
            yield FieldViolation("local_prefill", "this worker does not prefill")
        if request.local_prefill and request.HasField("demand") != request.HasField("prefill_due"):
            yield FieldViolation("prefill_due", "must be given with demand, and not without")
        if request.HasField("demand"):
            try:
                demand_from_pb(request.demand)
            except ValueError as error:
                yield FieldViolation("demand.stages", str(error))

    def _job(self, request: pb.DecodeRequest, traceparent: str) -> DecodeJob:
        return DecodeJob(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.prompt_token_ids),
            sampling=sampling_from_pb(request.sampling),
            target=(
                None if request.local_prefill else self._engine.mint_target(request.request_id)
            ),
            priority=request.priority,
            # A ticket lives no longer, and a transfer that hangs must not hold blocks for hours.
            kv_timeout_s=min(duration_from_pb(request.kv_timeout), DEFAULT_TTL_S),
            promise=demand_from_pb(request.demand) if request.HasField("demand") else None,
            step_cap_s=optional_duration_from_pb(request, "step_cap"),
            traceparent=traceparent,
            prefill_due_s=optional_duration_from_pb(request, "prefill_due"),
        )


def _prefilled(result: PrefillResult) -> pb.Prefilled:
    return pb.Prefilled(
        queued=duration_to_pb(result.queued_s),
        computed=duration_to_pb(result.computed_s),
        num_cached_tokens=result.num_cached_tokens,
    )


def _finished(finished: EngineFinished) -> pb.DecodeFinished:
    return pb.DecodeFinished(
        finish_reason=finish_reason_to_pb(finished.finish_reason),
        num_prompt_tokens_recomputed=finished.num_prompt_tokens_recomputed,
        kv_transfer=None if finished.kv_transfer is None else usage_to_pb(finished.kv_transfer),
    )
