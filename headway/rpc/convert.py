"""Core types to protobuf messages and back. Nothing here checks what a client sent."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headway.core.cluster import ResourceCounters, WorkerLoad, WorkerRole, WorkerSpec
from headway.core.perf_model import PerfModel
from headway.core.request import FinishReason, Sampling
from headway.core.slo import Promise, Slo, StageSlo
from headway.ports.engine import KvTarget, KvTransferRecord
from headway.v1 import (
    control_service_pb2,
    decode_service_pb2,
    generation_pb2,
    inference_service_pb2,
    kv_transfer_service_pb2,
)

_ROLES = {
    WorkerRole.PREFILL: generation_pb2.WORKER_ROLE_PREFILL,
    WorkerRole.DECODE: generation_pb2.WORKER_ROLE_DECODE,
}
_ROLES_BACK = {value: role for role, value in _ROLES.items()}
_FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}
_FINISH_REASONS_BACK = {value: reason for reason, value in _FINISH_REASONS.items()}


def duration_to_pb(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def duration_from_pb(duration: Duration) -> float:
    return float(duration.ToNanoseconds()) / 1e9


def optional_duration_from_pb(message: Message, field: str) -> float | None:
    """Seconds in a Duration field of a message; None where it is not set."""
    return duration_from_pb(getattr(message, field)) if message.HasField(field) else None


def role_to_pb(role: WorkerRole) -> generation_pb2.WorkerRole:
    return _ROLES[role]


def role_from_pb(role: generation_pb2.WorkerRole) -> WorkerRole:
    """Raises KeyError for a role this version does not know."""
    return _ROLES_BACK[role]


def finish_reason_to_pb(reason: FinishReason) -> generation_pb2.FinishReason:
    return _FINISH_REASONS[reason]


def finish_reason_from_pb(reason: generation_pb2.FinishReason) -> FinishReason:
    """Raises KeyError for a reason this version does not know."""
    return _FINISH_REASONS_BACK[reason]


def slo_to_pb(slo: Slo) -> inference_service_pb2.Slo:
    stages = [
        inference_service_pb2.StageSlo(
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
    return inference_service_pb2.Slo(stages=stages)


def slo_from_pb(slo: inference_service_pb2.Slo) -> Slo:
    """Of an SLO that was checked, or comes from a controller: its bounds can be."""
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


def demand_to_pb(promise: Promise) -> decode_service_pb2.Demand:
    """Args: promise: its TTFT counts from now."""
    return decode_service_pb2.Demand(
        first_token=duration_to_pb(promise.ttft_s),
        stages=[
            decode_service_pb2.DemandStage(
                tpot=duration_to_pb(stage.tpot_s),
                end_token_id=stage.end_token_id,
                end_after_tokens=stage.end_after_tokens,
            )
            for stage in promise.stages
        ],
    )


def demand_from_pb(demand: decode_service_pb2.Demand) -> Promise:
    """Raises ValueError for stages that cannot be."""
    stages = tuple(
        StageSlo(
            tpot_s=duration_from_pb(stage.tpot),
            end_token_id=stage.end_token_id if stage.HasField("end_token_id") else None,
            end_after_tokens=stage.end_after_tokens if stage.HasField("end_after_tokens") else None,
        )
        for stage in demand.stages
    )
    if not stages or stages[-1].has_end or not all(stage.has_end for stage in stages[:-1]):
        raise ValueError("every stage but the last needs an end, and the last has none")
    return Promise(duration_from_pb(demand.first_token), stages)


def sampling_to_pb(sampling: Sampling) -> generation_pb2.SamplingParams:
    return generation_pb2.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_pb(params: generation_pb2.SamplingParams) -> Sampling:
    return Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        top_k=params.top_k,
        seed=params.seed if params.HasField("seed") else None,
        stop=tuple(params.stop),
        ignore_eos=params.ignore_eos,
    )


def target_to_pb(target: KvTarget) -> kv_transfer_service_pb2.KvTarget:
    return kv_transfer_service_pb2.KvTarget(
        address=target.address, transfer_id=target.transfer_id, ticket=target.ticket
    )


def target_from_pb(target: kv_transfer_service_pb2.KvTarget) -> KvTarget:
    return KvTarget(target.address, target.transfer_id, target.ticket)


def usage_to_pb(record: KvTransferRecord) -> generation_pb2.KvTransferUsage:
    return generation_pb2.KvTransferUsage(
        num_bytes=record.num_bytes,
        duration=duration_to_pb(record.duration_s),
        overlapped_ratio=record.overlapped_ratio,
        num_frames=record.num_frames,
        num_blocks_reused=record.num_blocks_reused,
    )


def resources_to_pb(counters: ResourceCounters) -> generation_pb2.ResourceCounters:
    return generation_pb2.ResourceCounters(
        num_slots_created=counters.num_slots_created,
        num_slots_released=counters.num_slots_released,
        num_kv_blocks_created=counters.num_kv_blocks_created,
        num_kv_blocks_released=counters.num_kv_blocks_released,
        num_staged_pages_created=counters.num_staged_pages_created,
        num_staged_pages_released=counters.num_staged_pages_released,
    )


def resources_from_pb(counters: generation_pb2.ResourceCounters) -> ResourceCounters:
    return ResourceCounters(
        num_slots_created=counters.num_slots_created,
        num_slots_released=counters.num_slots_released,
        num_kv_blocks_created=counters.num_kv_blocks_created,
        num_kv_blocks_released=counters.num_kv_blocks_released,
        num_staged_pages_created=counters.num_staged_pages_created,
        num_staged_pages_released=counters.num_staged_pages_released,
    )


def load_to_pb(load: WorkerLoad) -> generation_pb2.WorkerLoad:
    return generation_pb2.WorkerLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_free_kv_blocks=load.num_free_kv_blocks,
        resources=resources_to_pb(load.resources),
        draining=load.draining,
        step_time_ratio=load.step_time_ratio,
    )


def load_from_pb(load: generation_pb2.WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_free_kv_blocks=load.num_free_kv_blocks,
        resources=resources_from_pb(load.resources),
        draining=load.draining,
        step_time_ratio=load.step_time_ratio,
    )


def _perf_model_to_pb(model: PerfModel) -> control_service_pb2.PerfModel:
    return control_service_pb2.PerfModel(
        floor_s=model.floor_s,
        token_s=model.token_s,
        fixed_s=model.fixed_s,
        sequence_s=model.sequence_s,
        context_token_s=model.context_token_s,
        prefill_attention_s=model.prefill_attention_s,
        chunk_s=model.chunk_s,
    )


def _perf_model_from_pb(model: control_service_pb2.PerfModel) -> PerfModel:
    return PerfModel(
        floor_s=model.floor_s,
        token_s=model.token_s,
        fixed_s=model.fixed_s,
        sequence_s=model.sequence_s,
        context_token_s=model.context_token_s,
        prefill_attention_s=model.prefill_attention_s,
        chunk_s=model.chunk_s,
    )


def register_to_pb(spec: WorkerSpec) -> control_service_pb2.Register:
    return control_service_pb2.Register(
        worker_id=spec.worker_id,
        incarnation=spec.incarnation,
        role=role_to_pb(spec.role),
        address=spec.address,
        model=spec.model,
        max_model_len=spec.max_model_len,
        kv_block_size=spec.kv_block_size,
        num_kv_blocks=spec.num_kv_blocks,
        max_step_tokens=spec.max_step_tokens,
        max_num_running=spec.max_num_running,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        perf_model=_perf_model_to_pb(spec.perf_model),
        forms_steps_by_deadline=spec.forms_steps_by_deadline,
        prefills_locally=spec.prefills_locally,
    )


def register_from_pb(register: control_service_pb2.Register) -> WorkerSpec:
    """Raises KeyError for an unknown role, ValueError for a perf model that cannot be."""
    return WorkerSpec(
        worker_id=register.worker_id,
        incarnation=register.incarnation,
        role=role_from_pb(register.role),
        address=register.address,
        model=register.model,
        max_model_len=register.max_model_len,
        kv_block_size=register.kv_block_size,
        num_kv_blocks=register.num_kv_blocks,
        max_step_tokens=register.max_step_tokens,
        max_num_running=register.max_num_running,
        kv_bytes_per_token=register.kv_bytes_per_token,
        perf_model=_perf_model_from_pb(register.perf_model),
        forms_steps_by_deadline=register.forms_steps_by_deadline,
        prefills_locally=register.prefills_locally,
    )
