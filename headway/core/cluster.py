"""Frozen pictures of workers and of the cluster: what a policy reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from headway.core.perf_model import PerfModel


class WorkerRole(StrEnum):
    PREFILL = "PREFILL"
    DECODE = "DECODE"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker said of itself when it registered.

    Attributes:
        kv_block_size: tokens per KV block.
        max_step_tokens: most prompt tokens one step computes.
        kv_bytes_per_token: over all layers.
    """

    worker_id: str
    incarnation: str
    role: WorkerRole
    address: str
    model: str
    max_model_len: int
    kv_block_size: int
    num_kv_blocks: int
    max_step_tokens: int
    max_num_running: int
    kv_bytes_per_token: int
    perf_model: PerfModel

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one request."""
        return math.ceil(num_tokens / self.kv_block_size)


@dataclass(frozen=True, slots=True)
class ResourceCounters:
    """Counts since the worker started; at rest, created equals released."""

    num_slots_created: int = 0
    num_slots_released: int = 0
    num_kv_blocks_created: int = 0
    num_kv_blocks_released: int = 0
    num_staged_pages_created: int = 0
    num_staged_pages_released: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's own report. `step_time_ratio` is measured / predicted; 0 if not yet known."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_kv_blocks: int = 0
    resources: ResourceCounters = field(default_factory=ResourceCounters)
    draining: bool = False
    step_time_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class PrefillTask:
    """A prompt given to a prefill worker and not finished yet.

    Attributes:
        sent_at_s: infinite while the decode worker has not yet said where the pages go.
        due_at_s: computed by then, the promised first token is on time; infinite when best
            effort.
    """

    request_id: str
    num_prompt_tokens: int
    guaranteed: bool
    sent_at_s: float
    due_at_s: float = math.inf


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """A request that holds, or will hold, a place on a decode worker.

    Attributes:
        tpot_s: tightest pace promised; infinite when best effort.
    """

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    max_tokens: int
    tpot_s: float


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker as the controller sees it: its own books, corrected by the worker's reports.

    Attributes:
        prefills: in the order they were given; a decode worker has none.
        decodes: progress as of the last change of this worker's books or its last report.
        last_prefill_ended_at_s: when a prompt last was computed, or given up, here.
        num_kv_blocks_sending: held by computed prompts whose pages are still on their way.
        overhead_s: what the way to the first token takes beside engine steps, as measured.
    """

    spec: WorkerSpec
    load: WorkerLoad
    prefills: tuple[PrefillTask, ...] = ()
    decodes: tuple[DecodeTask, ...] = ()
    last_prefill_ended_at_s: float = -math.inf
    num_kv_blocks_sending: int = 0
    overhead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What admission decides on. Workers are sorted by id; draining ones are left out."""

    now_s: float
    prefill_workers: tuple[WorkerSnapshot, ...]
    decode_workers: tuple[WorkerSnapshot, ...]
    num_best_effort_queued: int
