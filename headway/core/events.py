"""What can happen to the controller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSpec
from headway.core.request import FinishReason, RequestSpec


class CancelCause(StrEnum):
    """Who ended a request early; the text is for people."""

    ASKED = "cancelled by a Cancel call"
    DISCONNECTED = "the client ended the call"
    SLOW_READER = "the client did not read its tokens"
    SHUTDOWN = "the controller shuts down"


class FailureReason(StrEnum):
    """Why a request FAILED: constants for programs."""

    WORKER_LOST = "WORKER_LOST"
    WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE"
    KV_TRANSFER_FAILED = "KV_TRANSFER_FAILED"
    ENGINE_FAILED = "ENGINE_FAILED"
    TOKEN_ORDER = "TOKEN_ORDER"  # a constant, not a password # noqa: S105


@dataclass(frozen=True, slots=True)
class KvUsage:
    """What moving one request's KV took; see KvTransferUsage in generation.proto."""

    num_bytes: int
    duration_s: float
    overlapped_ratio: float
    num_frames: int
    num_blocks_reused: int


@dataclass(frozen=True, slots=True)
class RoleAsked:
    """Somebody wants this decode worker to compute prompts itself, or to end doing so."""

    worker_id: str
    prefills_locally: bool


@dataclass(frozen=True, slots=True)
class RoleTaken:
    """The worker does what it was told by SetRole."""

    worker_id: str
    incarnation: str
    prefills_locally: bool


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerReported:
    worker_id: str
    incarnation: str
    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """`arrived_at_s`: when its call began; reading and tokenising it came after."""

    request: RequestSpec
    arrived_at_s: float


@dataclass(frozen=True, slots=True)
class CancelRequested:
    request_id: str
    cause: CancelCause


@dataclass(frozen=True, slots=True)
class DecodeReserved:
    """The decode worker keeps a place; `kv_handle` tells the prefill worker where to send.

    It is empty where no pages will come, because the prompt is computed on the decode worker.
    """

    request_id: str
    kv_handle: bytes


@dataclass(frozen=True, slots=True)
class PrefillComputed:
    """`queued_s`: submitted to first step; `computed_s`: first step to last.

    Where the prompt is computed on the decode worker, it comes before the first token.
    """

    request_id: str
    queued_s: float
    computed_s: float
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokensProduced:
    request_id: str
    first_index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class DecodeCompleted:
    request_id: str
    finish_reason: FinishReason
    num_prompt_tokens_recomputed: int
    kv_usage: KvUsage | None


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The call that ran a request on a worker of this role ended without success."""

    request_id: str
    role: WorkerRole
    reason: FailureReason
    message: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The instant of a WakeAt has come."""


Event = (
    WorkerJoined
    | WorkerReported
    | WorkerLost
    | RequestArrived
    | CancelRequested
    | DecodeReserved
    | PrefillComputed
    | TokensProduced
    | DecodeCompleted
    | AttemptFailed
    | TimePassed
    | RoleAsked
    | RoleTaken
)
