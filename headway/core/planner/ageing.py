"""Best effort that has waited too long: treated as if promised, a bounded share of a worker.

Promised requests alone decide what best effort is left, and under steady load that can be nothing.
The longest waiting are therefore treated as if they had been promised a first token in a while, and
from there the pace they asked for. Each is raised only if that fits, and is asked about before the
next arrival is decided on, so that room goes to it first.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREFILL, REQUEST, WORKER, Ints, Record, Records
from headway.core.kernel import kernel
from headway.core.planner.lookahead import ALL_ON_TIME, look_ahead
from headway.core.planner.sustain import SUSTAINED, sustained

# Since its arrival; many times any bound on TTFT, so that what is late merely by bad luck ends
# without help.
RAISED_AFTER_S = 20.0
# At most so many of the promised requests on a worker, but always one.
RAISED_SHARE = 0.05
# Its next token is due so long after it was raised.
RAISED_WITHIN_S = 10.0


@kernel
def aged(now_s: float, requests: Records, ids: Ints, n: int, grants: Ints, worker: Record) -> int:
    """Position in `ids` of the best-effort request to be raised next; -1 for none.

    It is the one that waits longest, not counting those whose pages leave for another worker.

    Args:
        now_s: the present.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many.
        grants: what each gets from the step that runs now.
        worker: WORKER record.
    """
    oldest = -1
    num_promised = 0
    num_raised = 0
    for k in range(n):
        r = requests[ids[k]]
        num_raised += r.is_raised
        num_promised += r.guaranteed
        if r.guaranteed == 1 or r.leaves_after_prefill == 1 or r.phase not in (PREFILL, DECODE):
            continue
        waited_s = now_s - r.arrived_at_s
        if waited_s >= RAISED_AFTER_S and (oldest < 0 or r.order < requests[ids[oldest]].order):
            oldest = k
    if oldest < 0 or num_raised >= max(1, RAISED_SHARE * num_promised):
        return -1
    rows = np.empty(n, REQUEST)
    for k in range(n):
        rows[k] = requests[ids[k]]
    raise_pace(rows[oldest], now_s)
    own = np.empty(1, WORKER)
    own[0] = worker
    late, _, _ = look_ahead(now_s, rows, n, own, grants[:n].copy(), oldest)
    fits = late == ALL_ON_TIME and sustained(rows, n, worker) == SUSTAINED
    return oldest if fits else -1


@kernel
def raise_pace(request: Record, now_s: float) -> None:
    """Treat a best-effort request as promised from now on; it asked for a pace, and keeps it."""
    request.guaranteed = 1
    request.is_raised = 1
    request.prefill_due_at_s = request.next_due_at_s = now_s + RAISED_WITHIN_S
