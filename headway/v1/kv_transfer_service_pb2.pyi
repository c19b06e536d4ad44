from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvTarget(_message.Message):
    __slots__ = ("address", "transfer_id", "ticket")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    address: str
    transfer_id: str
    ticket: bytes
    def __init__(self, address: _Optional[str] = ..., transfer_id: _Optional[str] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("open", "commit", "sequence", "first_layer", "num_layers", "first_block", "num_blocks", "crc32c", "payload")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    open: PushOpen
    commit: PushCommit
    sequence: int
    first_layer: int
    num_layers: int
    first_block: int
    num_blocks: int
    crc32c: int
    payload: bytes
    def __init__(self, open: _Optional[_Union[PushOpen, _Mapping]] = ..., commit: _Optional[_Union[PushCommit, _Mapping]] = ..., sequence: _Optional[int] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., crc32c: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class PushOpen(_message.Message):
    __slots__ = ("transfer_id", "ticket", "layout_digest", "num_blocks", "num_layers", "page_bytes", "traceparent")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    ticket: bytes
    layout_digest: bytes
    num_blocks: int
    num_layers: int
    page_bytes: int
    traceparent: str
    def __init__(self, transfer_id: _Optional[str] = ..., ticket: _Optional[bytes] = ..., layout_digest: _Optional[bytes] = ..., num_blocks: _Optional[int] = ..., num_layers: _Optional[int] = ..., page_bytes: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class PushCommit(_message.Message):
    __slots__ = ("num_frames", "num_bytes", "crc32c", "num_bytes_overlapped")
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_OVERLAPPED_FIELD_NUMBER: _ClassVar[int]
    num_frames: int
    num_bytes: int
    crc32c: int
    num_bytes_overlapped: int
    def __init__(self, num_frames: _Optional[int] = ..., num_bytes: _Optional[int] = ..., crc32c: _Optional[int] = ..., num_bytes_overlapped: _Optional[int] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("accepted", "progress", "committed")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    accepted: PushAccepted
    progress: PushProgress
    committed: PushCommitted
    def __init__(self, accepted: _Optional[_Union[PushAccepted, _Mapping]] = ..., progress: _Optional[_Union[PushProgress, _Mapping]] = ..., committed: _Optional[_Union[PushCommitted, _Mapping]] = ...) -> None: ...

class PushAccepted(_message.Message):
    __slots__ = ("first_block",)
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    first_block: int
    def __init__(self, first_block: _Optional[int] = ...) -> None: ...

class PushProgress(_message.Message):
    __slots__ = ("num_bytes",)
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    def __init__(self, num_bytes: _Optional[int] = ...) -> None: ...

class PushCommitted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushSharedRequest(_message.Message):
    __slots__ = ("hello", "steps")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    hello: SharedHello
    steps: _containers.RepeatedCompositeFieldContainer[SharedStep]
    def __init__(self, hello: _Optional[_Union[SharedHello, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[SharedStep, _Mapping]]] = ...) -> None: ...

class SharedHello(_message.Message):
    __slots__ = ("transfer_id", "ticket")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    ticket: bytes
    def __init__(self, transfer_id: _Optional[str] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class SharedStep(_message.Message):
    __slots__ = ("transfer_number", "open", "frame", "commit", "abort")
    TRANSFER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    transfer_number: int
    open: PushOpen
    frame: SharedFrame
    commit: PushCommit
    abort: SharedAbort
    def __init__(self, transfer_number: _Optional[int] = ..., open: _Optional[_Union[PushOpen, _Mapping]] = ..., frame: _Optional[_Union[SharedFrame, _Mapping]] = ..., commit: _Optional[_Union[PushCommit, _Mapping]] = ..., abort: _Optional[_Union[SharedAbort, _Mapping]] = ...) -> None: ...

class SharedFrame(_message.Message):
    __slots__ = ("slot", "sequence", "first_layer", "num_layers", "first_block", "num_blocks", "crc32c")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    slot: int
    sequence: int
    first_layer: int
    num_layers: int
    first_block: int
    num_blocks: int
    crc32c: int
    def __init__(self, slot: _Optional[int] = ..., sequence: _Optional[int] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class SharedAbort(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushSharedResponse(_message.Message):
    __slots__ = ("segment", "results")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    segment: SharedSegment
    results: _containers.RepeatedCompositeFieldContainer[SharedResult]
    def __init__(self, segment: _Optional[_Union[SharedSegment, _Mapping]] = ..., results: _Optional[_Iterable[_Union[SharedResult, _Mapping]]] = ...) -> None: ...

class SharedSegment(_message.Message):
    __slots__ = ("process_id", "descriptor", "nonce", "num_slots", "slot_bytes")
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    process_id: int
    descriptor: int
    nonce: bytes
    num_slots: int
    slot_bytes: int
    def __init__(self, process_id: _Optional[int] = ..., descriptor: _Optional[int] = ..., nonce: _Optional[bytes] = ..., num_slots: _Optional[int] = ..., slot_bytes: _Optional[int] = ...) -> None: ...

class SharedResult(_message.Message):
    __slots__ = ("transfer_number", "response", "failed")
    TRANSFER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    transfer_number: int
    response: PushResponse
    failed: SharedFailure
    def __init__(self, transfer_number: _Optional[int] = ..., response: _Optional[_Union[PushResponse, _Mapping]] = ..., failed: _Optional[_Union[SharedFailure, _Mapping]] = ...) -> None: ...

class SharedFailure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...
