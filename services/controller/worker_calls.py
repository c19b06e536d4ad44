"""The calls that run requests on workers: one task for each, cancelled when it is not needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration

from headway.core.cluster import WorkerRole, WorkerSpec
from headway.core.effects import SetRole, StartDecode, StartPrefill
from headway.core.events import (
    AttemptFailed,
    DecodeCompleted,
    DecodeReserved,
    Event,
    FailureReason,
    KvUsage,
    PrefillComputed,
    TokensProduced,
)
from headway.errors import HeadwayError, KvTransferFailed, Refused, Unavailable
from headway.ports.telemetry import Span, Telemetry
from headway.rpc.convert import (
    demand_to_pb,
    duration_from_pb,
    duration_to_pb,
    finish_reason_from_pb,
    sampling_to_pb,
)
from headway.rpc.errors import error_from_rpc, status_from_rpc
from headway.rpc.server import open_channel
from headway.v1 import decode_service_pb2 as decode_pb
from headway.v1 import decode_service_pb2_grpc as decode_grpc
from headway.v1 import kv_transfer_service_pb2 as kv_pb
from headway.v1 import prefill_service_pb2 as prefill_pb
from headway.v1 import prefill_service_pb2_grpc as prefill_grpc

# The controller ends a request at its deadline itself; the calls' own deadlines come after,
# and matter only if it does not.
_DEADLINE_MARGIN_S = 1.0
_MIN_KV_TIMEOUT_S = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """One Connect stream of a worker, and the channel for calls to it.

    Attributes:
        successor: done when the worker has connected anew, with what it said then.
        roles: what it is to be told, see SetRole.
    """

    spec: WorkerSpec
    channel: grpc.aio.Channel
    successor: asyncio.Future[WorkerSpec]
    roles: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)


class WorkerCalls:
    """Channels to workers and the calls on them. Args: post: takes what workers answer."""

    def __init__(self, post: Callable[[Event], None], telemetry: Telemetry) -> None:
        self._post = post
        self._telemetry = telemetry
        self._connections: set[Connection] = set()
        self._newest: dict[str, Connection] = {}
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    def connect(self, spec: WorkerSpec) -> Connection:
        """Open a channel; calls to this worker go there from now on."""
        if (previous := self._newest.get(spec.worker_id)) is not None:
            previous.successor.set_result(spec)
        successor = asyncio.get_running_loop().create_future()
        connection = Connection(spec, open_channel(spec.address), successor)
        self._connections.add(connection)
        self._newest[spec.worker_id] = connection
        return connection

    def is_newest(self, connection: Connection) -> bool:
        """Whether this connection stands for its worker."""
        return self._newest.get(connection.spec.worker_id) is connection

    async def disconnect(self, connection: Connection) -> None:
        """Close the connection's channel."""
        if self.is_newest(connection):
            del self._newest[connection.spec.worker_id]
        self._connections.discard(connection)
        await connection.channel.close()

    def set_role(self, effect: SetRole) -> None:
        if (connection := self._newest.get(effect.worker_id)) is not None:
            connection.roles.put_nowait(effect.prefills_locally)

    def start_decode(self, effect: StartDecode, parent: str) -> None:
        self._start(effect.request.request_id, self._decode(effect, parent))

    def start_prefill(self, effect: StartPrefill, parent: str) -> None:
        self._start(effect.request.request_id, self._prefill(effect, parent))

    def abort(self, request_id: str) -> None:
        """Cancel what still runs for this request."""
        for task in self._tasks.get(request_id, ()):
            task.cancel()

    async def close(self) -> None:
        """Cancel all calls and close all channels."""
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.channel.close()

    def _start(self, request_id: str, call: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.setdefault(request_id, set()).add(task)
        task.add_done_callback(lambda done: self._forget(request_id, done))

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._tasks[request_id]
        tasks.discard(task)
        if not tasks:
            del self._tasks[request_id]

    async def _decode(self, effect: StartDecode, parent: str) -> None:
        request = effect.request
        span = self._span("headway.v1.DecodeService/Decode", effect.worker_id, parent)
        call = decode_grpc.DecodeServiceStub(self._newest[effect.worker_id].channel).Decode(
            decode_pb.DecodeRequest(
                request_id=request.request_id,
                prompt_token_ids=request.prompt_token_ids,
                sampling=sampling_to_pb(request.sampling),
                priority=0 if effect.promise is not None else 1,
                kv_timeout=duration_to_pb(max(effect.remaining_s, _MIN_KV_TIMEOUT_S)),
                demand=None if effect.promise is None else demand_to_pb(effect.promise),
                step_cap=_optional_duration(effect.step_cap_s),
                local_prefill=effect.local_prefill,
                prefill_due=_optional_duration(effect.prefill_due_s),
            ),
            timeout=effect.remaining_s + _DEADLINE_MARGIN_S,
            metadata=_metadata(span),
        )
        outcome = "CANCELLED"
        try:
            completed = False
            async for response in call:
                event = _decode_event(request.request_id, response)
                completed = completed or isinstance(event, DecodeCompleted)
                self._post(event)
            outcome = ""
            if not completed:
                outcome = FailureReason.ENGINE_FAILED
                message = "the decode worker's stream ended early"
                self._post(_failed(effect, FailureReason.ENGINE_FAILED, message))
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
            self._post(_failed(effect, *_reason_of(error)))
        finally:
            call.cancel()
            span.end(outcome)

    async def _prefill(self, effect: StartPrefill, parent: str) -> None:
        request = effect.request
        span = self._span("headway.v1.PrefillService/Prefill", effect.worker_id, parent)
        call = prefill_grpc.PrefillServiceStub(self._newest[effect.worker_id].channel).Prefill(
            prefill_pb.PrefillRequest(
                request_id=request.request_id,
                prompt_token_ids=request.prompt_token_ids,
                target=kv_pb.KvTarget.FromString(effect.kv_handle),
                due=_optional_duration(effect.due_s),
                step_cap=_optional_duration(effect.step_cap_s),
            ),
            timeout=effect.remaining_s + _DEADLINE_MARGIN_S,
            metadata=_metadata(span),
        )
        outcome = "CANCELLED"
        try:
            response = await call
            outcome = ""
            self._post(_computed(request.request_id, response))
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
            self._post(_failed(effect, *_reason_of(error)))
        finally:
            call.cancel()
            span.end(outcome)

    def _span(self, name: str, worker_id: str, parent: str) -> Span:
        return self._telemetry.start_span(
            name, parent=parent, kind="CLIENT", attributes={"headway.worker_id": worker_id}
        )


def _optional_duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to_pb(seconds)


def _metadata(span: Span) -> tuple[tuple[str, str], ...]:
    return (("traceparent", span.traceparent),) if span.traceparent else ()


def _decode_event(request_id: str, response: decode_pb.DecodeResponse) -> Event:
    match response.WhichOneof("event"):
        case "tokens":
            tokens = response.tokens
            return TokensProduced(
                request_id, tokens.first_index, tuple(tokens.token_ids), tokens.text
            )
        case "prefilled":
            return _computed(request_id, response.prefilled)
        case "reserved":
            return DecodeReserved(request_id, response.reserved.target.SerializeToString())
        case "finished":
            return _completed(request_id, response.finished)
        case _:
            reason = FailureReason.ENGINE_FAILED
            message = "the decode worker sent a message this version does not know"
            return AttemptFailed(request_id, WorkerRole.DECODE, reason, message)


def _computed(
    request_id: str, result: prefill_pb.PrefillResponse | decode_pb.Prefilled
) -> PrefillComputed:
    return PrefillComputed(
        request_id=request_id,
        queued_s=duration_from_pb(result.queued),
        computed_s=duration_from_pb(result.computed),
        num_cached_tokens=result.num_cached_tokens,
    )


def _completed(request_id: str, finished: decode_pb.DecodeFinished) -> Event:
    try:
        finish_reason = finish_reason_from_pb(finished.finish_reason)
    except KeyError:
        reason = FailureReason.ENGINE_FAILED
        message = f"unknown finish reason {finished.finish_reason}"
        return AttemptFailed(request_id, WorkerRole.DECODE, reason, message)
    usage = finished.kv_transfer
    return DecodeCompleted(
        request_id=request_id,
        finish_reason=finish_reason,
        num_prompt_tokens_recomputed=finished.num_prompt_tokens_recomputed,
        kv_usage=KvUsage(
            num_bytes=usage.num_bytes,
            duration_s=duration_from_pb(usage.duration),
            overlapped_ratio=usage.overlapped_ratio,
            num_frames=usage.num_frames,
            num_blocks_reused=usage.num_blocks_reused,
        )
        if finished.HasField("kv_transfer")
        else None,
    )


def _failed(
    effect: StartDecode | StartPrefill, reason: FailureReason, message: str
) -> AttemptFailed:
    role = WorkerRole.DECODE if isinstance(effect, StartDecode) else WorkerRole.PREFILL
    text = f"{role.value.lower()} worker {effect.worker_id}: {message}"
    return AttemptFailed(effect.request.request_id, role, reason, text)


def _reason_of(error: grpc.aio.AioRpcError) -> tuple[FailureReason, str]:
    domain_error: HeadwayError = error_from_rpc(error)
    match domain_error:
        case Unavailable() if status_from_rpc(error) is None:
            # No worker said so: the transport did.
            reason = FailureReason.WORKER_LOST
        case Unavailable() | Refused():
            reason = FailureReason.WORKER_UNAVAILABLE
        case KvTransferFailed():
            reason = FailureReason.KV_TRANSFER_FAILED
        case _:
            reason = FailureReason.ENGINE_FAILED
    return reason, str(domain_error)
