import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import generation_pb2 as _generation_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SetRoleRequest(_message.Message):
    __slots__ = ("worker_id", "prefills_locally")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_LOCALLY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    prefills_locally: bool
    def __init__(self, worker_id: _Optional[str] = ..., prefills_locally: bool = ...) -> None: ...

class SetRoleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("register", "report", "role_taken")
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ROLE_TAKEN_FIELD_NUMBER: _ClassVar[int]
    register: Register
    report: _generation_pb2.WorkerLoad
    role_taken: RoleTaken
    def __init__(self, register: _Optional[_Union[Register, _Mapping]] = ..., report: _Optional[_Union[_generation_pb2.WorkerLoad, _Mapping]] = ..., role_taken: _Optional[_Union[RoleTaken, _Mapping]] = ...) -> None: ...

class RoleTaken(_message.Message):
    __slots__ = ("prefills_locally",)
    PREFILLS_LOCALLY_FIELD_NUMBER: _ClassVar[int]
    prefills_locally: bool
    def __init__(self, prefills_locally: bool = ...) -> None: ...

class Register(_message.Message):
    __slots__ = ("worker_id", "incarnation", "role", "address", "model", "max_model_len", "kv_block_size", "num_kv_blocks", "max_step_tokens", "max_num_running", "kv_bytes_per_token", "perf_model", "forms_steps_by_deadline", "prefills_locally")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PERF_MODEL_FIELD_NUMBER: _ClassVar[int]
    FORMS_STEPS_BY_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_LOCALLY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    role: _generation_pb2.WorkerRole
    address: str
    model: str
    max_model_len: int
    kv_block_size: int
    num_kv_blocks: int
    max_step_tokens: int
    max_num_running: int
    kv_bytes_per_token: int
    perf_model: PerfModel
    forms_steps_by_deadline: bool
    prefills_locally: bool
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., role: _Optional[_Union[_generation_pb2.WorkerRole, str]] = ..., address: _Optional[str] = ..., model: _Optional[str] = ..., max_model_len: _Optional[int] = ..., kv_block_size: _Optional[int] = ..., num_kv_blocks: _Optional[int] = ..., max_step_tokens: _Optional[int] = ..., max_num_running: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., perf_model: _Optional[_Union[PerfModel, _Mapping]] = ..., forms_steps_by_deadline: bool = ..., prefills_locally: bool = ...) -> None: ...

class PerfModel(_message.Message):
    __slots__ = ("floor_s", "token_s", "fixed_s", "sequence_s", "context_token_s", "prefill_attention_s", "chunk_s")
    FLOOR_S_FIELD_NUMBER: _ClassVar[int]
    TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    FIXED_S_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ATTENTION_S_FIELD_NUMBER: _ClassVar[int]
    CHUNK_S_FIELD_NUMBER: _ClassVar[int]
    floor_s: float
    token_s: float
    fixed_s: float
    sequence_s: float
    context_token_s: float
    prefill_attention_s: float
    chunk_s: float
    def __init__(self, floor_s: _Optional[float] = ..., token_s: _Optional[float] = ..., fixed_s: _Optional[float] = ..., sequence_s: _Optional[float] = ..., context_token_s: _Optional[float] = ..., prefill_attention_s: _Optional[float] = ..., chunk_s: _Optional[float] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("registered", "drain", "set_role")
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    SET_ROLE_FIELD_NUMBER: _ClassVar[int]
    registered: Registered
    drain: Drain
    set_role: SetRole
    def __init__(self, registered: _Optional[_Union[Registered, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., set_role: _Optional[_Union[SetRole, _Mapping]] = ...) -> None: ...

class SetRole(_message.Message):
    __slots__ = ("prefills_locally",)
    PREFILLS_LOCALLY_FIELD_NUMBER: _ClassVar[int]
    prefills_locally: bool
    def __init__(self, prefills_locally: bool = ...) -> None: ...

class Registered(_message.Message):
    __slots__ = ("report_interval",)
    REPORT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    report_interval: _duration_pb2.Duration
    def __init__(self, report_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
