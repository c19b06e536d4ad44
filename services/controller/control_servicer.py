"""Speaks gRPC to workers: who they are, and how they do."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc

from headway.core.cluster import WorkerSpec
from headway.errors import FieldViolation, InvalidRequest, LayoutMismatch
from headway.rpc.convert import duration_to_pb, load_from_pb, register_from_pb
from headway.rpc.errors import domain_errors
from headway.rpc.server import Server
from headway.v1 import control_service_pb2 as pb
from headway.v1 import control_service_pb2_grpc as pb_grpc
from services.controller.loop import ControllerLoop

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ControlService"].full_name

_Context = grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]

_REQUIRED = (
    "worker_id",
    "incarnation",
    "role",
    "address",
    "model",
    "max_model_len",
    "kv_block_size",
    "num_kv_blocks",
    "max_step_tokens",
    "max_num_running",
)


class ControlServicer(pb_grpc.ControlServiceServicer):
    """Serves `headway.v1.ControlService`. Args: server: whose health follows the workers."""

    def __init__(
        self, loop: ControllerLoop, server: Server, model: str, report_interval_s: float
    ) -> None:
        self._loop = loop
        self._server = server
        self._model = model
        self._report_interval_s = report_interval_s

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: _Context
    ) -> None:
        async with domain_errors(context):
            spec = self._registration(await anext(request_iterator, pb.ConnectRequest()))
            interval = duration_to_pb(self._report_interval_s)
            self._loop.join(spec)
            try:
                await self._server.set_serving(self._loop.serving)
                registered = pb.Registered(report_interval=interval)
                await context.write(pb.ConnectResponse(registered=registered))
                async for message in request_iterator:
                    if message.HasField("report"):
                        self._loop.report(spec, load_from_pb(message.report))
            finally:
                await self._loop.lose(spec)
                await self._server.set_serving(self._loop.serving)

    def _registration(self, message: pb.ConnectRequest) -> WorkerSpec:
        register = message.register
        violations = [
            FieldViolation(f"register.{name}", "is missing")
            for name in _REQUIRED
            if not getattr(register, name)
        ]
        if not violations and register.model != self._model:
            raise LayoutMismatch(f"this cluster serves {self._model}, the worker {register.model}")
        values = [value for _, value in register.perf_model.ListFields()]
        if not values or not all(math.isfinite(value) for value in values):
            violations.append(FieldViolation("register.perf_model", "must have finite costs"))
        if violations:
            raise InvalidRequest(violations)
        try:
            return register_from_pb(register)
        except KeyError as error:
            unknown = FieldViolation("register.role", f"{register.role} is not known")
            raise InvalidRequest([unknown]) from error
        except ValueError as error:
            raise InvalidRequest([FieldViolation("register.perf_model", str(error))]) from error
