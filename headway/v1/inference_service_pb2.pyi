import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WhenNotPromised(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WHEN_NOT_PROMISED_UNSPECIFIED: _ClassVar[WhenNotPromised]
    WHEN_NOT_PROMISED_BEST_EFFORT: _ClassVar[WhenNotPromised]
    WHEN_NOT_PROMISED_REFUSE: _ClassVar[WhenNotPromised]

class AdmissionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADMISSION_STATE_UNSPECIFIED: _ClassVar[AdmissionState]
    ADMISSION_STATE_GUARANTEED: _ClassVar[AdmissionState]
    ADMISSION_STATE_BEST_EFFORT: _ClassVar[AdmissionState]

class FinalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINAL_STATE_UNSPECIFIED: _ClassVar[FinalState]
    FINAL_STATE_SUCCEEDED: _ClassVar[FinalState]
    FINAL_STATE_CANCELLED: _ClassVar[FinalState]
    FINAL_STATE_DEADLINE_EXCEEDED: _ClassVar[FinalState]
    FINAL_STATE_FAILED: _ClassVar[FinalState]
WHEN_NOT_PROMISED_UNSPECIFIED: WhenNotPromised
WHEN_NOT_PROMISED_BEST_EFFORT: WhenNotPromised
WHEN_NOT_PROMISED_REFUSE: WhenNotPromised
ADMISSION_STATE_UNSPECIFIED: AdmissionState
ADMISSION_STATE_GUARANTEED: AdmissionState
ADMISSION_STATE_BEST_EFFORT: AdmissionState
FINAL_STATE_UNSPECIFIED: FinalState
FINAL_STATE_SUCCEEDED: FinalState
FINAL_STATE_CANCELLED: FinalState
FINAL_STATE_DEADLINE_EXCEEDED: FinalState
FINAL_STATE_FAILED: FinalState

class GenerateRequest(_message.Message):
    __slots__ = ("prompt_text", "prompt_token_ids", "messages", "tier", "slo", "when_not_promised", "sampling", "deadline")
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    WHEN_NOT_PROMISED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    prompt_text: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    tier: str
    slo: Slo
    when_not_promised: WhenNotPromised
    sampling: _generation_pb2.SamplingParams
    deadline: _duration_pb2.Duration
    def __init__(self, prompt_text: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., tier: _Optional[str] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., when_not_promised: _Optional[_Union[WhenNotPromised, str]] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("stages",)
    STAGES_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageSlo]
    def __init__(self, stages: _Optional[_Iterable[_Union[StageSlo, _Mapping]]] = ...) -> None: ...

class StageSlo(_message.Message):
    __slots__ = ("ttft", "ttft_slowdown", "tpot", "end_token_id", "end_after_tokens")
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    TPOT_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    END_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ttft: _duration_pb2.Duration
    ttft_slowdown: float
    tpot: _duration_pb2.Duration
    end_token_id: int
    end_after_tokens: int
    def __init__(self, ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttft_slowdown: _Optional[float] = ..., tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., end_token_id: _Optional[int] = ..., end_after_tokens: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("admission", "tokens", "finished")
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    admission: Admission
    tokens: _generation_pb2.TokenChunk
    finished: Finished
    def __init__(self, admission: _Optional[_Union[Admission, _Mapping]] = ..., tokens: _Optional[_Union[_generation_pb2.TokenChunk, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("request_id", "state", "tier", "ttft", "tpot", "predicted_ttft", "predicted_tpot", "slack", "plan_id", "prefill_worker_id", "decode_worker_id", "num_prompt_tokens", "binding_constraint")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TPOT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_FIELD_NUMBER: _ClassVar[int]
    SLACK_FIELD_NUMBER: _ClassVar[int]
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BINDING_CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    state: AdmissionState
    tier: str
    ttft: _duration_pb2.Duration
    tpot: _duration_pb2.Duration
    predicted_ttft: _duration_pb2.Duration
    predicted_tpot: _duration_pb2.Duration
    slack: _duration_pb2.Duration
    plan_id: str
    prefill_worker_id: str
    decode_worker_id: str
    num_prompt_tokens: int
    binding_constraint: str
    def __init__(self, request_id: _Optional[str] = ..., state: _Optional[_Union[AdmissionState, str]] = ..., tier: _Optional[str] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predicted_ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predicted_tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slack: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., plan_id: _Optional[str] = ..., prefill_worker_id: _Optional[str] = ..., decode_worker_id: _Optional[str] = ..., num_prompt_tokens: _Optional[int] = ..., binding_constraint: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("state", "finish_reason", "error_reason", "error_message", "usage", "timings", "kv_transfer")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_FIELD_NUMBER: _ClassVar[int]
    state: FinalState
    finish_reason: _generation_pb2.FinishReason
    error_reason: str
    error_message: str
    usage: Usage
    timings: Timings
    kv_transfer: _generation_pb2.KvTransferUsage
    def __init__(self, state: _Optional[_Union[FinalState, str]] = ..., finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., error_reason: _Optional[str] = ..., error_message: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., kv_transfer: _Optional[_Union[_generation_pb2.KvTransferUsage, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_prompt_tokens_recomputed")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_prompt_tokens_recomputed: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., num_prompt_tokens_recomputed: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued", "prefill_queued", "prefill", "handover", "ttft", "tpot", "e2e_latency", "slo_attained")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TPOT_FIELD_NUMBER: _ClassVar[int]
    E2E_LATENCY_FIELD_NUMBER: _ClassVar[int]
    SLO_ATTAINED_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    prefill_queued: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    handover: _duration_pb2.Duration
    ttft: _duration_pb2.Duration
    tpot: _duration_pb2.Duration
    e2e_latency: _duration_pb2.Duration
    slo_attained: bool
    def __init__(self, queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill_queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., handover: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., e2e_latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slo_attained: bool = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTiersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTiersResponse(_message.Message):
    __slots__ = ("tiers",)
    TIERS_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    def __init__(self, tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("name", "slo")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    name: str
    slo: Slo
    def __init__(self, name: _Optional[str] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ...) -> None: ...

class GetCapacityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapacityResponse(_message.Message):
    __slots__ = ("model", "workers", "num_best_effort_queued", "num_requests_running")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_BEST_EFFORT_QUEUED_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    model: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerCapacity]
    num_best_effort_queued: int
    num_requests_running: int
    def __init__(self, model: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerCapacity, _Mapping]]] = ..., num_best_effort_queued: _Optional[int] = ..., num_requests_running: _Optional[int] = ...) -> None: ...

class WorkerCapacity(_message.Message):
    __slots__ = ("worker_id", "role", "num_kv_blocks", "load", "backlog", "prefills_locally")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_LOCALLY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: _generation_pb2.WorkerRole
    num_kv_blocks: int
    load: _generation_pb2.WorkerLoad
    backlog: _duration_pb2.Duration
    prefills_locally: bool
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[_Union[_generation_pb2.WorkerRole, str]] = ..., num_kv_blocks: _Optional[int] = ..., load: _Optional[_Union[_generation_pb2.WorkerLoad, _Mapping]] = ..., backlog: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefills_locally: bool = ...) -> None: ...
