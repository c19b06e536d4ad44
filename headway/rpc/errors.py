"""HeadwayError to gRPC status with rich details, and back. The only place that knows both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from headway import errors
from headway.rpc.convert import duration_from_pb, duration_to_pb

DOMAIN = "headway"

CODES: dict[type[errors.HeadwayError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Refused: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.LayoutMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.KvTransferFailed: grpc.StatusCode.DATA_LOSS,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.RequestCancelled: grpc.StatusCode.CANCELLED,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
}
_CODE_NUMBERS = {code: code.value[0] for code in grpc.StatusCode}

# A status travels in trailing metadata, where gRPC lets a peer drop the call beyond 8 KiB. The
# message travels twice, once of it percent-encoded to up to three times its size.
_MAX_MESSAGE_BYTES = 500
_MAX_VIOLATIONS = 20
_MAX_FIELD_BYTES = 40
_MAX_DESCRIPTION_BYTES = 200


def to_status(error: errors.HeadwayError) -> status_pb2.Status:
    """The error as google.rpc.Status: always an ErrorInfo, and what else its kind carries.

    Long texts and long lists of violations are shortened, so that every status arrives.
    """
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Message] = [info]
    match error:
        case errors.InvalidRequest():
            bad_request = error_details_pb2.BadRequest()
            for violation in _first_violations(error.violations):
                bad_request.field_violations.add(
                    field=_shortened(violation.field, _MAX_FIELD_BYTES),
                    description=_shortened(violation.description, _MAX_DESCRIPTION_BYTES),
                )
            details.append(bad_request)
        case errors.Refused() | errors.Unavailable():
            if isinstance(error, errors.Refused) and error.tier_that_fits is not None:
                info.metadata["tier_that_fits"] = error.tier_that_fits
            details.append(
                error_details_pb2.RetryInfo(retry_delay=duration_to_pb(error.retry_after_s))
            )
        case _:
            pass
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    message = _shortened(str(error), _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=_CODE_NUMBERS[code], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _first_violations(
    violations: Sequence[errors.FieldViolation],
) -> Sequence[errors.FieldViolation]:
    """At most `_MAX_VIOLATIONS`; the last one counts those that were left out."""
    num_more = len(violations) - _MAX_VIOLATIONS + 1
    if num_more <= 1:
        return violations
    more = errors.FieldViolation("", f"and {num_more} more")
    return [*violations[: _MAX_VIOLATIONS - 1], more]


def _shortened(text: str, max_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    ellipsis = "..."
    return encoded[: max_bytes - len(ellipsis)].decode(errors="ignore") + ellipsis


async def abort_with(
    context: grpc.aio.ServicerContext[Any, Any], error: errors.HeadwayError
) -> None:
    """End the RPC with the error's status. Raises, as grpc's own abort does."""
    # grpc_status gives no aio form; its Status carries exactly what aio's abort needs.
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


@asynccontextmanager
async def domain_errors(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Turn a HeadwayError raised in the block into the RPC's final status."""
    try:
        yield
    except errors.HeadwayError as error:
        await abort_with(context, error)


DetailT = TypeVar("DetailT", bound=Message)


def _detail(status: status_pb2.Status | None, kind: type[DetailT]) -> DetailT | None:
    for packed in status.details if status else ():
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def error_from_rpc(error: grpc.RpcError) -> errors.HeadwayError:
    """What a server said, as the error it raised; works for grpc's sync and asyncio errors."""
    code: grpc.StatusCode = error.code()
    text: str = error.details() or code.name
    status = status_from_rpc(error)
    info = _detail(status, error_details_pb2.ErrorInfo)
    retry = _detail(status, error_details_pb2.RetryInfo)
    retry_after_s = duration_from_pb(retry.retry_delay) if retry else 1.0
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            bad_request = _detail(status, error_details_pb2.BadRequest)
            violations = bad_request.field_violations if bad_request else ()
            return errors.InvalidRequest(
                [errors.FieldViolation(v.field, v.description) for v in violations]
                or [errors.FieldViolation("", text)]
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if info:
            tier = info.metadata.get("tier_that_fits")
            return errors.Refused(info.reason, text, retry_after_s, tier)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Said by gRPC itself, of a message above its limit: to come back would not help.
            return errors.InvalidRequest([errors.FieldViolation("", text)])
        case grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable(text, retry_after_s)
        case _:
            return _SIMPLE.get(code, errors.HeadwayError)(text)


_SIMPLE: dict[grpc.StatusCode, type[errors.HeadwayError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: errors.LayoutMismatch,
    grpc.StatusCode.DATA_LOSS: errors.KvTransferFailed,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.RequestCancelled,
    grpc.StatusCode.INTERNAL: errors.EngineFailed,
}

_DETAILS_KEY = "grpc-status-details-bin"


def status_from_rpc(error: grpc.RpcError) -> status_pb2.Status | None:
    """The google.rpc.Status in the trailing metadata; None when the peer sent none."""
    # The published stubs describe one metadatum where grpc returns all of them.
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            status: status_pb2.Status = status_pb2.Status.FromString(value)
            return status
    return None


assert set(_CODE_NUMBERS.values()) <= set(code_pb2.Code.values())
