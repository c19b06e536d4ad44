"""Small clusters and requests for tests of the core. Times are round: one token takes 1 ms."""

from __future__ import annotations

from headway.core.cluster import (
    ClusterSnapshot,
    DecodeTask,
    PrefillTask,
    WorkerLoad,
    WorkerRole,
    WorkerSnapshot,
    WorkerSpec,
)
from headway.core.perf_model import PerfModel
from headway.core.request import RequestSpec, Sampling
from headway.core.slo import Slo, StageSlo

# A prompt of n tokens takes n ms; a decode step 10 ms and 1 ms for each sequence.
PERF_MODEL = PerfModel(
    floor_s=0.010,
    token_s=0.001,
    fixed_s=0.0,
    sequence_s=0.001,
    context_token_s=0.0,
    prefill_attention_s=0.0,
    chunk_s=0.0,
)


def worker_spec(
    role: WorkerRole,
    replica: int = 0,
    *,
    num_kv_blocks: int = 1000,
    max_num_running: int = 100,
    max_step_tokens: int = 100,
    perf_model: PerfModel = PERF_MODEL,
    incarnation: str = "first",
) -> WorkerSpec:
    return WorkerSpec(
        worker_id=f"{role.value.lower()}-{replica}",
        incarnation=incarnation,
        role=role,
        address="127.0.0.1:1",
        model="emulated",
        max_model_len=4096,
        kv_block_size=10,
        num_kv_blocks=num_kv_blocks,
        max_step_tokens=max_step_tokens,
        max_num_running=max_num_running,
        kv_bytes_per_token=64,
        perf_model=perf_model,
    )


PREFILL_SPEC = worker_spec(WorkerRole.PREFILL)
DECODE_SPEC = worker_spec(WorkerRole.DECODE)


def prefill_worker(
    *prefills: PrefillTask, spec: WorkerSpec = PREFILL_SPEC, load: WorkerLoad | None = None
) -> WorkerSnapshot:
    return WorkerSnapshot(spec, load or WorkerLoad(), prefills=prefills)


def decode_worker(
    *decodes: DecodeTask, spec: WorkerSpec = DECODE_SPEC, load: WorkerLoad | None = None
) -> WorkerSnapshot:
    return WorkerSnapshot(spec, load or WorkerLoad(), decodes=decodes)


def cluster(
    *workers: WorkerSnapshot, now_s: float = 0.0, num_best_effort_queued: int = 0
) -> ClusterSnapshot:
    return ClusterSnapshot(
        now_s,
        tuple(w for w in workers if w.spec.role is WorkerRole.PREFILL),
        tuple(w for w in workers if w.spec.role is WorkerRole.DECODE),
        num_best_effort_queued,
    )


def slo(ttft_s: float = 1.0, tpot_s: float = 0.1) -> Slo:
    return Slo((StageSlo(tpot_s),), ttft_s)


def request(
    request_id: str = "new",
    *,
    num_prompt_tokens: int = 100,
    max_tokens: int = 100,
    slo: Slo | None = None,
    tier: str = "",
    refuse_if_not_promised: bool = False,
    deadline_s: float = 60.0,
) -> RequestSpec:
    return RequestSpec(
        request_id=request_id,
        prompt_token_ids=(1,) * num_prompt_tokens,
        sampling=Sampling(max_tokens=max_tokens),
        slo=slo,
        tier=tier,
        refuse_if_not_promised=refuse_if_not_promised,
        deadline_s=deadline_s,
    )
