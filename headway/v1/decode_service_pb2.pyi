import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import generation_pb2 as _generation_pb2
from headway.v1 import kv_transfer_service_pb2 as _kv_transfer_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecodeRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "sampling", "priority", "kv_timeout", "demand", "step_cap", "local_prefill", "prefill_due")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    KV_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    STEP_CAP_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PREFILL_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DUE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _generation_pb2.SamplingParams
    priority: int
    kv_timeout: _duration_pb2.Duration
    demand: Demand
    step_cap: _duration_pb2.Duration
    local_prefill: bool
    prefill_due: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., kv_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., demand: _Optional[_Union[Demand, _Mapping]] = ..., step_cap: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., local_prefill: bool = ..., prefill_due: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("first_token", "stages")
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    first_token: _duration_pb2.Duration
    stages: _containers.RepeatedCompositeFieldContainer[DemandStage]
    def __init__(self, first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[DemandStage, _Mapping]]] = ...) -> None: ...

class DemandStage(_message.Message):
    __slots__ = ("tpot", "end_token_id", "end_after_tokens")
    TPOT_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    END_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tpot: _duration_pb2.Duration
    end_token_id: int
    end_after_tokens: int
    def __init__(self, tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., end_token_id: _Optional[int] = ..., end_after_tokens: _Optional[int] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("reserved", "tokens", "finished", "prefilled")
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    reserved: Reserved
    tokens: _generation_pb2.TokenChunk
    finished: DecodeFinished
    prefilled: Prefilled
    def __init__(self, reserved: _Optional[_Union[Reserved, _Mapping]] = ..., tokens: _Optional[_Union[_generation_pb2.TokenChunk, _Mapping]] = ..., finished: _Optional[_Union[DecodeFinished, _Mapping]] = ..., prefilled: _Optional[_Union[Prefilled, _Mapping]] = ...) -> None: ...

class Reserved(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: _kv_transfer_service_pb2.KvTarget
    def __init__(self, target: _Optional[_Union[_kv_transfer_service_pb2.KvTarget, _Mapping]] = ...) -> None: ...

class Prefilled(_message.Message):
    __slots__ = ("queued", "computed", "num_cached_tokens")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    computed: _duration_pb2.Duration
    num_cached_tokens: int
    def __init__(self, queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., computed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class DecodeFinished(_message.Message):
    __slots__ = ("finish_reason", "num_prompt_tokens_recomputed", "kv_transfer")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_FIELD_NUMBER: _ClassVar[int]
    finish_reason: _generation_pb2.FinishReason
    num_prompt_tokens_recomputed: int
    kv_transfer: _generation_pb2.KvTransferUsage
    def __init__(self, finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., num_prompt_tokens_recomputed: _Optional[int] = ..., kv_transfer: _Optional[_Union[_generation_pb2.KvTransferUsage, _Mapping]] = ...) -> None: ...
