"""Compiles the planner's inner loops, or loads them: `python -m headway.core.planner.warm_up`."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, REQUEST
from headway.core.cluster import ClusterSnapshot, WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.numba_start import load_numba
from headway.core.perf_model import PerfModel
from headway.core.planner import live_steps
from headway.core.planner.interface import PlannerParams
from headway.core.planner.policies import build_policies
from headway.core.request import RequestSpec, Sampling
from headway.core.request_table import worker_records
from headway.core.slo import Slo, StageSlo


def warm_up() -> None:
    """Decide on a promised and on a best-effort request before one worker of each role; form steps.

    Takes half a minute where nothing was compiled before, else a fraction of a second.
    """
    load_numba()
    policy = build_policies(PlannerParams(1.0, 1, {})).admission
    cluster = ClusterSnapshot(0.0, (_idle(WorkerRole.PREFILL),), (_idle(WorkerRole.DECODE),), 0)
    slo = Slo((StageSlo(1.0),), 10.0)
    request = RequestSpec("warm-up", (1,) * 8, Sampling(max_tokens=8), slo, "", False, 10.0)
    policy.decide(request, cluster)
    policy.place_best_effort(request, cluster)
    live_steps.warm_up(
        worker_records(
            cluster.decode_workers[0].spec.perf_model,
            block_size=16,
            num_blocks=64,
            max_step_tokens=64,
            max_running=4,
            guard_ratio=1.0,
        )
    )


def _idle(role: WorkerRole) -> WorkerSnapshot:
    spec = WorkerSpec(
        worker_id=role.value,
        incarnation="",
        role=role,
        address="",
        model="",
        max_model_len=64,
        kv_block_size=16,
        num_kv_blocks=64,
        max_step_tokens=64,
        max_num_running=4,
        kv_bytes_per_token=1,
        perf_model=PerfModel(0.001, 1e-5, 1e-3, 1e-5, 1e-8, 1e-8, 1e-5),
        forms_steps_by_deadline=True,
    )
    requests = np.zeros(0, REQUEST)
    if role is WorkerRole.DECODE:
        requests = np.zeros(1, REQUEST)
        requests["phase"] = DECODE
        requests["next_due_at_s"] = np.inf
    return WorkerSnapshot(spec, WorkerLoad(), requests)


if __name__ == "__main__":
    warm_up()
