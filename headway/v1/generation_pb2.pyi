import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole

class SamplingParams(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: bool = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("first_index", "token_ids", "text")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, first_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class KvTransferUsage(_message.Message):
    __slots__ = ("num_bytes", "duration", "overlapped_ratio", "num_frames", "num_blocks_reused")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    OVERLAPPED_RATIO_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_REUSED_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    duration: _duration_pb2.Duration
    overlapped_ratio: float
    num_frames: int
    num_blocks_reused: int
    def __init__(self, num_bytes: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., overlapped_ratio: _Optional[float] = ..., num_frames: _Optional[int] = ..., num_blocks_reused: _Optional[int] = ...) -> None: ...

class ResourceCounters(_message.Message):
    __slots__ = ("num_slots_created", "num_slots_released", "num_kv_blocks_created", "num_kv_blocks_released", "num_staged_pages_created", "num_staged_pages_released")
    NUM_SLOTS_CREATED_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_RELEASED_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_CREATED_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_RELEASED_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGED_PAGES_CREATED_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGED_PAGES_RELEASED_FIELD_NUMBER: _ClassVar[int]
    num_slots_created: int
    num_slots_released: int
    num_kv_blocks_created: int
    num_kv_blocks_released: int
    num_staged_pages_created: int
    num_staged_pages_released: int
    def __init__(self, num_slots_created: _Optional[int] = ..., num_slots_released: _Optional[int] = ..., num_kv_blocks_created: _Optional[int] = ..., num_kv_blocks_released: _Optional[int] = ..., num_staged_pages_created: _Optional[int] = ..., num_staged_pages_released: _Optional[int] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_free_kv_blocks", "resources", "draining", "step_time_ratio")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_RATIO_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_free_kv_blocks: int
    resources: ResourceCounters
    draining: bool
    step_time_ratio: float
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_free_kv_blocks: _Optional[int] = ..., resources: _Optional[_Union[ResourceCounters, _Mapping]] = ..., draining: bool = ..., step_time_ratio: _Optional[float] = ...) -> None: ...
