"""The controller's effects as messages to clients."""

from __future__ import annotations

from headway.core.effects import SendAdmission, SendFinished, Timings
from headway.core.events import FailureReason, KvUsage
from headway.core.planner.interface import Constraint, Refuse
from headway.core.request import RequestState
from headway.errors import (
    DeadlineExceeded,
    EngineFailed,
    FieldViolation,
    HeadwayError,
    InvalidRequest,
    KvTransferFailed,
    Refused,
    RequestCancelled,
    Unavailable,
)
from headway.rpc.convert import duration_to_pb, finish_reason_to_pb
from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb

_FINAL_STATES = {
    RequestState.SUCCEEDED: pb.FINAL_STATE_SUCCEEDED,
    RequestState.CANCELLED: pb.FINAL_STATE_CANCELLED,
    RequestState.DEADLINE_EXCEEDED: pb.FINAL_STATE_DEADLINE_EXCEEDED,
    RequestState.FAILED: pb.FINAL_STATE_FAILED,
}


def admission_to_pb(admission: SendAdmission) -> pb.Admission:
    """The first message of a stream."""
    request, promise, placement = admission.request, admission.promise, admission.placement
    message = pb.Admission(
        request_id=request.request_id,
        state=(
            pb.ADMISSION_STATE_GUARANTEED if promise is not None else pb.ADMISSION_STATE_BEST_EFFORT
        ),
        tier=request.tier,
        plan_id=admission.plan_id,
        num_prompt_tokens=request.num_prompt_tokens,
    )
    if admission.binding_constraint is not None:
        message.binding_constraint = admission.binding_constraint.value
    if placement is not None:
        message.prefill_worker_id = placement.prefill_worker_id
        message.decode_worker_id = placement.decode_worker_id
        message.predicted_ttft.CopyFrom(duration_to_pb(placement.predicted_ttft_s))
        message.predicted_tpot.CopyFrom(duration_to_pb(placement.predicted_tpot_s))
    if promise is not None:
        message.ttft.CopyFrom(duration_to_pb(promise.ttft_s))
        message.tpot.CopyFrom(duration_to_pb(promise.tightest_tpot_s))
        if placement is not None:
            slack_s = promise.ttft_s - placement.predicted_ttft_s
            message.slack.CopyFrom(duration_to_pb(slack_s))
    return message


def finished_to_pb(finished: SendFinished) -> pb.Finished:
    """The last message of a stream."""
    usage = finished.usage
    message = pb.Finished(
        state=_FINAL_STATES[finished.state],
        error_reason=finished.failure_reason.value if finished.failure_reason else "",
        error_message=finished.message,
        usage=pb.Usage(
            num_prompt_tokens=usage.num_prompt_tokens,
            num_output_tokens=usage.num_output_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_prompt_tokens_recomputed=usage.num_prompt_tokens_recomputed,
        ),
        timings=_timings_to_pb(finished.timings),
    )
    if finished.finish_reason is not None:
        message.finish_reason = finish_reason_to_pb(finished.finish_reason)
    if finished.kv_usage is not None:
        message.kv_transfer.CopyFrom(_kv_usage_to_pb(finished.kv_usage))
    return message


def _timings_to_pb(timings: Timings) -> pb.Timings:
    message = pb.Timings(e2e_latency=duration_to_pb(timings.e2e_latency_s))
    if timings.slo_attained is not None:
        message.slo_attained = timings.slo_attained
    for name in ("queued", "prefill_queued", "prefill", "handover", "ttft", "tpot"):
        seconds: float | None = getattr(timings, f"{name}_s")
        if seconds is not None:
            getattr(message, name).CopyFrom(duration_to_pb(seconds))
    return message


def _kv_usage_to_pb(usage: KvUsage) -> generation_pb2.KvTransferUsage:
    return generation_pb2.KvTransferUsage(
        num_bytes=usage.num_bytes,
        duration=duration_to_pb(usage.duration_s),
        overlapped_ratio=usage.overlapped_ratio,
        num_frames=usage.num_frames,
        num_blocks_reused=usage.num_blocks_reused,
    )


def refusal_error(refusal: Refuse) -> HeadwayError:
    """What a refused request's call ends with."""
    if refusal.binding_constraint is Constraint.NO_WORKER:
        return Unavailable(refusal.message, refusal.retry_after_s)
    if refusal.binding_constraint is Constraint.TOO_LARGE:
        return InvalidRequest([FieldViolation("sampling.max_tokens", refusal.message)])
    return Refused(
        refusal.binding_constraint.value,
        refusal.message,
        refusal.retry_after_s,
        refusal.tier_that_fits,
    )


def final_error(finished: SendFinished) -> HeadwayError | None:
    """What the call ends with after its Finished, so that both agree; None when it succeeded."""
    match finished.state:
        case RequestState.SUCCEEDED:
            return None
        case RequestState.CANCELLED:
            return RequestCancelled(finished.message)
        case RequestState.DEADLINE_EXCEEDED:
            return DeadlineExceeded(finished.message)
        case _:
            return _failure(finished.failure_reason, finished.message)


def _failure(reason: FailureReason | None, message: str) -> HeadwayError:
    error: HeadwayError
    match reason:
        case FailureReason.WORKER_LOST | FailureReason.WORKER_UNAVAILABLE:
            error = Unavailable(message)
        case FailureReason.KV_TRANSFER_FAILED:
            error = KvTransferFailed(message)
        case FailureReason.ENGINE_FAILED | FailureReason.TOKEN_ORDER | None:
            error = EngineFailed(message)
    if reason is not None:
        error.reason = reason.value
    return error
