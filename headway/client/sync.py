"""The blocking client: `AsyncClient` for programs without an event loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Self, Unpack

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
from headway.rpc.server import CHANNEL_OPTIONS
from headway.v1 import inference_service_pb2 as pb
from headway.v1.inference_service_pb2_grpc import InferenceServiceStub


class Client:
    """Talks to one controller. Use it as a context manager, or call `close`.

    Methods, arguments and errors are those of `AsyncClient`.
    """

    def __init__(self, address: str, telemetry: Telemetry | None = None) -> None:
        self._telemetry = telemetry or NullTelemetry()
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = InferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End running requests and the connection."""
        self._channel.close()

    def generate(self, **arguments: Unpack[GenerateArguments]) -> Generator[Event]:
        """As `AsyncClient.generate`; closing the generator cancels the request."""
        return self._events(request_to_pb(**arguments))

    def _events(self, request: pb.GenerateRequest) -> Generator[Event]:
        span = start_request_span(self._telemetry)
        error_reason = RequestCancelled.reason
        finished = False
        call = self._stub.Generate(request, metadata=trace_metadata(span))
        try:
            for response in call:
                event = event_from_pb(response)
                if isinstance(event, Finished):
                    finished, error_reason = True, outcome(event)
                if event is not None:
                    yield event
            if not finished:
                error_reason = Unavailable.reason
                raise Unavailable("the stream ended before the request did")
        except grpc.RpcError as error:
            # After Finished the status only repeats what Finished said.
            if not finished:
                failure = error_from_rpc(error)
                error_reason = failure.reason
                raise failure from error
        finally:
            call.cancel()
            span.end(error_reason)

    def cancel(self, request_id: str) -> None:
        """As `AsyncClient.cancel`."""
        with _domain_errors():
            self._stub.Cancel(pb.CancelRequest(request_id=request_id))

    def list_tiers(self) -> tuple[Tier, ...]:
        """As `AsyncClient.list_tiers`."""
        with _domain_errors():
            return tiers_from_pb(self._stub.ListTiers(pb.ListTiersRequest()))

    def capacity(self) -> Capacity:
        """As `AsyncClient.capacity`."""
        with _domain_errors():
            return capacity_from_pb(self._stub.GetCapacity(pb.GetCapacityRequest()))


@contextmanager
def _domain_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
