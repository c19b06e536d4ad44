"""What the controller asks its shell to do."""

from __future__ import annotations

from dataclasses import dataclass

from headway.core.events import FailureReason, KvUsage
from headway.core.planner.interface import Constraint, Placement, Refuse
from headway.core.request import FinishReason, RequestSpec, RequestState
from headway.core.slo import Promise


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
