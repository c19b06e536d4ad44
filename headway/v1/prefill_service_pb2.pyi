import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import kv_transfer_service_pb2 as _kv_transfer_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "target", "priority", "due", "step_cap")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DUE_FIELD_NUMBER: _ClassVar[int]
    STEP_CAP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    target: _kv_transfer_service_pb2.KvTarget
    priority: int
    due: _duration_pb2.Duration
    step_cap: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., target: _Optional[_Union[_kv_transfer_service_pb2.KvTarget, _Mapping]] = ..., priority: _Optional[int] = ..., due: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., step_cap: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("queued", "computed", "num_cached_tokens")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    computed: _duration_pb2.Duration
    num_cached_tokens: int
    def __init__(self, queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., computed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...
