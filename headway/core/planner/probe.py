"""Asks one worker's future whether a request can join it."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import (
    DECODE,
    PREFILL,
    REQUEST,
    WORKER,
    Floats,
    Ints,
    Record,
    Records,
)
from headway.core.kernel import kernel
from headway.core.planner.demand_test import surely_late
from headway.core.planner.lookahead import ALL_ON_TIME, NO_ROOM, look_ahead
from headway.core.planner.sustain import SUSTAINED, sustained

# Best-effort requests that run beside promised ones on a worker: what is left over is enough for
# few, and more would only hold memory. Of those that may still meet the bounds they asked for
# there are more, since the shortest of them are chosen from.
MAX_LATE_BESIDE = 4
MAX_TIMELY_BESIDE = 16
MAX_TIMELY_WAITING = 8
ROOM_FOR_TIMELY = 1
ROOM_FOR_LATE = 2

# What a probe found. The last two are what `sustained` found, shifted by one.
FITS, LATE, DECODE_RATE, KV_BLOCKS = range(4)


@kernel
def probe(
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    grants: Ints,
    worker: Record,
    new: Record,
    length_s: float,
    free_at_s: float,
) -> tuple[int, float]:
    """Whether `new` can join with every promise on this worker kept, `new`'s own included.

    Args:
        now_s: the present.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many.
        grants: what each gets from the step that runs now.
        worker: WORKER record.
        new: REQUEST record as it would be on this worker, with blocks that it takes over at once;
            best effort only must not harm.
        length_s: step length to plan with.
        free_at_s: when the running step ends.

    Returns:
        FITS, LATE, DECODE_RATE or KV_BLOCKS; and when its prompt is computed, if it fits.
    """
    rows = np.empty(n + 1, REQUEST)
    for k in range(n):
        rows[k] = requests[ids[k]]
    rows[n] = new
    own = np.empty(1, WORKER)
    own[0] = worker
    own[0].step_cap_s = length_s
    own[0].busy_until_s = free_at_s
    own[0].num_free_blocks -= new.num_blocks
    granted = np.zeros(n + 1, np.int64)
    granted[:n] = grants[:n]
    if new.phase == PREFILL and surely_late(now_s, rows, n + 1, own, granted, n):
        return LATE, np.inf
    late, _, computed_at_s = look_ahead(now_s, rows, n + 1, own, granted, n)
    if late == NO_ROOM:
        return KV_BLOCKS, np.inf
    if late != ALL_ON_TIME:
        return LATE, np.inf
    if worker.decodes == 1:
        limit = sustained(rows, n + 1, worker)
        if limit != SUSTAINED:
            return limit + 1, np.inf
    return FITS, computed_at_s


@kernel
def late_promise(
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    grants: Ints,
    worker: Record,
    cost_limit: float,
) -> int:
    """The next best-effort request on this worker that can be promised after all; -1 if none.

    It asked for bounds, has met them so far, has become cheap enough because part of it is
    computed, and fits. One whose pages leave for another worker is looked at there.

    Args:
        now_s: as for `probe`, and so the next five.
        requests: see there.
        ids: see there.
        n: see there.
        grants: see there.
        worker: see there.
        cost_limit: worker seconds that may be left to do.
    """
    for k in range(n):
        r = requests[ids[k]]
        if r.guaranteed == 1 or r.leaves_after_prefill == 1 or np.isinf(r.next_due_at_s):
            continue
        if r.next_due_at_s < now_s or r.phase not in (PREFILL, DECODE):
            continue
        if work_s(worker, r) > cost_limit:
            continue
        rows = np.empty(n, REQUEST)
        for other in range(n):
            rows[other] = requests[ids[other]]
        rows[k].guaranteed = 1
        own = np.empty(1, WORKER)
        own[0] = worker
        granted = grants[:n].copy()
        if surely_late(now_s, rows, n, own, granted, k):
            continue
        late, _, _ = look_ahead(now_s, rows, n, own, granted, k)
        if late == ALL_ON_TIME and sustained(rows, n, worker) == SUSTAINED:
            return k
    return -1


@kernel
def load_of(
    now_s: float, requests: Records, ids: Ints, n: int, worker: Record
) -> tuple[float, float, int]:
    """How loaded a worker is, and the tightest pace on it.

    Returns:
        Seconds of promised prefill that wait, plus the share of time that promised decodes take
        times one second; the smallest TPOT promised, infinite if none; whether one more
        best-effort request may run here, ROOM_FOR_TIMELY and ROOM_FOR_LATE being bits.
    """
    load_s = 0.0
    tightest_s = np.inf
    num_timely = 0
    num_timely_waiting = 0
    num_late = 0
    num_late_waiting = 0
    for k in range(n):
        r = requests[ids[k]]
        if r.guaranteed == 0:
            if r.next_due_at_s >= now_s and not np.isinf(r.next_due_at_s):
                num_timely += 1
                num_timely_waiting += int(r.phase == PREFILL)
            else:
                num_late += 1
                num_late_waiting += int(r.phase == PREFILL)
            continue
        if r.phase == PREFILL:
            load_s += worker.token_s * (r.num_prompt_tokens - r.num_computed_tokens)
        if r.leaves_after_prefill == 0:
            context = r.num_prompt_tokens + r.num_output_tokens
            pace_s = worker.token_s + worker.sequence_s + worker.context_token_s * context
            load_s += pace_s / r.tpot_s
            tightest_s = min(tightest_s, r.tpot_s)
    is_alone = num_timely + num_late == n and n < worker.max_running
    room = 0
    if num_late_waiting < MAX_LATE_BESIDE and (num_late < MAX_LATE_BESIDE or is_alone):
        room |= ROOM_FOR_LATE
    if num_timely_waiting < MAX_TIMELY_WAITING and (num_timely < MAX_TIMELY_BESIDE or is_alone):
        room |= ROOM_FOR_TIMELY
    return load_s, tightest_s, room


@kernel
def loads_of(
    now_s: float, requests: Records, ids: Ints, counts: Ints, workers: Records
) -> tuple[Floats, Floats, Ints]:
    """What `load_of` says of each worker; arguments are fields of ClusterView, shapes (W,)."""
    num_workers = len(workers)
    load_s = np.empty(num_workers)
    tightest_s = np.empty(num_workers)
    room = np.empty(num_workers, np.int64)
    for w in range(num_workers):
        load_s[w], tightest_s[w], room[w] = load_of(now_s, requests, ids[w], counts[w], workers[w])
    return load_s, tightest_s, room


@kernel
def decode_work_s(worker: Record, request: Record) -> float:
    """Worker seconds that the rest of a request's output takes beside other work."""
    num_decoded = float(request.num_output_bound - request.num_output_tokens - 1)
    context = float(request.num_prompt_tokens) + 0.5 * num_decoded
    per_token_s = worker.token_s + worker.sequence_s + worker.context_token_s * context
    return float(num_decoded * per_token_s)


@kernel
def work_s(worker: Record, request: Record) -> float:
    """Worker seconds a request takes: of compute, or of the whole KV memory if that is more."""
    num_prompt = 0.0
    if request.phase == PREFILL:
        num_prompt = float(request.num_prompt_tokens - request.num_computed_tokens)
    per_token_s = worker.token_s + 0.5 * worker.prefill_attention_s * num_prompt
    compute_s = worker.chunk_s + num_prompt * per_token_s + decode_work_s(worker, request)
    num_decoded = float(request.num_output_bound - request.num_output_tokens - 1)
    context = float(request.num_prompt_tokens) + 0.5 * num_decoded
    num_tokens = worker.num_blocks * worker.block_size
    memory_s = num_decoded * request.later_tpot_s * context / num_tokens
    return float(max(compute_s, memory_s))
