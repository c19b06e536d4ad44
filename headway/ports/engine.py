"""An inference engine: what it is asked, what it answers and what it tells of itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from headway.core.cluster import ResourceCounters
from headway.core.perf_model import PerfModel
from headway.core.request import FinishReason, Sampling
from headway.core.slo import Promise


@dataclass(frozen=True, slots=True)
class KvTarget:
    """Where, and with what right, one request's pages may be sent."""

    address: str
    transfer_id: str
    ticket: bytes


@dataclass(frozen=True, slots=True)
class KvTransferRecord:
    """What moving one request's KV took, as the receiving side saw it.

    Attributes:
        overlapped_ratio: bytes that had arrived before the prompt's last chunk was computed
            / all bytes.
        started_unix_ns, ended_unix_ns: first page to commit, for a trace span.
        traceparent: W3C context that came with the transfer; empty if none.
    """

    num_bytes: int
    num_frames: int
    num_blocks_reused: int
    overlapped_ratio: float
    started_unix_ns: int
    ended_unix_ns: int
    traceparent: str

    @property
    def duration_s(self) -> float:
        return (self.ended_unix_ns - self.started_unix_ns) / 1e9


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Fixed properties of a started engine; see `core.cluster.WorkerSpec` for meanings.

    Attributes:
        perf_model: the profile, scaled to what the warm-up measured on this machine.
        forms_steps_by_deadline: steps follow the due times and the step cap of the jobs.
    """

    max_model_len: int
    kv_block_size: int
    num_kv_blocks: int
    max_step_tokens: int
    max_num_running: int
    kv_bytes_per_token: int
    perf_model: PerfModel
    forms_steps_by_deadline: bool = False


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One step as the engine's scheduler saw it.

    Attributes:
        started_at_s: on this machine's monotonic clock.
        num_tokens: computed in it, drafted ones included.
        num_decodes, num_chunks: requests that decoded, and prompts it computed a part of.
        num_held: requests that could have been in it and were made to wait.
        num_preempted: requests that lost their KV blocks to it.
    """

    started_at_s: float
    duration_s: float
    num_tokens: int
    num_decodes: int
    num_chunks: int
    num_held: int
    num_preempted: int


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine holds now.

    Attributes:
        step_time_ratio: measured / predicted time of a typical recent step; 0 if not known.
        steps: since the last look, but not more than the newest 256; empty where they are
            not counted one by one.
        acceptance: probability, by tier, that a drafted token is right if those before it
            were; tiers without drafts so far are left out.
    """

    num_running: int
    num_waiting: int
    num_free_kv_blocks: int
    resources: ResourceCounters
    step_time_ratio: float
    steps: tuple[EngineStep, ...] = ()
    acceptance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrefillJob:
    """A prompt to compute, and where its pages go.

    Attributes:
        due_s: the prompt must be computed so long after submission; None when best effort.
        step_cap_s: longest step from now on, while promised prompts wait; None leaves it.
        traceparent: W3C context of the caller's span; empty if none.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    target: KvTarget
    due_s: float | None = None
    step_cap_s: float | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """`queued_s`: submitted to first step; `computed_s`: first step to last."""

    queued_s: float
    computed_s: float
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A request to continue from pages that arrive under `target.transfer_id`.

    Attributes:
        target: None: no pages come, and the engine computes the prompt itself.
        priority: lower goes first: 0 guaranteed, 1 best effort.
        kv_timeout_s: the pages must be complete within this time.
        promise: its TTFT counts from submission; None when best effort.
        step_cap_s: as of PrefillJob.
        prefill_due_s: of a prompt computed here, as `due_s` of PrefillJob.
        tier: requests of one tier share what is learned of drafts.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    target: KvTarget | None
    priority: int
    kv_timeout_s: float
    promise: Promise | None = None
    step_cap_s: float | None = None
    traceparent: str = ""
    prefill_due_s: float | None = None
    tier: str = ""


@dataclass(frozen=True, slots=True)
class DemandChange:
    """A request's new demand, in the terms of its job; nothing given makes it best effort.

    Attributes:
        due_s: its prompt must be computed so long after the update.
        promise: of its tokens; the TTFT counts from submission, as of DecodeJob.
    """

    due_s: float | None = None
    promise: Promise | None = None


@dataclass(frozen=True, slots=True)
class PlanUpdate:
    """What an engine that forms its steps by deadline should do otherwise from now on.

    Attributes:
        step_cap_s: longest step while promised prompts wait; None leaves it.
        time_ratio: measured / predicted step time to count on instead of the engine's own
            measurement, from now on; None leaves it.
        draft_lengths: longest draft of a tier's requests; tiers not named keep theirs.
        demands: by request id; requests that are not in the engine are passed over.
    """

    step_cap_s: float | None = None
    time_ratio: float | None = None
    draft_lengths: Mapping[str, int] = field(default_factory=dict)
    demands: Mapping[str, DemandChange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineTokens:
    """Tokens one or more steps added, with the text that became complete."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class EngineFinished:
    """Last item of a decode.

    `num_prompt_tokens_recomputed` is 1 when all KV was sent, 0 when none was to be.
    """

    finish_reason: FinishReason
    num_prompt_tokens_recomputed: int
    kv_transfer: KvTransferRecord | None


DecodeItem = PrefillResult | EngineTokens | EngineFinished


class Engine(Protocol):
    """One inference engine: real vLLM, or the emulated one. All methods are for one event loop.

    Cancelling the task that awaits `prefill`, or closing the generator of `decode`, frees
    everything the request holds in the engine, pages on their way included.
    """

    @property
    def info(self) -> EngineInfo: ...

    async def prefill(self, job: PrefillJob) -> PrefillResult:
        """Compute a prompt and start sending its pages; returns when the prompt is computed.

        Raises:
            EngineFailed: the engine ended or refused the request.
        """
        ...

    def mint_target(self, request_id: str) -> KvTarget:
        """A fresh target for one transfer into this engine. Decode workers only."""
        ...

    def decode(self, job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        """Yield tokens, the first output token included, then exactly one EngineFinished.

        Before the tokens of a prompt that is computed here comes its PrefillResult.

        Raises:
            KvTransferFailed: the pages did not arrive whole, or not in time.
            EngineFailed: the engine ended or refused the request.
        """
        ...

    async def load(self) -> EngineLoad: ...

    async def close(self) -> None: ...
