"""The client's values to protobuf messages and back: all that both clients share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration

from headway.client.events import (
    Admission,
    Capacity,
    Event,
    Finished,
    KvTransfer,
    Tier,
    Timings,
    Tokens,
    Usage,
    WhenNotPromised,
    WorkerCapacity,
)
from headway.core.request import FinishReason, RequestState, Sampling
from headway.core.slo import Slo
from headway.errors import FieldViolation, InvalidRequest
from headway.rpc.convert import (
    duration_from_pb,
    duration_to_pb,
    finish_reason_from_pb,
    load_from_pb,
    role_from_pb,
    sampling_to_pb,
    slo_from_pb,
    slo_to_pb,
)
from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb

_WHEN_NOT_PROMISED: dict[WhenNotPromised, pb.WhenNotPromised] = {
    "best_effort": pb.WHEN_NOT_PROMISED_BEST_EFFORT,
    "refuse": pb.WHEN_NOT_PROMISED_REFUSE,
}
_STATES = {
    pb.FINAL_STATE_SUCCEEDED: RequestState.SUCCEEDED,
    pb.FINAL_STATE_CANCELLED: RequestState.CANCELLED,
    pb.FINAL_STATE_DEADLINE_EXCEEDED: RequestState.DEADLINE_EXCEEDED,
    pb.FINAL_STATE_FAILED: RequestState.FAILED,
}


class GenerateArguments(TypedDict, total=False):
    """What `generate` takes, by keyword. Give exactly one of the first three.

    `tier` names one of `list_tiers()`, `slo` gives the bounds themselves; neither means best
    effort. `max_tokens` 0 leaves it to the server; `temperature` 0 is greedy; `deadline_s` is
    from arrival to the last token. The server checks all of it; see
    proto/headway/v1/inference_service.proto for limits and defaults.
    """

    prompt: str
    prompt_token_ids: Sequence[int]
    messages: Sequence[tuple[str, str]]
    tier: str
    slo: Slo | None
    when_not_promised: WhenNotPromised
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: Sequence[str]
    ignore_eos: bool
    deadline_s: float | None


def request_to_pb(
    *,
    prompt: str = "",
    prompt_token_ids: Sequence[int] = (),
    messages: Sequence[tuple[str, str]] = (),
    tier: str = "",
    slo: Slo | None = None,
    when_not_promised: WhenNotPromised = "best_effort",
    max_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    deadline_s: float | None = None,
) -> pb.GenerateRequest:
    """The request of `GenerateArguments`, with the defaults of all that were left out.

    Raises:
        InvalidRequest: a value that cannot even be sent, for example a negative token id.
    """
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop),
        ignore_eos=ignore_eos,
    )
    request = pb.GenerateRequest(when_not_promised=_WHEN_NOT_PROMISED[when_not_promised])
    with _naming("prompt_text"):
        request.prompt_text = prompt
    with _naming("prompt_token_ids"):
        request.prompt_token_ids.extend(prompt_token_ids)
    with _naming("messages"):
        request.messages.extend(pb.ChatMessage(role=role, content=text) for role, text in messages)
    with _naming("tier"):
        request.tier = tier
    if slo is not None:
        with _naming("slo"):
            request.slo.CopyFrom(slo_to_pb(slo))
    with _naming("sampling"):
        request.sampling.CopyFrom(sampling_to_pb(sampling))
    if deadline_s is not None:
        with _naming("deadline"):
            request.deadline.CopyFrom(duration_to_pb(deadline_s))
    return request


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Say which field holds a value that its type on the wire has no room for."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise InvalidRequest([FieldViolation(field, str(error))]) from error


def event_from_pb(response: pb.GenerateResponse) -> Event | None:
    """One event of the stream; None for a kind this version does not know."""
    match response.WhichOneof("event"):
        case "admission":
            return _admission_from_pb(response.admission)
        case "tokens":
            tokens = response.tokens
            return Tokens(tokens.first_index, tuple(tokens.token_ids), tokens.text)
        case "finished":
            return _finished_from_pb(response.finished)
        case _:
            return None


def _seconds(present: bool, duration: Duration) -> float | None:
    return duration_from_pb(duration) if present else None


def _admission_from_pb(admission: pb.Admission) -> Admission:
    return Admission(
        request_id=admission.request_id,
        guaranteed=admission.state == pb.ADMISSION_STATE_GUARANTEED,
        tier=admission.tier,
        ttft_s=_seconds(admission.HasField("ttft"), admission.ttft),
        tpot_s=_seconds(admission.HasField("tpot"), admission.tpot),
        predicted_ttft_s=_seconds(admission.HasField("predicted_ttft"), admission.predicted_ttft),
        predicted_tpot_s=_seconds(admission.HasField("predicted_tpot"), admission.predicted_tpot),
        slack_s=_seconds(admission.HasField("slack"), admission.slack),
        plan_id=admission.plan_id,
        prefill_worker_id=admission.prefill_worker_id,
        decode_worker_id=admission.decode_worker_id,
        num_prompt_tokens=admission.num_prompt_tokens,
        binding_constraint=admission.binding_constraint,
    )


def _finished_from_pb(finished: pb.Finished) -> Finished:
    usage, timings = finished.usage, finished.timings
    error_reason, error_message = finished.error_reason, finished.error_message
    if finished.state not in _STATES:
        error_reason = error_reason or "UNKNOWN_STATE"
        error_message = error_message or f"ended in state {finished.state}, unknown to this client"
    return Finished(
        state=_STATES.get(finished.state, RequestState.FAILED),
        finish_reason=_finish_reason_from_pb(finished.finish_reason),
        error_reason=error_reason,
        error_message=error_message,
        usage=Usage(
            num_prompt_tokens=usage.num_prompt_tokens,
            num_output_tokens=usage.num_output_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_prompt_tokens_recomputed=usage.num_prompt_tokens_recomputed,
        ),
        timings=Timings(
            queued_s=_seconds(timings.HasField("queued"), timings.queued),
            prefill_queued_s=_seconds(timings.HasField("prefill_queued"), timings.prefill_queued),
            prefill_s=_seconds(timings.HasField("prefill"), timings.prefill),
            handover_s=_seconds(timings.HasField("handover"), timings.handover),
            ttft_s=_seconds(timings.HasField("ttft"), timings.ttft),
            tpot_s=_seconds(timings.HasField("tpot"), timings.tpot),
            e2e_latency_s=_seconds(timings.HasField("e2e_latency"), timings.e2e_latency),
            slo_attained=timings.slo_attained if timings.HasField("slo_attained") else None,
        ),
        kv_transfer=(
            _kv_transfer_from_pb(finished.kv_transfer) if finished.HasField("kv_transfer") else None
        ),
    )


def _finish_reason_from_pb(reason: generation_pb2.FinishReason) -> FinishReason | None:
    try:
        return finish_reason_from_pb(reason)
    except KeyError:
        return None


def _kv_transfer_from_pb(usage: generation_pb2.KvTransferUsage) -> KvTransfer:
    return KvTransfer(
        num_bytes=usage.num_bytes,
        duration_s=duration_from_pb(usage.duration),
        overlapped_ratio=usage.overlapped_ratio,
        num_frames=usage.num_frames,
        num_blocks_reused=usage.num_blocks_reused,
    )


def tiers_from_pb(response: pb.ListTiersResponse) -> tuple[Tier, ...]:
    return tuple(
        Tier(tier.name, slo_from_pb(tier.slo) if tier.HasField("slo") else None)
        for tier in response.tiers
    )


def capacity_from_pb(response: pb.GetCapacityResponse) -> Capacity:
    """Without workers in a role that this version does not know."""
    workers = (_worker_from_pb(worker) for worker in response.workers)
    return Capacity(
        model=response.model,
        workers=tuple(worker for worker in workers if worker is not None),
        num_best_effort_queued=response.num_best_effort_queued,
        num_requests_running=response.num_requests_running,
    )


def _worker_from_pb(worker: pb.WorkerCapacity) -> WorkerCapacity | None:
    try:
        role = role_from_pb(worker.role)
    except KeyError:
        return None
    return WorkerCapacity(
        worker_id=worker.worker_id,
        role=role,
        num_kv_blocks=worker.num_kv_blocks,
        load=load_from_pb(worker.load),
        backlog_s=duration_from_pb(worker.backlog),
        prefills_locally=worker.prefills_locally,
    )
