"""The client's values to protobuf messages and back: all that both clients share."""

from __future__ import annotations

from collections.abc import Sequence
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
from headway.core.request import RequestState, Sampling
from headway.core.slo import Slo, StageSlo
from headway.rpc.convert import (
    duration_from_pb,
    duration_to_pb,
    finish_reason_from_pb,
    load_from_pb,
    role_from_pb,
    sampling_to_pb,
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
    """The request of `GenerateArguments`, with the defaults of all that were left out."""
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop),
        ignore_eos=ignore_eos,
    )
    return pb.GenerateRequest(
        prompt_text=prompt,
        prompt_token_ids=prompt_token_ids,
        messages=[pb.ChatMessage(role=role, content=content) for role, content in messages],
        tier=tier,
        slo=_slo_to_pb(slo) if slo else None,
        when_not_promised=_WHEN_NOT_PROMISED[when_not_promised],
        sampling=sampling_to_pb(sampling),
        deadline=duration_to_pb(deadline_s) if deadline_s is not None else None,
    )


def _slo_to_pb(slo: Slo) -> pb.Slo:
    stages = [
        pb.StageSlo(
            tpot=duration_to_pb(stage.tpot_s),
            end_token_id=stage.end_token_id,
            end_after_tokens=stage.end_after_tokens,
        )
        for stage in slo.stages
    ]
    if slo.ttft_s is not None:
        stages[0].ttft.CopyFrom(duration_to_pb(slo.ttft_s))
    elif slo.ttft_slowdown is not None:
        stages[0].ttft_slowdown = slo.ttft_slowdown
    return pb.Slo(stages=stages)


def _slo_from_pb(slo: pb.Slo) -> Slo:
    first = slo.stages[0]
    return Slo(
        stages=tuple(
            StageSlo(
                tpot_s=duration_from_pb(stage.tpot),
                end_token_id=stage.end_token_id if stage.HasField("end_token_id") else None,
                end_after_tokens=(
                    stage.end_after_tokens if stage.HasField("end_after_tokens") else None
                ),
            )
            for stage in slo.stages
        ),
        ttft_s=duration_from_pb(first.ttft) if first.HasField("ttft") else None,
        ttft_slowdown=first.ttft_slowdown if first.HasField("ttft_slowdown") else None,
    )


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
    return Finished(
        state=_STATES[finished.state],
        finish_reason=(
            finish_reason_from_pb(finished.finish_reason) if finished.finish_reason else None
        ),
        error_reason=finished.error_reason,
        error_message=finished.error_message,
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
        Tier(tier.name, _slo_from_pb(tier.slo) if tier.HasField("slo") else None)
        for tier in response.tiers
    )


def capacity_from_pb(response: pb.GetCapacityResponse) -> Capacity:
    return Capacity(
        model=response.model,
        workers=tuple(
            WorkerCapacity(
                worker_id=worker.worker_id,
                role=role_from_pb(worker.role),
                num_kv_blocks=worker.num_kv_blocks,
                load=load_from_pb(worker.load),
                backlog_s=duration_from_pb(worker.backlog),
            )
            for worker in response.workers
        ),
        num_best_effort_queued=response.num_best_effort_queued,
        num_requests_running=response.num_requests_running,
    )
