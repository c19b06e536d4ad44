"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import Self, TypeVar, Unpack

import grpc

from headway.adapters.null_telemetry import NullTelemetry
from headway.client.convert import (
    GenerateArguments,
    capacity_from_pb,
    event_from_pb,
    request_to_pb,
    tiers_from_pb,
)
from headway.client.events import Capacity, Event, Finished, Tier
from headway.client.tracing import outcome, start_request_span, trace_metadata
from headway.errors import RequestCancelled, Unavailable
from headway.ports.telemetry import Telemetry
from headway.rpc.errors import error_from_rpc
from headway.rpc.server import open_channel
from headway.v1 import inference_service_pb2 as pb
from headway.v1.inference_service_pb2_grpc import InferenceServiceStub

ResponseT = TypeVar("ResponseT")


class AsyncClient:
    """Talks to one controller. Use it as an async context manager, or call `close`.

    Example:
        async with AsyncClient("127.0.0.1:7400") as client:
            async for event in client.generate(prompt="Hello", tier="chat"):
                ...
    """

    def __init__(self, address: str, telemetry: Telemetry | None = None) -> None:
        """Open no connection yet. With `telemetry`, each request is a CLIENT span."""
        self._telemetry = telemetry or NullTelemetry()
        self._channel = open_channel(address)
        self._stub = InferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End running requests and the connection."""
        await self._channel.close()

    def generate(self, **arguments: Unpack[GenerateArguments]) -> AsyncGenerator[Event]:
        """Yield one Admission, any number of Tokens, one Finished.

        Nothing is sent before the first event is asked for. Closing the generator, or
        cancelling the task that reads it, cancels the request on the whole cluster.

        Raises:
            InvalidRequest: it can never be served; carries every violation.
            Refused: the bounds cannot be promised now; carries why and when to come back.
            Unavailable: no controller or no worker serves.
            HeadwayError: another one, when the request ended without a Finished.
        """
        return self._events(request_to_pb(**arguments))

    async def _events(self, request: pb.GenerateRequest) -> AsyncGenerator[Event]:
        span = start_request_span(self._telemetry)
        error_reason = RequestCancelled.reason
        finished = False
        call = self._stub.Generate(request, metadata=trace_metadata(span))
        try:
            async for response in call:
                event = event_from_pb(response)
                if isinstance(event, Finished):
                    finished, error_reason = True, outcome(event)
                if event is not None:
                    yield event
            if not finished:
                error_reason = Unavailable.reason
                raise Unavailable("the stream ended before the request did")
        except grpc.aio.AioRpcError as error:
            # After Finished the status only repeats what Finished said.
            if not finished:
                failure = error_from_rpc(error)
                error_reason = failure.reason
                raise failure from error
        finally:
            call.cancel()
            span.end(error_reason)

    async def cancel(self, request_id: str) -> None:
        """End a request early; its stream still ends with a Finished.

        Raises:
            NotFound: no such request is running.
        """
        await _answer(self._stub.Cancel(pb.CancelRequest(request_id=request_id)))

    async def list_tiers(self) -> tuple[Tier, ...]:
        """The tiers a request may name.

        Raises:
            Unavailable: no controller serves.
        """
        return tiers_from_pb(await _answer(self._stub.ListTiers(pb.ListTiersRequest())))

    async def capacity(self) -> Capacity:
        """What the cluster holds now.

        Raises:
            Unavailable: no controller serves.
        """
        return capacity_from_pb(await _answer(self._stub.GetCapacity(pb.GetCapacityRequest())))


async def _answer(call: Awaitable[ResponseT]) -> ResponseT:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
