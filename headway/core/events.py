"""What can happen to the controller, and what it then asks its shell to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSpec
from headway.core.planner.interface import Constraint, Placement, Refuse
from headway.core.request import FinishReason, RequestSpec, RequestState
from headway.core.slo import Promise


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


# Events.


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

# Effects.


@dataclass(frozen=True, slots=True)
class SendAdmission:
    """Tell the client. Exactly one of `promise` and `binding_constraint` is given.

    Attributes:
        placement: None while the request waits in the best-effort queue.
    """

    request: RequestSpec
    plan_id: str
    promise: Promise | None
    placement: Placement | None
    binding_constraint: Constraint | None


@dataclass(frozen=True, slots=True)
class SendRefusal:
    """Tell the client that its request is not served; nothing of it is kept."""

    request_id: str
    plan_id: str
    refusal: Refuse


@dataclass(frozen=True, slots=True)
class StartDecode:
    """Reserve a place; the pages must be complete, and all tokens made, within `remaining_s`.

    Attributes:
        promise: its TTFT counts from now; None when best effort.
        step_cap_s: longest step of this worker from now on, while promised prompts wait;
            None leaves it as it is.
        local_prefill: the worker computes the prompt itself; no pages will come.
        prefill_due_s: of such a prompt, as `due_s` of StartPrefill.
    """

    request: RequestSpec
    worker_id: str
    promise: Promise | None
    step_cap_s: float | None
    remaining_s: float
    local_prefill: bool = False
    prefill_due_s: float | None = None


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Compute a prompt and send its pages to where `kv_handle` says, within `remaining_s`.

    Attributes:
        due_s: from now; computed by then, the promise holds. None when best effort.
        step_cap_s: as of StartDecode.
    """

    request: RequestSpec
    worker_id: str
    due_s: float | None
    step_cap_s: float | None
    kv_handle: bytes
    remaining_s: float


@dataclass(frozen=True, slots=True)
class RelayTokens:
    request_id: str
    first_index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Timings:
    """See Timings in inference_service.proto; None where a stage was not reached."""

    queued_s: float | None
    prefill_queued_s: float | None
    prefill_s: float | None
    handover_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_latency_s: float
    slo_attained: bool | None


@dataclass(frozen=True, slots=True)
class Usage:
    """See Usage in inference_service.proto."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_prompt_tokens_recomputed: int


@dataclass(frozen=True, slots=True)
class SendFinished:
    """The one terminal message of a request that was admitted.

    Attributes:
        state: a terminal one.
        finish_reason: set when SUCCEEDED.
        failure_reason: set when FAILED.
    """

    request_id: str
    state: RequestState
    finish_reason: FinishReason | None
    failure_reason: FailureReason | None
    message: str
    usage: Usage
    timings: Timings
    kv_usage: KvUsage | None


@dataclass(frozen=True, slots=True)
class AbortOnWorkers:
    """Cancel the calls that still run for this request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SetRole:
    """Tell a decode worker whether it may compute prompts itself."""

    worker_id: str
    prefills_locally: bool


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send TimePassed at this instant; an earlier WakeAt not yet come is replaced."""

    at_s: float


Effect = (
    SendAdmission
    | SendRefusal
    | StartDecode
    | StartPrefill
    | RelayTokens
    | SendFinished
    | AbortOnWorkers
    | SetRole
    | WakeAt
)
