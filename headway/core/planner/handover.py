"""Hand-over of pages from a prefill to a decode worker: when they must be there, when they join.

A promise of separate workers has two parts. The decode worker is asked first how late pages may
arrive for all first tokens to be on time, its own steps run ahead; the prefill worker then has to
have sent them by then, run ahead with its link. Both keep to that instant: pages that are there
before it join the batch early only if nothing planned becomes late by it.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, REQUEST, WORKER, Ints, Record, Records
from headway.core.kernel import kernel
from headway.core.planner.lookahead import ALL_ON_TIME, look_ahead, step_starts
from headway.core.planner.probe import LATE, probe
from headway.core.planner.step_time import step_s

# Starts of steps that are tried for an arrival, from the last one that might do.
_MAX_TRIES = 6

# Far below any time that matters, above the rounding of a sum of two instants.
_ROUNDING_S = 1e-9


@kernel
def latest_arrival(
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    grants: Ints,
    worker: Record,
    new: Record,
) -> tuple[int, float]:
    """The latest instant at which pages of `new` may come for every promise here to be kept.

    The batch former lets its steps end in time for them unless something here is due before.
    Then they may have to wait for the end of the step that runs, so they are planned to come when
    one starts: as early as predicted, while steps end as late as the guard says.

    Args:
        now_s: the present.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many.
        grants: what each gets from the step that runs now.
        worker: WORKER record of the decode worker.
        new: REQUEST record as it would be on this worker, ARRIVING.

    Returns:
        FITS, or what `probe` found at the earliest instant tried; and the arrival.
    """
    rows = np.empty(n, REQUEST)
    for k in range(n):
        rows[k] = requests[ids[k]]
    own = np.empty(1, WORKER)
    own[0] = worker
    due_at_s = new.next_due_at_s
    starts_at_s = step_starts(now_s, rows, n, own, grants[:n].copy(), due_at_s)
    alone_s = step_s(worker, 1, 1, new.num_prompt_tokens, 0.0, 0, 0, 0)
    alone_s *= max(worker.guard_ratio, worker.step_guard_ratio)
    last_at_s = due_at_s - alone_s - _ROUNDING_S
    candidate = np.empty(1, REQUEST)
    candidate[0] = new
    found = LATE
    num_tries = 0
    for j in range(len(starts_at_s), -1, -1):
        # First with the worker waiting for them, if nothing else there is due before.
        arrives_at_s = last_at_s
        if j < len(starts_at_s):
            start_at_s = starts_at_s[j]
            arrives_at_s = start_at_s - (1.0 - 1.0 / worker.guard_ratio) * (start_at_s - now_s)
            if start_at_s > last_at_s:
                continue
        if arrives_at_s < now_s:
            break
        candidate[0].arrives_at_s = arrives_at_s
        found, _ = probe(
            now_s,
            requests,
            ids,
            n,
            grants,
            worker,
            candidate[0],
            worker.step_cap_s,
            worker.busy_until_s,
        )
        num_tries += 1
        if found != LATE or num_tries == _MAX_TRIES:
            return found, arrives_at_s
    return found, np.inf


@kernel
def may_join(now_s: float, requests: Records, ids: Ints, n: int, worker: Record, k: int) -> bool:
    """Whether pages that are complete can join the step that starts now, every promise kept.

    Args:
        now_s: the present; no step runs.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many.
        worker: WORKER record.
        k: position in `ids` of the request, which is ARRIVING and holds its blocks.
    """
    rows = np.empty(n, REQUEST)
    for other in range(n):
        rows[other] = requests[ids[other]]
    rows[k].phase = DECODE
    rows[k].num_computed_tokens = rows[k].num_prompt_tokens - 1
    own = np.empty(1, WORKER)
    own[0] = worker
    late, _, _ = look_ahead(now_s, rows, n, own, np.zeros(n, np.int64), -1)
    return bool(late == ALL_ON_TIME)
