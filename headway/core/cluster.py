"""Frozen pictures of workers and of the cluster: what a policy reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from headway.core.batch_state import Records
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
        forms_steps_by_deadline: its steps are formed by core.batching. Else it computes as much
            of its prompts as fits in each step, those under way first, then by deadline, and
            each of its steps decodes every sequence.
        prefills_locally: of a decode worker: it also computes prompts itself, for its own decodes.
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
    forms_steps_by_deadline: bool = False
    prefills_locally: bool = False

    @property
    def prefills(self) -> bool:
        """Whether prompts may be computed here, for itself or for others."""
        return self.role is WorkerRole.PREFILL or self.prefills_locally

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


@dataclass(frozen=True, slots=True, eq=False)
class WorkerSnapshot:
    """One worker as the controller sees it: its own books, corrected by the worker's reports.

    As long as nothing changes on a worker, its snapshot stays the same object.

    Attributes:
        requests: REQUEST records of all that was given to it and is not ended here, shape (R,).
            `order` is unique. Of an output all of max_tokens is counted on. Nothing is known of
            a prompt's progress where it is computed, before that is done (LEAVING on a prefill
            worker, DECODE on a decode worker); until then it is PREFILL, and `arrives_at_s` is
            when it was sent there, infinite before. On a decode worker a request whose pages
            come from elsewhere is ARRIVING until its first token came.
        last_prefill_ended_at_s: when a prompt last was computed, or given up, here.
        step_cap_s: the longest step that was last asked for, while promised prompts wait.
        overhead_s: what the way to the first token takes beside engine steps, as measured, for
            prompts computed elsewhere.
        local_overhead_s: likewise, for prompts computed on this decode worker.
    """

    spec: WorkerSpec
    load: WorkerLoad
    requests: Records
    last_prefill_ended_at_s: float = -math.inf
    step_cap_s: float = math.inf
    overhead_s: float = 0.0
    local_overhead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What admission decides on. Workers are sorted by id; draining ones are left out."""

    now_s: float
    prefill_workers: tuple[WorkerSnapshot, ...]
    decode_workers: tuple[WorkerSnapshot, ...]
    num_best_effort_queued: int

    @property
    def prefilling_workers(self) -> tuple[WorkerSnapshot, ...]:
        """All on which prompts may be computed."""
        local = tuple(worker for worker in self.decode_workers if worker.spec.prefills_locally)
        return self.prefill_workers + local
