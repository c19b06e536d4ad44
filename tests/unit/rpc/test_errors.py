"""Every error crosses a real gRPC socket and comes back as what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from headway import errors
from headway.rpc.errors import CODES, domain_errors, error_from_rpc, to_status
from headway.rpc.server import Server, open_channel
from headway.v1 import inference_service_pb2 as pb
from headway.v1 import inference_service_pb2_grpc as pb_grpc

CASES: list[errors.HeadwayError] = [
    errors.InvalidRequest(
        [errors.FieldViolation("tier", "unknown"), errors.FieldViolation("slo", "not both")]
    ),
    errors.NotFound("no such request"),
    errors.Refused("PREFILL_TIME", "too busy", retry_after_s=2.5, tier_that_fits="slow"),
    errors.Refused("QUEUE_FULL", "too many", retry_after_s=0.25),
    errors.Unavailable("draining", retry_after_s=3.0),
    errors.PermissionDenied("wrong ticket"),
    errors.LayoutMismatch("other model"),
    errors.KvTransferFailed("checksum"),
    errors.DeadlineExceeded("too late"),
    errors.RequestCancelled("by its client"),
    errors.EngineFailed("engine ended"),
]


class _Raises(pb_grpc.InferenceServiceServicer):
    def __init__(self, error: errors.HeadwayError) -> None:
        self._error = error

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        async with domain_errors(context):
            raise self._error
        yield pb.GenerateResponse()

    async def Cancel(
        self, request: pb.CancelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelResponse:
        raise NotImplementedError

    async def ListTiers(
        self, request: pb.ListTiersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListTiersResponse:
        raise NotImplementedError

    async def GetCapacity(
        self, request: pb.GetCapacityRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetCapacityResponse:
        raise NotImplementedError


def test_every_error_that_crosses_a_wire_has_a_case_and_a_code() -> None:
    kinds = {type(case) for case in CASES}
    assert set(CODES) == kinds
    assert set(errors.HeadwayError.__subclasses__()) - kinds == {
        errors.ConfigError,
        errors.StackFailed,
    }


async def _received(error: errors.HeadwayError) -> grpc.aio.AioRpcError:
    """What a client sees when a server raises the error."""
    server = Server(["headway.v1.InferenceService"])
    pb_grpc.add_InferenceServiceServicer_to_server(_Raises(error), server.grpc)
    address = await server.listen("127.0.0.1:0")
    try:
        async with open_channel(address) as channel:
            call = pb_grpc.InferenceServiceStub(channel).Generate(pb.GenerateRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        return caught.value
    finally:
        await server.stop(0)


@pytest.mark.parametrize("error", CASES, ids=lambda e: f"{type(e).__name__}-{e.reason}")
async def test_an_error_comes_back_as_it_was_raised(error: errors.HeadwayError) -> None:
    received = await _received(error)
    back = error_from_rpc(received)
    assert received.code() == CODES[type(error)]
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("violations", "retry_after_s", "tier_that_fits"):
        assert getattr(back, name, None) == getattr(error, name, None)
    if isinstance(error, errors.Refused):
        assert back.reason == error.reason


# Every character of the second takes twelve bytes where gRPC percent-encodes it.
@pytest.mark.parametrize("text", ["x" * 5000, "\N{GRINNING FACE}" * 5000], ids=["ascii", "emoji"])
async def test_however_much_is_wrong_the_client_hears_of_it(text: str) -> None:
    error = errors.InvalidRequest([errors.FieldViolation(text, text)] * 1000)
    status = to_status(error)
    assert status.ByteSize() + len(status.message.encode()) < 6 * 1024
    back = error_from_rpc(await _received(error))
    assert isinstance(back, errors.InvalidRequest)
    *told, last = back.violations
    assert len(told) == 19
    assert all(text.startswith(violation.description.removesuffix("...")) for violation in told)
    assert last == errors.FieldViolation("", "and 981 more")


def test_as_many_violations_as_fit_are_all_told() -> None:
    violations = [errors.FieldViolation(f"stop[{i}]", "too long") for i in range(20)]
    _, packed = to_status(errors.InvalidRequest(violations)).details
    bad_request = error_details_pb2.BadRequest()
    packed.Unpack(bad_request)
    assert [v.field for v in bad_request.field_violations] == [v.field for v in violations]
