"""Speaks gRPC for one prefill worker. Every decision is the engine's."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from headway.adapters.worker.calls import worker_call
from headway.adapters.worker.checks import check_request, check_step_cap
from headway.adapters.worker.prefill_spans import trace_prefill
from headway.adapters.worker.slots import Slots
from headway.errors import FieldViolation, InvalidRequest
from headway.ports.engine import Engine, PrefillJob
from headway.ports.telemetry import Telemetry
from headway.rpc.convert import duration_to_pb, optional_duration_from_pb, target_from_pb
from headway.v1 import prefill_service_pb2 as pb
from headway.v1 import prefill_service_pb2_grpc as pb_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["PrefillService"].full_name

_Context = grpc.aio.ServicerContext[pb.PrefillRequest, pb.PrefillResponse]


class PrefillServicer(pb_grpc.PrefillServiceServicer):
    """Serves `headway.v1.PrefillService`."""

    def __init__(self, engine: Engine, slots: Slots, telemetry: Telemetry) -> None:
        self._engine = engine
        self._slots = slots
        self._telemetry = telemetry

    async def Prefill(self, request: pb.PrefillRequest, context: _Context) -> pb.PrefillResponse:
        async with worker_call(context, f"{SERVICE_NAME}/Prefill", self._telemetry) as span:
            if violations := list(self._violations(request)):
                raise InvalidRequest(violations)
            with self._slots.hold(request.request_id):
                result = await self._engine.prefill(
                    PrefillJob(
                        request_id=request.request_id,
                        prompt_token_ids=tuple(request.prompt_token_ids),
                        target=target_from_pb(request.target),
                        due_s=optional_duration_from_pb(request, "due"),
                        step_cap_s=optional_duration_from_pb(request, "step_cap"),
                        traceparent=span.traceparent,
                    )
                )
            trace_prefill(
                self._telemetry,
                self._engine.info,
                result,
                len(request.prompt_token_ids),
                span.traceparent,
            )
        return pb.PrefillResponse(
            queued=duration_to_pb(result.queued_s),
            computed=duration_to_pb(result.computed_s),
            num_cached_tokens=result.num_cached_tokens,
        )

    def _violations(self, request: pb.PrefillRequest) -> Iterator[FieldViolation]:
        yield from check_request(
            request.request_id,
            request.prompt_token_ids,
            self._engine.info.max_model_len,
        )
        yield from check_step_cap(request)
        for name in ("address", "transfer_id", "ticket"):
            if not getattr(request.target, name):
                yield FieldViolation(f"target.{name}", "must be given")
