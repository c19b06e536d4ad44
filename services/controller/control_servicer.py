"""Speaks gRPC to workers: who they are, and how they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSpec
from headway.errors import FieldViolation, InvalidRequest, LayoutMismatch, NotFound
from headway.rpc.convert import duration_to_pb, load_from_pb, register_from_pb
from headway.rpc.errors import domain_errors
from headway.rpc.server import Server
from headway.v1 import control_service_pb2 as pb
from headway.v1 import control_service_pb2_grpc as pb_grpc
from headway.v1 import generation_pb2
from services.controller.loop import ControllerLoop
from services.controller.worker_calls import Connection

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ControlService"].full_name

_Context = grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]
_RoleContext = grpc.aio.ServicerContext[pb.SetRoleRequest, pb.SetRoleResponse]

# Far beyond any engine. What is larger would make every prediction worthless, or infinite.
MAX_COST_S = 10.0
MAX_STEP_TIME_RATIO = 1000.0

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
            connection = self._loop.join(spec)
            try:
                await self._server.set_serving(self._loop.serving)
                registered = pb.Registered(report_interval=interval)
                await context.write(pb.ConnectResponse(registered=registered))
                await self._listen(connection, request_iterator, context)
                if _has_new_incarnation(connection):
                    await context.write(pb.ConnectResponse(drain=pb.Drain()))
            finally:
                await self._loop.lose(connection)
                await self._server.set_serving(self._loop.serving)

    async def SetRole(
        self, request: pb.SetRoleRequest, context: _RoleContext
    ) -> pb.SetRoleResponse:
        async with domain_errors(context):
            workers = {worker.spec.worker_id: worker.spec for worker in self._loop.workers}
            spec = workers.pop(request.worker_id, None)
            if spec is None:
                raise NotFound(f"no worker {request.worker_id} is registered")
            if spec.role is not WorkerRole.DECODE:
                raise InvalidRequest([FieldViolation("worker_id", "is not a decode worker")])
            if not (request.prefills_locally or any(other.prefills for other in workers.values())):
                raise InvalidRequest([FieldViolation("prefills_locally", "nobody else prefills")])
            self._loop.set_role(request.worker_id, prefills_locally=request.prefills_locally)
        return pb.SetRoleResponse()

    async def _listen(
        self,
        connection: Connection,
        request_iterator: AsyncIterator[pb.ConnectRequest],
        context: _Context,
    ) -> None:
        """Take reports until the stream ends, or until the worker has connected anew."""
        reporting = asyncio.create_task(self._take_reports(connection, request_iterator))
        telling = asyncio.create_task(_tell_roles(connection, context))
        try:
            await asyncio.wait(
                (reporting, telling, connection.successor), return_when=asyncio.FIRST_COMPLETED
            )
            for task in (reporting, telling):
                if task.done():
                    task.result()
        finally:
            reporting.cancel()
            telling.cancel()
            await asyncio.gather(reporting, telling, return_exceptions=True)

    async def _take_reports(
        self, connection: Connection, request_iterator: AsyncIterator[pb.ConnectRequest]
    ) -> None:
        async for message in request_iterator:
            match message.WhichOneof("message"):
                case "report":
                    self._loop.report(connection, _load(message.report))
                case "role_taken":
                    takes = message.role_taken.prefills_locally
                    self._loop.role_taken(connection, prefills_locally=takes)

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
        # Written so that NaN fails it.
        if not values or not all(value <= MAX_COST_S for value in values):
            problem = f"must have costs, of at most {MAX_COST_S:g} s each"
            violations.append(FieldViolation("register.perf_model", problem))
        if register.prefills_locally and register.role != generation_pb2.WORKER_ROLE_DECODE:
            problem = "is for decode workers"
            violations.append(FieldViolation("register.prefills_locally", problem))
        if violations:
            raise InvalidRequest(violations)
        try:
            return register_from_pb(register)
        except KeyError as error:
            unknown = FieldViolation("register.role", f"{register.role} is not known")
            raise InvalidRequest([unknown]) from error
        except ValueError as error:
            raise InvalidRequest([FieldViolation("register.perf_model", str(error))]) from error


async def _tell_roles(connection: Connection, context: _Context) -> None:
    while True:
        command = pb.SetRole(prefills_locally=await connection.roles.get())
        await context.write(pb.ConnectResponse(set_role=command))


def _load(report: generation_pb2.WorkerLoad) -> WorkerLoad:
    # Written so that NaN fails it.
    if not 0 <= report.step_time_ratio <= MAX_STEP_TIME_RATIO:
        problem = f"must be 0 to {MAX_STEP_TIME_RATIO:g}, got {report.step_time_ratio}"
        raise InvalidRequest([FieldViolation("report.step_time_ratio", problem)])
    return load_from_pb(report)


def _has_new_incarnation(connection: Connection) -> bool:
    """Whether another process has taken this worker's place."""
    successor = connection.successor
    return successor.done() and successor.result().incarnation != connection.spec.incarnation
