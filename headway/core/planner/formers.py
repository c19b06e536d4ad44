"""All batch formers behind one compiled function, chosen by number."""

from __future__ import annotations

from headway.core.batch_state import Ints, Record, Records
from headway.core.batching import form_slack
from headway.core.kernel import kernel
from headway.core.planner.baselines.chunked import form_edf, form_sarathi
from headway.core.planner.baselines.codes import (
    EDF,
    NIYAMA,
    SARATHI,
    SCORPIO,
    SLACK,
    VLLM_V0,
    VLLM_V1,
)
from headway.core.planner.baselines.niyama import form_niyama
from headway.core.planner.baselines.scorpio import form_scorpio
from headway.core.planner.baselines.vllm import form_vllm_v0, form_vllm_v1


@kernel
def form(
    code: int,
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker: Record,
    grants: Ints,
) -> None:
    """Form one step.

    Args:
        code: one of `core.planner.baselines.codes`.
        now_s: the step's start.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many of `ids` are valid.
        worker: WORKER record.
        grants: entries [0, n) are written: tokens of each request, or PREEMPT.
    """
    if code == SLACK:
        form_slack(now_s, requests, ids, n, worker, grants)
    elif code == VLLM_V0:
        form_vllm_v0(now_s, requests, ids, n, worker, grants)
    elif code == VLLM_V1:
        form_vllm_v1(now_s, requests, ids, n, worker, grants)
    elif code == SARATHI:
        form_sarathi(now_s, requests, ids, n, worker, grants)
    elif code == EDF:
        form_edf(now_s, requests, ids, n, worker, grants)
    elif code == NIYAMA:
        form_niyama(now_s, requests, ids, n, worker, grants)
    elif code == SCORPIO:
        form_scorpio(now_s, requests, ids, n, worker, grants)
