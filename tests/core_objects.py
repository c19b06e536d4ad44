"""Small clusters and requests for tests of the core. Times are round: one token takes 1 ms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from headway.core.batch_state import DECODE, LEAVING, PREFILL, REQUEST, Records
from headway.core.cluster import ClusterSnapshot, WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.perf_model import PerfModel
from headway.core.request import RequestSpec, Sampling
from headway.core.slo import Slo, StageSlo

BLOCK_SIZE = 10

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
    forms_steps_by_deadline: bool = False,
    prefills_locally: bool = False,
) -> WorkerSpec:
    return WorkerSpec(
        worker_id=f"{role.value.lower()}-{replica}",
        incarnation=incarnation,
        role=role,
        address="127.0.0.1:1",
        model="emulated",
        max_model_len=4096,
        kv_block_size=BLOCK_SIZE,
        num_kv_blocks=num_kv_blocks,
        max_step_tokens=max_step_tokens,
        max_num_running=max_num_running,
        kv_bytes_per_token=64,
        perf_model=perf_model,
        forms_steps_by_deadline=forms_steps_by_deadline,
        prefills_locally=prefills_locally,
    )


PREFILL_SPEC = worker_spec(WorkerRole.PREFILL)
DECODE_SPEC = worker_spec(WorkerRole.DECODE)


def given_prompt(
    num_tokens: int,
    *,
    guaranteed: bool = True,
    due_at_s: float = math.inf,
    sent_at_s: float = math.inf,
    computed: bool = False,
) -> dict[str, float]:
    """Fields of a prompt on a prefill worker."""
    return {
        "phase": LEAVING if computed else PREFILL,
        "guaranteed": int(guaranteed),
        "leaves_after_prefill": 1,
        "arrives_at_s": sent_at_s,
        "prefill_due_at_s": due_at_s,
        "next_due_at_s": due_at_s,
        "num_prompt_tokens": num_tokens,
        "num_blocks": -(-num_tokens // BLOCK_SIZE) if computed else 0,
    }


def given_decode(
    tpot_s: float = math.inf, max_tokens: int = 100, done: int = 0, due_at_s: float = 1e9
) -> dict[str, float]:
    """Fields of a request with a prompt of 100 tokens on a decode worker."""
    promised = math.isfinite(tpot_s)
    return {
        "phase": DECODE,
        "guaranteed": int(promised),
        "next_due_at_s": due_at_s if promised else math.inf,
        "tpot_s": tpot_s,
        "later_tpot_s": tpot_s,
        "num_stage_tokens_left": -1,
        "num_prompt_tokens": 100,
        "num_computed_tokens": 99 + done,
        "num_output_tokens": done,
        "num_output_bound": max_tokens,
        "num_blocks": -(-(99 + done) // BLOCK_SIZE),
    }


def records(*given: Mapping[str, float]) -> Records:
    """REQUEST records of these, in the order they came."""
    made = np.zeros(len(given), REQUEST)
    for row, values in enumerate(given):
        for name, value in {"order": row, **values}.items():
            made[name][row] = value
    return made


def prefill_worker(
    *prompts: Mapping[str, float], spec: WorkerSpec = PREFILL_SPEC, load: WorkerLoad | None = None
) -> WorkerSnapshot:
    return WorkerSnapshot(spec, load or WorkerLoad(), records(*prompts))


def decode_worker(
    *decodes: Mapping[str, float], spec: WorkerSpec = DECODE_SPEC, load: WorkerLoad | None = None
) -> WorkerSnapshot:
    return WorkerSnapshot(spec, load or WorkerLoad(), records(*decodes))


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
