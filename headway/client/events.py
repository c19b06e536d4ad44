"""What a client sees of a request and of the cluster. Plain values, free of gRPC and protobuf.

Bounds that were not promised, and stages that were not reached, are None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headway.core.cluster import WorkerLoad, WorkerRole
from headway.core.request import FinishReason, RequestState
from headway.core.slo import Slo

WhenNotPromised = Literal["best_effort", "refuse"]


@dataclass(frozen=True, slots=True)
class Admission:
    """First event of every request: what the cluster promises.

    Attributes:
        tier: empty when the request carried its own bounds or none.
        ttft_s: promised, slow-down resolved; None when best effort.
        tpot_s: the tightest of all promised stages; None when best effort.
        predicted_ttft_s, predicted_tpot_s: what the planner expects; None while the request
            waits in the best-effort queue.
        slack_s: `ttft_s` minus `predicted_ttft_s`.
        plan_id: names the decision in logs and traces.
        binding_constraint: best effort only: what stood against a promise, one of
            PREFILL_TIME, DECODE_RATE, KV_BLOCKS, TOO_COSTLY, NOT_ASKED.
    """

    request_id: str
    guaranteed: bool
    tier: str
    ttft_s: float | None
    tpot_s: float | None
    predicted_ttft_s: float | None
    predicted_tpot_s: float | None
    slack_s: float | None
    plan_id: str
    prefill_worker_id: str
    decode_worker_id: str
    num_prompt_tokens: int
    binding_constraint: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Output tokens in order; `first_index` 0 is the first output token of the request.

    `text` may lag behind the ids while a character is incomplete.
    """

    first_index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts.

    Attributes:
        num_cached_tokens: prompt tokens found in the prefix cache of the worker that prefilled.
        num_prompt_tokens_recomputed: prompt tokens the decode engine computed itself although
            another engine had; 1 when all KV came from prefill, 0 when none was to.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_prompt_tokens_recomputed: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Stage times as the controller and the workers measured them.

    Attributes:
        slo_attained: whether every promised bound was met; None when best effort.
    """

    queued_s: float | None
    prefill_queued_s: float | None
    prefill_s: float | None
    handover_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_latency_s: float | None
    slo_attained: bool | None


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """What moving the request's KV cache took.

    Attributes:
        duration_s: first page received to commit.
        overlapped_ratio: bytes that had arrived before the prompt's last chunk was computed
            / all bytes.
        num_blocks_reused: blocks the decode engine had already.
    """

    num_bytes: int
    duration_s: float
    overlapped_ratio: float
    num_frames: int
    num_blocks_reused: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of every admitted request.

    Attributes:
        state: SUCCEEDED, CANCELLED, DEADLINE_EXCEEDED or FAILED.
        finish_reason: None unless SUCCEEDED; None also for a reason of a newer server's.
        error_reason: a constant such as WORKER_LOST; empty unless FAILED.
        kv_transfer: None when no KV was moved.
    """

    state: RequestState
    finish_reason: FinishReason | None
    error_reason: str
    error_message: str
    usage: Usage
    timings: Timings
    kv_transfer: KvTransfer | None


Event = Admission | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Tier:
    """A named class of promise; `slo` is None for a best-effort tier."""

    name: str
    slo: Slo | None


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """One worker as the controller sees it; `backlog_s` is 0 where nothing is prefilled.

    Attributes:
        prefills_locally: of a decode worker, whether prompts may be placed there.
    """

    worker_id: str
    role: WorkerRole
    num_kv_blocks: int
    load: WorkerLoad
    backlog_s: float
    prefills_locally: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster holds at one instant."""

    model: str
    workers: tuple[WorkerCapacity, ...]
    num_best_effort_queued: int
    num_requests_running: int
