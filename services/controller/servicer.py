"""Speaks gRPC to client applications. Every decision is the controller's."""

from __future__ import annotations

import asyncio

import grpc

from headway.config import Config
from headway.core.events import CancelCause
from headway.core.planner.interface import Constraint
from headway.core.planner.prediction import prefill_queue
from headway.core.request import RequestSpec
from headway.errors import HeadwayError, Refused, RequestCancelled, Unavailable
from headway.ports.clock import Clock
from headway.ports.telemetry import Span, Telemetry
from headway.rpc.convert import duration_to_pb, load_to_pb, role_to_pb, slo_to_pb
from headway.rpc.errors import abort_with, domain_errors
from headway.v1 import inference_service_pb2 as pb
from headway.v1 import inference_service_pb2_grpc as pb_grpc
from services.controller.loop import ControllerLoop
from services.controller.request_trace import RequestTrace
from services.controller.validation import RequestReader

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name

# A client whose connection takes nothing for so long is cut off.
SLOW_READER_S = 10.0

_GenerateContext = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
_CancelContext = grpc.aio.ServicerContext[pb.CancelRequest, pb.CancelResponse]
_TiersContext = grpc.aio.ServicerContext[pb.ListTiersRequest, pb.ListTiersResponse]
_CapacityContext = grpc.aio.ServicerContext[pb.GetCapacityRequest, pb.GetCapacityResponse]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Serves `headway.v1.InferenceService`."""

    def __init__(
        self,
        config: Config,
        loop: ControllerLoop,
        reader: RequestReader,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._config = config
        self._loop = loop
        self._reader = reader
        self._telemetry = telemetry
        self._clock = clock
        self._admitting = True
        self._num_reading = 0

    def stop_admitting(self) -> None:
        """Refuse every new request from now on."""
        self._admitting = False

    async def Generate(self, request: pb.GenerateRequest, context: _GenerateContext) -> None:  # type: ignore[override]
        # Written with context.write, not as a generator: grpc cancels the task, and of a
        # generator that waits in its yield only the garbage collector would run the finally.
        arrived_at_s = self._clock.now_s()
        span = self._telemetry.start_span(
            f"{SERVICE_NAME}/Generate", parent=_parent_of(context), kind="SERVER"
        )
        outcome = "CANCELLED"
        try:
            spec = await self._read_admitting(request)
            await self._generate(spec, arrived_at_s, span, context)
            outcome = ""
        except HeadwayError as error:
            outcome = error.reason
            await _abort_in_time(context, error)
        finally:
            span.end(outcome)

    async def _read_admitting(self, request: pb.GenerateRequest) -> RequestSpec:
        """The request, checked; those that are being read count among those that are served."""
        self._check_admitting()
        num_requests = self._loop.num_requests + self._num_reading
        if num_requests >= self._config.controller.max_requests:
            message = f"{num_requests} requests are served already"
            raise Refused(Constraint.QUEUE_FULL.value, message, 1.0)
        self._num_reading += 1
        try:
            spec = await self._read(request)
        finally:
            self._num_reading -= 1
        self._check_admitting()
        return spec

    def _check_admitting(self) -> None:
        if not self._admitting:
            raise Unavailable("the controller shuts down")

    async def _read(self, request: pb.GenerateRequest) -> RequestSpec:
        max_model_len = min(
            (worker.spec.max_model_len for worker in self._loop.workers),
            default=self._config.engine.max_model_len,
        )
        return await self._reader.read(request, max_model_len)

    async def _generate(
        self, request: RequestSpec, arrived_at_s: float, span: Span, context: _GenerateContext
    ) -> None:
        trace = RequestTrace(self._telemetry, span, request, self._config.model.name)
        with self._loop.submitted(request, trace, arrived_at_s) as output:
            while (message := await output.next()) is not None:
                try:
                    async with asyncio.timeout(SLOW_READER_S):
                        await context.write(message)
                except TimeoutError:
                    self._loop.cut_off(request.request_id)
                    raise RequestCancelled(CancelCause.SLOW_READER.value) from None

    async def Cancel(self, request: pb.CancelRequest, context: _CancelContext) -> pb.CancelResponse:
        async with domain_errors(context):
            self._loop.cancel(request.request_id)
        return pb.CancelResponse()

    async def ListTiers(
        self, request: pb.ListTiersRequest, context: _TiersContext
    ) -> pb.ListTiersResponse:
        del request, context
        response = pb.ListTiersResponse()
        for name, tier in self._config.controller.tiers.items():
            slo = tier.slo()
            response.tiers.add(name=name, slo=slo_to_pb(slo) if slo is not None else None)
        return response

    async def GetCapacity(
        self, request: pb.GetCapacityRequest, context: _CapacityContext
    ) -> pb.GetCapacityResponse:
        del request, context
        now_s = self._clock.now_s()
        return pb.GetCapacityResponse(
            model=self._config.model.name,
            workers=[
                pb.WorkerCapacity(
                    worker_id=worker.spec.worker_id,
                    role=role_to_pb(worker.spec.role),
                    num_kv_blocks=worker.spec.num_kv_blocks,
                    load=load_to_pb(worker.load),
                    backlog=duration_to_pb(prefill_queue(worker, now_s).backlog_s),
                    prefills_locally=worker.spec.prefills_locally,
                )
                for worker in self._loop.workers
            ],
            num_best_effort_queued=self._loop.num_best_effort_queued,
            num_requests_running=self._loop.num_requests_running,
        )


async def _abort_in_time(context: _GenerateContext, error: HeadwayError) -> None:
    """End the call; a client that does not read cannot make that last."""
    try:
        async with asyncio.timeout(SLOW_READER_S):
            await abort_with(context, error)
    except TimeoutError:
        return  # the status is on its way, behind messages that the client may still read


def _parent_of(context: _GenerateContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""
